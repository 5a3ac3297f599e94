"""The loss of a run before it is made, with the error of the law in its interval and not only that of its constants.

Below a compute a law is fitted, above it tested: the errors of the later half of such extrapolations are how far this
law drifts on this table. Drift is taken as a random walk in the logarithm of how far a run lies beyond the fitted ones
(in N, D or C, whichever is farthest), so its variance grows with that distance and is nothing inside.
"""

import dataclasses

import numpy as np

from foundation.errors import ConfigError
from scaling import sandwich
from scaling.fit import Fit, fit
from scaling.holdout import splits, thin
from scaling.laws import Law
from scaling.objective import Loss
from scaling.observations import Observations
from scaling.quantities import Quantity
from scaling.selection import CELL
from scaling.uncertainty import Interval, profile


@dataclasses.dataclass(frozen=True)
class Drift:
  """variance: of ln loss for each factor e of distance. cuts: extrapolations that it was measured on, 0: none."""
  variance: float = 0.0
  cuts: int = 0
  note: str = ''


def distance(o: Observations, N, D) -> np.ndarray:
  """ln of how far runs of N and D lie beyond the table in N, D or C, whichever is farthest; 0 inside."""
  N, D = np.asarray(N, float), np.asarray(D, float)
  beyond = [np.log(N / o.N.max()), np.log(D / o.D.max()), np.log(o.convention.k * N * D / o.C.max())]
  return np.maximum(np.max(beyond, axis=0), 0.0)


def drift(o: Observations, law: Law, loss: Loss = Loss(), fixed=None) -> Drift:
  """How far a law's extrapolations have drifted on this table; says so if the table allows none."""
  squares, far, cuts = 0.0, 0.0, 0
  try:
    pairs = splits(o, cuts=thin(o))
    for _, below in [pair for pair in pairs if pair[1].sum() >= len(o) / 2] or pairs[-1:]:
      train, test = o.take(below), o.take(~below)
      found = fit(train, law, loss, fixed)
      off = law.log_loss(found.theta[None], {key: test.x[key] for key in law.columns}, np)[0] - test.y
      squares, far, cuts = squares + float(off @ off), far + float(distance(train, test.N, test.D).sum()), cuts + 1
  except ConfigError as error:
    if not cuts:
      return Drift(note=f'the error of the law itself is not in the interval: {error}')
  return Drift(squares / far, cuts)


def widened(interval: Interval, walk: Drift, far: float) -> Interval:
  """The interval of a loss, with the drift of its law over a distance added in quadrature to each side."""
  if not walk.cuts or not far > 0:
    return interval
  extra = np.sqrt(sandwich.limit(interval.level, walk.cuts) * walk.variance * far)
  with np.errstate(divide='ignore'):
    middle, low, high = np.log([interval.estimate, interval.low, interval.high])
  return dataclasses.replace(interval, low=float(np.exp(middle - np.hypot(middle - low, extra))),
                             high=float(np.exp(middle + np.hypot(high - middle, extra))), method='prediction')


def same_cell(o: Observations, N: float, D: float) -> np.ndarray:
  """Which rows are runs of this N and D, at whatever rate or batch."""
  return (np.abs(o.N / N - 1.0) <= CELL) & (np.abs(o.D / D - 1.0) <= CELL)


def predict(result: Fit, quantity: Quantity, N: float, D: float, level: float = 0.9, loss: Loss | None = None
            ) -> tuple[Interval, Interval, Drift]:
  """(interval of one run's loss, of the law's loss, the drift that is in both) of the quantity, a loss at N and D.

  loss: the objective before its scale was fitted; the fitted one if not given.
  """
  o = result.observations
  walk, far = Drift(), float(distance(o, N, D))
  if far > 0:
    walk = drift(o, result.law, loss or result.loss, result.fixed)
  one, mean = (widened(profile(result, quantity, level, new_run=new), walk, far) for new in (True, False))
  return one, mean, walk
