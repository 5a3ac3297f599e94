"""Two recipes compared: how many times the compute the old one needs for the loss of the new one.

Each recipe is a fit of its own runs. The gain at C FLOPs is C_old / C, where the old law at its optimum of C_old has the
loss of the new law at its optimum of C. Its interval joins what the profiles of the two losses allow, each alone (Zou
and Donner 2008, Statistics in Medicine 27, section 2: distances in quadrature), so it is as wide as either demands.
"""

import numpy as np
from scipy import optimize

from foundation.errors import ConfigError
from scaling.fit import Fit
from scaling.quantities import Quantity, best_loss
from scaling.uncertainty import Interval, profile

LEAST, MOST = float(np.log(1e3)), float(np.log(1e48))  # ln FLOPs between which a loss is looked for


def _loss(result: Fit, c: float) -> Quantity:
  return best_loss(result.law, float(np.exp(c)), k=result.observations.convention.k)


def _log_loss(result: Fit, c: float) -> float:
  return float(_loss(result, c).value(result.theta[None])[0])


def compute_for(result: Fit, log_loss: float) -> float:
  """ln C at which the law at its optimum has this ln loss; inf where no compute reaches it."""
  off = lambda c: _log_loss(result, c) - log_loss
  if not off(MOST) < 0:
    return np.inf
  return float(optimize.brentq(off, LEAST, MOST, xtol=1e-10)) if off(LEAST) > 0 else -np.inf


def _check(old: Fit, new: Fit) -> None:
  for result, name in ((old, 'old'), (new, 'new')):
    if not result.law.plain:
      raise ConfigError(f'the {name} recipe has the law {result.law.name}; a gain in compute needs a law of N and D alone')


def gain(old: Fit, new: Fit, C: float, level: float = 0.9) -> Interval:
  """The compute-equivalent gain of `new` over `old` at C FLOPs of the new one. Raises ConfigError if the old law never
  reaches the loss."""
  _check(old, new)
  c = float(np.log(C))
  target = _log_loss(new, c)
  if not np.isfinite(target):
    raise ConfigError(f'the new law {new.law.name} has no optimum at {C:.3g} FLOPs')
  there = compute_for(old, target)
  if not np.isfinite(there):
    raise ConfigError(f'the old recipe reaches a loss of {np.exp(target):.4g}, that of the new one at {C:.3g} FLOPs, with '
                      'no compute: its floor is higher')
  with np.errstate(divide='ignore'):  # a loss without a bound below
    mine, theirs = (np.log([i.low, i.high]) for i in (profile(new, _loss(new, c), level),
                                                      profile(old, _loss(old, there), level)))
  # a higher loss of the new law needs less of the old one's compute; were the old law's curve higher, more
  by_new = [compute_for(old, mine[1]), compute_for(old, mine[0])]
  by_old = [compute_for(old, 2.0 * target - theirs[0]), compute_for(old, 2.0 * target - theirs[1])]
  low, high = (there + sign * np.hypot(a - there, b - there) for sign, a, b in zip((-1.0, 1.0), by_new, by_old))
  return Interval(f'gain at C={C:.3g}', float(np.exp(there - c)), float(np.exp(low - c)), float(np.exp(high - c)), level,
                  'joined profile')


def growth(old: Fit, new: Fit, level: float = 0.9) -> Interval:
  """The exponent b of gain ~ C^b between the least and the greatest compute that both recipes ran."""
  _check(old, new)
  ends = np.log(common(old, new))
  there = [compute_for(old, _log_loss(new, c)) for c in ends]
  if not np.isfinite(there).all():
    raise ConfigError('the old recipe does not reach the losses of the new one; there is no gain that could grow')
  h, span = 1e-3, float(ends[1] - ends[0])
  slopes = [(_log_loss(old, c + h) - _log_loss(old, c - h)) / (2.0 * h) for c in there]

  def change(result: Fit, computes, sign: float) -> Quantity:
    low, high = (_loss(result, c) for c in computes)
    return Quantity('b', lambda theta: sign * (high.value(theta) / slopes[1] - low.value(theta) / slopes[0]) / span)
  parts = [profile(new, change(new, ends, 1.0), level), profile(old, change(old, there, -1.0), level)]
  middle = (there[1] - there[0]) / span - 1.0
  low = middle - np.hypot(parts[0].estimate - parts[0].low, parts[1].estimate - parts[1].low)
  high = middle + np.hypot(parts[0].high - parts[0].estimate, parts[1].high - parts[1].estimate)
  return Interval('b (gain ~ C^b)', middle, float(low), float(high), level, 'joined profile')


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
  lines = [f'{name}: {len(result.observations)} runs of {result.observations.source}, {result.law.name}, '
           f'{result.observations.convention}' for name, result in (('old', old), ('new', new))]
  lines.append(f'{"C":>10s} {"N":>10s} {"loss":>8s} {"gain":>8s}   {100 * level:g} %')
  for at in [*np.geomspace(low, high, 4), C or 10.0 * high]:
    try:
      i = gain(old, new, float(at), level)
    except ConfigError as error:
      lines.append(f'{at:10.3g} {error}')
      continue
    N, D = new.optimum(at)
    lines.append(f'{at:10.3g} {float(N):10.3g} {float(new.predict(N, D)):8.4f} {i.estimate:8.3f}   [{i.low:.3f}, '
                 f'{i.high:.3f}]' + ('   extrapolated' if at > high * 1.01 else ''))
  try:
    b = growth(old, new, level)
  except ConfigError as error:
    return '\n'.join([*lines, str(error)])
  says = 'it grows with compute' if b.low > 0 else 'it shrinks with compute' if b.high < 0 else \
      'the runs do not show that it grows or shrinks'
  lines.append(f'gain ~ C^b: b {b.estimate:+.3f}, {100 * level:g} % [{b.low:+.3f}, {b.high:+.3f}]: {says}')
  return '\n'.join(lines)
