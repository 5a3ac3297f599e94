"""The three approaches of Hoffmann et al. 2022 to the compute-optimal exponents, side by side on one table.

1: the envelope of the runs. 2: a parabola in ln N for each compute budget. 3: the parametric law. Besides, the second
without its bias: a parabola is not the shape of a slice of the law, so its minimum is off unless alpha = beta and the
grid is centred; `isoflop_exact` fits each slice as E_C + A/N^alpha + B/D^beta, with an offset a slice and shared shape.
"""

import dataclasses

import numpy as np

from foundation.errors import ConfigError
from scaling.fit import Fit, fit
from scaling.laws import law as law_of
from scaling.lints import isoflop_groups
from scaling.objective import Loss
from scaling.observations import Observations


@dataclasses.dataclass(frozen=True)
class Optima:
  """Compute-optimal sizes by one approach: ln N_opt = intercept + a ln C.

  C, N, D: the points the line goes through (FLOPs, parameters, tokens). a_error: standard error of a, NaN if unknown.
  """
  approach: str
  C: np.ndarray
  N: np.ndarray
  D: np.ndarray
  a: float
  a_error: float
  intercept: float
  notes: tuple[str, ...] = ()

  def n_opt(self, C):
    """Compute-optimal parameters at C FLOPs."""
    return np.exp(self.intercept + self.a * np.log(C))


def _line(name: str, C, N, k: float, notes=()) -> Optima:
  x, y = np.log(C), np.log(N)
  design = np.stack([np.ones(len(x)), x], 1)
  (intercept, slope), *_ = np.linalg.lstsq(design, y, rcond=None)
  error = np.nan
  if len(x) > 2:
    variance = ((y - design @ [intercept, slope]) ** 2).sum() / (len(x) - 2)
    error = float(np.sqrt(variance / ((x - x.mean()) ** 2).sum()))
  return Optima(name, np.asarray(C), np.asarray(N), np.asarray(C) / (k * np.asarray(N)), float(slope), error,
                float(intercept), tuple(notes))


def frontier(o: Observations) -> np.ndarray:
  """Indices of the runs that no run of the same or less compute beats, by compute."""
  order = np.lexsort((o.loss, o.C))
  best = np.minimum.accumulate(o.loss[order])
  return order[np.concatenate([[True], best[1:] < best[:-1]])]


def envelope(o: Observations) -> Optima:
  """Approach 1: the line through the sizes on the frontier. Biased to the sizes on the grid; end points only."""
  index = frontier(o)
  if len(np.unique(o.N[index])) < 3:
    raise ConfigError(f'envelope: {len(np.unique(o.N[index]))} sizes on the frontier of {len(o)} runs; expected 3 or '
                     'more')
  return _line('1 envelope', o.C[index], o.N[index], o.convention.k)


@np.errstate(all='ignore')
def isoflop(o: Observations) -> Optima:
  """Approach 2: the minimum of a parabola of loss in ln N in each isoFLOP group that has one inside."""
  C, N, notes = [], [], []
  for group in isoflop_groups(o):
    n = np.log(o.N[group])
    c2, c1, _ = np.polyfit(n, o.loss[group], 2)
    middle = -c1 / (2 * c2)
    if c2 > 0 and n.min() < middle < n.max():
      C.append(np.exp(np.log(o.C[group]).mean()))
      N.append(np.exp(middle))
    else:
      notes.append(f'no interior minimum at C={np.exp(np.log(o.C[group]).mean()):.3g}')
  if len(C) < 2:
    raise ConfigError(f'isoFLOP: {len(C)} budgets with four sizes and a minimum inside; expected 2 or more')
  return _line('2 isoFLOP parabolas', C, N, o.convention.k, notes)


@np.errstate(all='ignore')
def isoflop_exact(o: Observations) -> Optima:
  """Approach 2 without its bias: offsets E_C of the slices, and A, B, alpha, beta shared, by least squares in loss/L.

  The exponents are searched on a grid that is narrowed around its best cell; the rest is linear.
  """
  groups = isoflop_groups(o)
  if len(groups) < 2:
    raise ConfigError(f'isoFLOP: {len(groups)} budgets with four sizes or more; expected 2 or more')
  rows = np.concatenate(groups)
  which = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
  n, d = np.log(o.N[rows]), np.log(o.D[rows])
  n0, d0 = n.mean(), d.mean()
  offsets = (which[:, None] == np.arange(len(groups))).astype(float)
  target = o.loss[rows]

  def solve(alpha, beta):
    basis = np.concatenate([offsets, np.exp(-alpha * (n - n0))[:, None], np.exp(-beta * (d - d0))[:, None]], 1)
    coefficients = np.linalg.lstsq(basis / target[:, None], np.ones(len(target)), rcond=None)[0]
    value = ((basis @ coefficients / target - 1.0) ** 2).sum()
    return coefficients, value if min(coefficients[-2:]) > 0 else np.inf

  low, high = np.log([0.03, 0.03]), np.log([1.6, 1.6])
  for _ in range(12):
    first, second = np.linspace(low[0], high[0], 9), np.linspace(low[1], high[1], 9)
    value = np.array([[solve(np.exp(p), np.exp(q))[1] for q in second] for p in first])
    if not np.isfinite(value).any():
      raise ConfigError('isoFLOP: no slice shape with positive A and B fits these runs')
    i, j = np.unravel_index(np.argmin(value), value.shape)
    half = (high - low) / 4
    centre = np.array([first[i], second[j]])
    low, high = centre - half, centre + half
  (alpha, beta), k = np.exp(centre), o.convention.k
  a, b = np.log(solve(alpha, beta)[0][-2:]) + [alpha * n0, beta * d0]
  C = np.array([np.exp(np.log(o.C[g]).mean()) for g in groups])
  N = np.exp((np.log(alpha / beta) + a - b) / (alpha + beta) + beta / (alpha + beta) * np.log(C / k))
  return dataclasses.replace(_line('2 isoFLOP, exact shape', C, N, k), a_error=np.nan)


