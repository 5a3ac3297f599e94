"""Two recipes compared: how many times the compute the old one needs for the loss of the new one.

Each recipe is a fit of its own runs. The gain at C FLOPs is C_old / C, where the old law at its optimum of C_old has the
loss of the new law at its optimum of C. Its interval joins the profile intervals of the two fits (Zou and Donner 2008,
Statistics in Medicine 27, section 2: each side's distances in quadrature), so it is as wide as either demands.
"""

import dataclasses

import numpy as np

from foundation.errors import ConfigError
from scaling.fit import Fit
from scaling.laws import allocation
from scaling.quantities import Quantity, best_loss
from scaling.uncertainty import Interval, profile

LEAST, MOST = float(np.log(1e6)), float(np.log(1e48))  # FLOPs between which a loss is looked for


@np.errstate(all='ignore')
def compute_for(result: Fit, theta, target) -> np.ndarray:
  """ln C at which the law at its optimum has the ln loss `target`, for theta [lanes, P] and target [lanes] or a number.

  Bisection, then Newton steps of which the last carries imaginary parts along; MOST where no compute reaches it.
  """
  theta, target = np.atleast_2d(theta), np.asarray(target)
  k = result.observations.convention.k

  def log_loss(theta, c):
    """At the optimum of exp(c) FLOPs, [lanes]."""
    n, d = allocation(result.law, theta, np.exp(c), k)
    return result.law.log_loss(theta, {'n': n[..., None], 'd': d[..., None]}, np)[..., 0]

  low, high = np.full(len(theta), LEAST), np.full(len(theta), MOST)
  for _ in range(20):
    middle = 0.5 * (low + high)
    above = np.real(log_loss(np.real(theta), middle)) > np.real(target)
    low, high = np.where(above, middle, low), np.where(above, high, middle)
  best, h = 0.5 * (low + high), 1e-4
  reached = high < MOST
  for coordinates, aim in (*[(np.real(theta), np.real(target))] * 2, (theta, target)):
    slope = np.real(log_loss(np.real(theta), best + h) - log_loss(np.real(theta), best - h)) / (2 * h)
    best = best - np.where(reached, (log_loss(coordinates, best) - aim) / np.where(slope < 0, slope, np.nan), 0.0)
  return np.where(reached, best, MOST)


@dataclasses.dataclass(frozen=True)
class Gain:
  """The gain at C FLOPs of the new recipe, with its interval; loss: of both, nats per token."""
  C: float
  loss: float
  interval: Interval


def _check(old: Fit, new: Fit) -> None:
  for result, name in ((old, 'old'), (new, 'new')):
    if not result.law.plain:
      raise ConfigError(f'the {name} recipe has the law {result.law.name}; a gain in compute needs a law of N and D alone')


def _joined(name: str, old: Fit, new: Fit, of_old, of_new, level: float) -> Interval:
  """The interval of a quantity that is a function of both fits' coordinates: each fit's own with the other as fitted."""
  parts = [profile(old, Quantity(name, of_old), level), profile(new, Quantity(name, of_new), level)]
  middle = parts[0].estimate
  with np.errstate(invalid='ignore'):
    low = middle - np.hypot(*(part.estimate - part.low for part in parts))
    high = middle + np.hypot(*(part.high - part.estimate for part in parts))
  bound = MOST / 2  # beyond which a compute was not found: no bound
  return Interval(name, middle, low if low > -bound else -np.inf, high if high < bound else np.inf, level, 'joined profile')


def gain(old: Fit, new: Fit, C: float, level: float = 0.9) -> Gain:
  """The compute-equivalent gain of `new` over `old` at C FLOPs of the new one. Raises ConfigError if the old law never
  reaches the loss."""
  _check(old, new)
  k = new.observations.convention.k
  loss = best_loss(new.law, C, k=k)
  target = loss.value(new.theta[None])
  if not np.isfinite(np.real(target)).all():
    raise ConfigError(f'the new law {new.law.name} has no optimum at {C:.3g} FLOPs')
  if float(compute_for(old, old.theta, target)[0]) >= MOST:
    raise ConfigError(f'the old recipe reaches a loss of {float(np.exp(target[0])):.4g}, that of the new one at {C:.3g} '
                      'FLOPs, with no compute: its floor is higher')
  by_old = lambda theta: compute_for(old, theta, target[0]) - np.log(C)
  by_new = lambda theta: compute_for(old, np.repeat(old.theta[None], len(theta), 0), loss.value(theta)) - np.log(C)
  logs = _joined(f'gain at C={C:.3g}', old, new, by_old, by_new, level)
  with np.errstate(over='ignore'):
    shown = dataclasses.replace(logs, estimate=float(np.exp(logs.estimate)), low=float(np.exp(logs.low)),
                                high=float(np.exp(logs.high)))
  return Gain(C, float(np.exp(target[0])), shown)


def growth(old: Fit, new: Fit, level: float = 0.9) -> Interval:
  """The exponent b of gain ~ C^b between the least and the greatest compute that both recipes ran."""
  _check(old, new)
  low, high = common(old, new)
  k, span = new.observations.convention.k, float(np.log(high / low))
  ends = [best_loss(new.law, C, k=k) for C in (low, high)]
  targets = [end.value(new.theta[None])[0] for end in ends]
  by_old = lambda theta: (compute_for(old, theta, targets[1]) - compute_for(old, theta, targets[0])) / span - 1.0

  def by_new(theta):
    kept = np.repeat(old.theta[None], len(theta), 0)
    return (compute_for(old, kept, ends[1].value(theta)) - compute_for(old, kept, ends[0].value(theta))) / span - 1.0
  return _joined('b (gain ~ C^b)', old, new, by_old, by_new, level)


def common(old: Fit, new: Fit) -> tuple[float, float]:
  """Least and greatest compute that both recipes ran, FLOPs."""
  o, n = old.observations.C, new.observations.C
  low, high = max(o.min(), n.min()), min(o.max(), n.max())
  if not high > 1.01 * low:
    raise ConfigError(f'the recipes share no range of compute: {o.min():.3g} to {o.max():.3g} and {n.min():.3g} to '
                      f'{n.max():.3g} FLOPs')
  return float(low), float(high)


def text(old: Fit, new: Fit, level: float = 0.9, C: float = 0.0) -> str:
  """The gain by compute, from the least that both ran to ten times the greatest (or to C), and whether it grows."""
  low, high = common(old, new)
  lines = [f'old: {len(old.observations)} runs of {old.observations.source}, {old.law.name}, {old.observations.convention}',
           f'new: {len(new.observations)} runs of {new.observations.source}, {new.law.name}, {new.observations.convention}',
           f'{"C":>10s} {"loss":>8s} {"gain":>8s}   {100 * level:g} %']
  for at in [*np.geomspace(low, high, 4), C or 10.0 * high]:
    try:
      found = gain(old, new, float(at), level)
    except ConfigError as error:
      lines.append(f'{at:10.3g} {error}')
      continue
    i = found.interval
    lines.append(f'{at:10.3g} {found.loss:8.4f} {i.estimate:8.3f}   [{i.low:.3f}, {i.high:.3f}]'
                 + ('   extrapolated' if at > high * 1.01 else ''))
  b = growth(old, new, level)
  says = 'it grows with compute' if b.low > 0 else 'it shrinks with compute' if b.high < 0 else \
      'the runs do not show that it grows or shrinks'
  lines.append(f'gain ~ C^b: b {b.estimate:+.3f}, {100 * level:g} % [{b.low:+.3f}, {b.high:+.3f}]: {says}')
  return '\n'.join(lines)
