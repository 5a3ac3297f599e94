"""What a law says, as functions of its coordinates: a parameter, a loss, the compute optimum and its exponent.

C FLOPs are k N D: k is that of the table, `Observations.convention`, else 6.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from foundation.errors import ConfigError
from scaling.laws import Law, allocation


@dataclasses.dataclass(frozen=True)
class Quantity:
  """Something a law says: value(theta[lanes, P]) -> [lanes], complex theta allowed; `log`: it is shown as its exp."""
  name: str
  value: Callable
  log: bool = False

  def gradient(self, theta):
    """d value / d theta, [lanes, P]."""
    out = np.empty(theta.shape)
    for i in range(theta.shape[-1]):
      moved = theta.astype(complex)
      moved[..., i] += 1e-30j
      out[..., i] = np.imag(self.value(moved)) / 1e-30
    return out

  def show(self, value):
    with np.errstate(over='ignore'):
      return np.exp(value) if self.log else np.asarray(value)


def parameter(law: Law, name: str) -> Quantity:
  """One of the law's parameters."""
  if name not in law.parameters:
    raise ConfigError(f'law {law.name} has no parameter {name!r}; it has {", ".join(law.parameters)}')
  i = law.parameters.index(name)
  return Quantity(name, lambda theta: theta[..., i], name in law.logs)


def _at(law: Law, theta, n, d, others, k: float = 6.0):
  n, d = np.asarray(n)[..., None], np.asarray(d)[..., None]
  x = {'n': n, 'd': d, 'c': n + d + np.log(k), **{key: np.asarray(value)[..., None] for key, value in others.items()}}
  return law.log_loss(theta, x, np)[..., 0]


def loss_at(law: Law, N: float, D: float, U: float | None = None, K: float | None = None, at=None, k: float = 6.0
            ) -> Quantity:
  """Loss in nats per token of a run of N parameters and D tokens (U unique ones: D if not given; K experts: 1)."""
  if U is not None and 'u' not in law.columns:
    raise ConfigError(f'U={U:g}: law {law.name} knows no repetition; expected one that does, such as repeated')
  given = {'n': N, 'd': D, 'u': U or D, 'c': k * N * D}
  x = {key: np.log([given[key]]) if key in given else np.array([value])
       for key, value in {**dict.fromkeys(law.columns), **law.others(K, at)}.items()}
  return Quantity(f'loss at N={N:.3g}, D={D:.3g}', lambda theta: law.log_loss(theta, x, np)[..., 0], True)


def n_opt(law: Law, C: float, K: float | None = None, k: float = 6.0, at=None) -> Quantity:
  """Compute-optimal (active) parameters at C FLOPs, with K experts and other columns `at` these values."""
  return Quantity(f'N_opt at C={C:.3g}', lambda theta: allocation(law, theta, C, k, K, at)[0], True)


def d_opt(law: Law, C: float, K: float | None = None, k: float = 6.0, at=None) -> Quantity:
  """Compute-optimal tokens at C FLOPs, with K experts and other columns `at` these values."""
  return Quantity(f'D_opt at C={C:.3g}', lambda theta: allocation(law, theta, C, k, K, at)[1], True)


def best_loss(law: Law, C: float, K: float | None = None, k: float = 6.0, at=None) -> Quantity:
  """Loss in nats per token at the compute optimum of C FLOPs, with K experts and other columns `at` these values."""
  others = law.others(K, at)
  return Quantity(f'loss at C={C:.3g}',
                  lambda theta: _at(law, theta, *allocation(law, theta, C, k, K, at), others, k), True)


def share(law: Law) -> Quantity:
  """The exponent a of N_opt ~ C^a."""
  def value(theta):
    t = law.terms(theta, {'k': 0.0})
    return t.beta / (t.alpha + t.beta)
  return Quantity('a (N_opt ~ C^a)', value)


@np.errstate(all='ignore')
def regret(law: Law, thetas, C: float, N: float, K: float | None = None, k: float = 6.0, at=None) -> np.ndarray:
  """Loss lost, in nats per token, by training N parameters and not N_opt on C FLOPs, for each theta."""
  thetas, others = np.atleast_2d(thetas), law.others(K, at)
  chosen = np.full(len(thetas), np.log(N))
  here = _at(law, thetas, chosen, np.log(C / k) - chosen, others, k)
  return np.exp(here) - np.exp(_at(law, thetas, *allocation(law, thetas, C, k, K, at), others, k))