def parametric(o: Observations, result: Fit) -> Optima:
  """Approach 3: the closed form of a fitted law at the frontier's budgets."""
  C = np.geomspace(o.C.min(), o.C.max(), 9)
  N, _ = result.optimum(C)
  line = _line(f'3 {result.law.name}', C, N, o.convention.k)
  error = np.nan
  if result.law.name == 'additive' and np.isfinite(result.covariance).all():
    alpha, beta = result.theta[3:5]
    slope = np.array([-beta, alpha]) / (alpha + beta) ** 2
    error = float(np.sqrt(slope @ result.covariance[3:5, 3:5] @ slope))
  return dataclasses.replace(line, a_error=error)


def side_by_side(o: Observations, loss: Loss = Loss(), laws=('additive', 'coupled')) -> tuple[list[Optima], list[str]]:
  """Every approach that the table allows, and why the others are reasons out."""
  optima, reasons = [], []
  for approach in (envelope, isoflop, isoflop_exact):
    try:
      optima.append(approach(o))
    except ConfigError as error:
      reasons.append(str(error))
  for name in laws:
    try:
      optima.append(parametric(o, fit(o, law_of(name), loss)))
    except ConfigError as error:
      reasons.append(str(error))
  return optima, reasons


@np.errstate(all='ignore')
def positions(N, D, losses, exponents=None) -> dict[str, np.ndarray]:
  """L_t = E_t + A_t/N^alpha + B_t/D^beta of every context position t, with shared exponents.

  N, D: [runs]; losses: [runs, positions] in nats. Least squares in relative error; E_t, A_t, B_t solved linearly, the
  exponents searched. Returns alpha, beta (scalars), E, A, B [positions] and rms [positions], the relative error left.
  The idea of a law a position: Kaplan et al. 2020, arXiv:2001.08361, appendix D.5.
  """
  n, d, losses = np.log(np.asarray(N, float)), np.log(np.asarray(D, float)), np.asarray(losses, float)
  if losses.ndim != 2 or losses.shape[0] != len(n):
    raise ConfigError(f'losses of shape {losses.shape}; expected ({len(n)} runs, positions)')
  if len(n) < 6:
    raise ConfigError(f'{len(n)} runs; expected 6 or more for five parameters a position')
  if not (np.isfinite(losses).all() and (losses > 0).all()):
    raise ConfigError('losses by position: expected positive finite numbers of nats')
  n0, d0 = n.mean(), d.mean()

  def solve(alpha, beta):
    basis = np.stack([np.ones(len(n)), np.exp(-alpha * (n - n0)), np.exp(-beta * (d - d0))], 1)
    scaled = basis[None] / losses.T[..., None]
    gram = scaled.mT @ scaled + 1e-13 * np.eye(3)
    return np.linalg.solve(gram, scaled.sum(1)[..., None])[..., 0], scaled

  def misfit(p):
    coefficients, scaled = solve(*np.exp(p))
    return (((scaled @ coefficients[..., None])[..., 0] - 1.0) ** 2).sum()

  if exponents is None:
    from scipy import optimize
    grid = np.log(np.geomspace(0.05, 1.5, 13))
    start = min(((p, q) for p in grid for q in grid), key=misfit)
    exponents = np.exp(optimize.minimize(misfit, start, method='Nelder-Mead',
                                         options={'xatol': 1e-9, 'fatol': 1e-15, 'maxiter': 2000}).x)
  alpha, beta = exponents
  coefficients, scaled = solve(alpha, beta)
  off = (scaled @ coefficients[..., None])[..., 0] - 1.0
  e, a, b = coefficients.T
  return {'alpha': float(alpha), 'beta': float(beta), 'E': e, 'A': a * np.exp(alpha * n0), 'B': b * np.exp(beta * d0),
          'rms': np.sqrt((off ** 2).mean(-1))}
