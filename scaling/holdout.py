"""Chooses among laws by prediction: fit below a compute, predict above it, for every compute that leaves enough runs.

The error inside the fitted range says little about a prediction (an additive law within .25 % of its ladder missed the
13B model of that ladder by 3.8 %, Bhagia et al. 2024, arXiv:2412.04403), so it plays no part.
"""

import dataclasses

import numpy as np

from foundation.errors import ConfigError
from scaling.fit import fit
from scaling.laws import Law
from scaling.objective import Loss
from scaling.observations import Observations


@dataclasses.dataclass(frozen=True)
class Holdout:
  """One law's errors. cut: largest compute fitted, FLOPs. error: rms ln loss above it. runs: fitted, held."""
  law: str
  cut: np.ndarray
  error: np.ndarray
  bias: np.ndarray  # mean of predicted - measured ln loss
  runs: np.ndarray  # [cuts, 2]

  @property
  def score(self) -> float:
    """Root mean square over the cuts."""
    return float(np.sqrt(np.mean(self.error ** 2)))


LEAST = 8  # rows below a cut
COMPARED = ('additive', 'tied', 'kaplan', 'coupled')  # laws that are compared unless others are named


def splits(o: Observations, least_test: int = 2, cuts=None, reach: float = 0.0) -> list[tuple[float, np.ndarray]]:
  """(cut, which rows are at or below it) of every cut, as `holdout` takes them.

  A cut needs two rows more than the law with most parameters has, so that all laws meet the same cuts.

  Raises:
    ConfigError: there is none; that depends on N, D and C alone.
  """
  out = []
  for cut in np.unique(o.C) if cuts is None else np.asarray(cuts, float):
    below = o.C <= cut * (1 + 1e-9)
    if below.sum() < LEAST or (~below).sum() < least_test or (reach and cut > o.C.max() / reach * (1 + 1e-9)):
      continue
    if len(np.unique(o.N[below])) >= 3 and len(np.unique(o.D[below])) >= 3:
      out.append((cut, below))
  if not out:
    raise ConfigError(f'{len(o)} runs leave no compute below which {LEAST} are fitted and above which {least_test} are '
                      'predicted')
  return out


def holdout(o: Observations, law: Law, loss: Loss = Loss(), least_test: int = 2, cuts=None,
            reach: float = 0.0) -> Holdout:
  """Errors of a law at every cut (or at `cuts`, FLOPs). reach: only cuts at most C_max/reach.

  A refit that is not accepted still counts, as its prediction would have.
  """
  kept, errors, biases, counts = [], [], [], []
  for cut, below in splits(o, least_test, cuts, reach):
    train, test = o.take(below), o.take(~below)
    result = fit(train, law, loss)
    off = law.log_loss(result.theta[None], {key: test.x[key] for key in law.columns}, np)[0] - test.y
    kept.append(cut)
    errors.append(np.sqrt(np.mean(off ** 2)))
    biases.append(off.mean())
    counts.append((below.sum(), (~below).sum()))
  return Holdout(law.name, np.array(kept), np.array(errors), np.array(biases), np.array(counts))


def weights(holdouts) -> np.ndarray:
  """Weights that add to one, proportional to 1/error^2, the error over the cuts that all laws share."""
  inverse = np.array([1.0 / max(r.score, 1e-9) ** 2 for r in holdouts])
  return inverse / inverse.sum()


def thin(o: Observations, most: int = 12) -> np.ndarray:
  """At most that many cuts, spread evenly over the ranks of the distinct computes."""
  values = np.unique(o.C)
  return values if len(values) <= most else values[np.unique(np.linspace(0, len(values) - 2, most).round().astype(int))]
