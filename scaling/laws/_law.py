"""What a law is: a dataclass whose fields are the answers that fits, plans and figures ask for."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from foundation.errors import ConfigError, nearest
from scaling.columns import KNOWN, Column

STANDARD = ('E', 'A', 'B', 'alpha', 'beta')
EXPONENTS = {'alpha': (0.01, 3.0), 'beta': (0.01, 3.0)}


@dataclasses.dataclass(frozen=True)
class Terms:
  """A law in standard form: ln U = a - alpha n, ln V = b - beta d, joined with exponent q above ln E = e."""
  e: np.ndarray | float
  a: np.ndarray
  b: np.ndarray
  alpha: np.ndarray
  beta: np.ndarray
  q: np.ndarray | float


@dataclasses.dataclass(frozen=True)
class Law:
  """One parametric law of the loss. Raises ConfigError, naming the field, if it contradicts itself.

  name, formula, source: for people. parameters: displayed names in the order of theta.
  log_loss(theta, x, xp): ln loss [..., rows] of coordinates theta [..., P] and log columns x, each [rows]; xp is numpy
    or jax.numpy, and theta may be complex.
  columns: what x holds, keys of scaling.columns (`n` = ln N, `d` = ln D, `u` = ln unique tokens, `k` = ln experts, `c` =
    ln FLOPs, ...) or a Column of one's own, such as Column('depth', unit='layers'): x['depth'] is then its logarithm.
  logs: the parameters that theta holds as natural logarithms; None: those of E, A and B that there are.
  jacobian(theta, x): d ln loss / d theta, [..., rows, P]; None: by complex steps, to machine precision.
  terms(theta, x, xp): Terms at x, from which the compute optimum follows in closed form; None: there is no such form,
    and a law of N and D is searched for its optimum.
  start(additive): theta [..., P] from coordinates [..., 5] of the additive law, which a screen has found; None: those
    of the same name, and for the others every combination of `tries`.
  tries: displayed values from which parameters that the additive law lacks are fitted.
  pairs: (scale, exponent, column, factor); centring a column moves the scale's log by factor * mean * exponent. None:
    A with alpha in n, and B with beta in d, where the law has both.
  bounds: displayed values outside which a fit is suspect; None: of alpha and beta.

  What None stands for is filled in, so that nobody reads None where a type says `| Any`.
  """
  name: str
  formula: str
  source: str
  parameters: tuple[str, ...]
  log_loss: Callable
  jacobian: Callable | Any = None
  terms: Callable | Any = None  # or None, see above
  start: Callable | Any = None
  tries: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
  logs: tuple[str, ...] | Any = None
  pairs: tuple | Any = None
  columns: Any = ('n', 'd')  # in the end a tuple of keys
  bounds: Mapping[str, tuple[float, float]] | Any = None
  reads: tuple[Column, ...] = dataclasses.field(init=False, default=())  # the columns themselves

  def __post_init__(self):
    self._name_columns()
    has = set(self.parameters).issuperset
    usual = {
        'logs': tuple(name for name in ('E', 'A', 'B') if has([name])),
        'pairs': tuple(pair for pair in (('A', 'alpha', 'n', 1.0), ('B', 'beta', 'd', 1.0)) if has(pair[:2])),
        'bounds': {name: ends for name, ends in EXPONENTS.items() if has([name])},
        'jacobian': complex_step(self.log_loss)}
    for field, value in usual.items():
      if getattr(self, field) is None:
        object.__setattr__(self, field, value)
    for field, names, known in (
        ('logs', self.logs, self.parameters), ('bounds', self.bounds, self.parameters),
        ('tries', self.tries, self.parameters),
        ('pairs', [name for pair in self.pairs for name in pair[:2]], self.parameters)):
      for name in names:
        if name not in known:
          raise ConfigError(f"law {self.name}: {field} has '{name}'; expected one of {', '.join(known)}"
                            f'{nearest(name, known)}')
    if self.start is None:
      unknown = [name for name in self.parameters if name not in (*STANDARD, *self.tries)]
      if unknown:
        raise ConfigError(f"law {self.name}: nothing says where '{unknown[0]}' starts; expected a value in tries, or a "
                          'function start')
      object.__setattr__(self, 'start', self._start)

  def _name_columns(self) -> None:
    """Keys alone in `columns`, and what they are in `reads`."""
    if not self.columns:
      raise ConfigError(f'law {self.name}: columns is (); expected at least one, such as n')
    for column in self.columns:
      if not isinstance(column, Column) and column not in KNOWN:
        raise ConfigError(f"law {self.name}: columns has '{column}'; expected one of {', '.join(KNOWN)}, or a "
                          f'scaling.columns.Column{nearest(str(column), KNOWN)}')
    object.__setattr__(self, 'reads', tuple(c if isinstance(c, Column) else KNOWN[c] for c in self.columns))
    object.__setattr__(self, 'columns', tuple(column.key for column in self.reads))

  def _start(self, additive):
    own = [name for name in self.parameters if name in STANDARD and name not in self.tries]
    columns = [additive[..., STANDARD.index(name)] if name in own else np.zeros(additive.shape[:-1])
               for name in self.parameters]
    lanes = np.stack(columns, -1)
    for name, values in self.tries.items():
      place = self.parameters.index(name)
      copies = [np.array(lanes) for _ in values]
      for copy, value in zip(copies, values):
        copy[..., place] = np.log(value) if name in self.logs else value
      lanes = np.concatenate(copies, 0)
    return lanes

  @property
  def plain(self) -> bool:
    """Whether the law is one of N and D alone, so that compute and size say all about a run."""
    return set(self.columns) == {'n', 'd'}

  @property
  def decides(self) -> bool:
    """Whether a compute optimum follows: N and D are read, and D is not repeated."""
    return {'n', 'd'} <= set(self.columns) and 'u' not in self.columns

  def display(self, theta) -> dict[str, np.ndarray]:
    """Displayed values (E, A, B not as logarithms) of theta[..., P]."""
    theta = np.asarray(theta, float)
    with np.errstate(over='ignore'):
      return {name: np.exp(theta[..., i]) if name in self.logs else theta[..., i]
              for i, name in enumerate(self.parameters)}

  def coordinates(self, values: Mapping[str, float]) -> np.ndarray:
    """theta of displayed values; refuses unknown, missing and non-positive ones."""
    for name in values:
      if name not in self.parameters:
        raise ConfigError(f'law {self.name} has no parameter {name!r}; it has {", ".join(self.parameters)}'
                          f'{nearest(name, self.parameters)}')
    for name in self.parameters:
      if name not in values:
        raise ConfigError(f'law {self.name} needs a value of {name!r} besides {", ".join(values)}')
      if name in self.logs and not values[name] > 0:
        raise ConfigError(f'{name}={values[name]} must be positive in the law {self.name}')
    return np.array([np.log(values[p]) if p in self.logs else values[p] for p in self.parameters], float)

  def others(self, K=None, at: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """x of the columns besides N, D, U and C: K experts (one, if not given), the others by name from `at`."""
    at = at or {}
    if K is not None and np.any(np.asarray(K) != 1) and 'k' not in self.columns:
      raise ConfigError(f'K={K}: law {self.name} knows no experts; expected one that does, such as experts')
    known = [column.name for column in self.reads if column.key not in ('n', 'd', 'u', 'k', 'c')]
    for name in at:
      if name not in known:
        raise ConfigError(f'{name}={at[name]}: law {self.name} does not read it; it reads '
                         f'{", ".join(column.name for column in self.reads)}{nearest(name, known)}')
    out = {'k': np.log(K or 1.0)} if 'k' in self.columns else {}
    for column in self.reads:
      if column.name in known:
        if column.name not in at:
          raise ConfigError(f'law {self.name} needs the column {column.name} besides N and D; expected a value, such as '
                           f'--at={column.name}=1')
        out[column.key] = column.of(at[column.name])
    return out

  def loss(self, theta, N=None, D=None, U=None, K=None, C=None, **at) -> np.ndarray:
    """Loss in nats per token at N parameters and D tokens (broadcast together), U unique tokens, K experts, C FLOPs;
    other columns by name."""
    given = {'n': N, 'd': D, 'u': U, 'k': K, 'c': C}
    missing = [column.name for column in self.reads if given.get(column.key, at.get(column.name)) is None]
    if missing:
      raise ConfigError(f'law {self.name} needs the column {missing[0]} besides N and D')
    logs = np.broadcast_arrays(*(column.of(given.get(column.key, at.get(column.name))) for column in self.reads))
    x = {key: np.ravel(value) for key, value in zip(self.columns, logs)}
    theta = np.asarray(theta, float)
    return np.exp(self.log_loss(theta, x, np)).reshape(theta.shape[:-1] + logs[0].shape)


def complex_step(log_loss: Callable) -> Callable:
  """d ln loss / d theta to machine precision (Squire and Trapp 1998): Im f(theta + i h) / h with h = 1e-30."""
  def jacobian(theta, x):
    columns = []
    for i in range(theta.shape[-1]):
      moved = theta.astype(complex)
      moved[..., i] += 1e-30j
      columns.append(log_loss(moved, x, np).imag / 1e-30)
    return np.stack(columns, -1)
  return jacobian
