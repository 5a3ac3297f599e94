"""Fits a law to runs: a screen over exponents with the rest solved linearly, refinement of spread starts, acceptance.

A fit is accepted only if at least two starts reach the same objective and the scaled gradient vanishes there; a
parameter on a bound, E above the smallest loss, and directions that the runs do not pin down are said in words.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import optimize

from foundation.errors import ConfigError
from scaling.laws import Law, additive, allocation
from scaling.objective import GRADIENT, Loss, Problem, finite, hessian, minimise
from scaling.observations import LARGE, Observations

LINE = 0.02  # of ln D about a line in ln N, below which the two are one column
TOGETHER = 3  # parameters that one column determines
RANKS = (0, 1, 3, 7, 15, 31, 63, 127)  # of the screened exponents, the starts that are refined


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law at the minimum of an objective.

  objective: the sum over rows. gradient: largest scaled component. agreeing: starts within 1e-5 of the objective.
  covariance: of theta, sandwich form with n/(n - p), NaN rows for fixed coordinates. notes: doubts in words.
  """
  law: Law
  theta: np.ndarray
  loss: Loss
  objective: float
  gradient: float
  starts: int
  agreeing: int
  covariance: np.ndarray
  residuals: np.ndarray  # predicted - measured ln loss, or loss: see Loss.raw
  observations: Observations
  fixed: Mapping[str, float]
  notes: tuple[str, ...] = ()

  @property
  def accepted(self) -> bool:
    return self.agreeing >= 2 and (self.gradient < GRADIENT or self.rms < 1e-9) and not self.astray

  @property
  def astray(self) -> list[str]:
    """Free exponents outside what the law takes for possible: the runs do not show them."""
    return [name for name, (least, greatest) in self.law.bounds.items() if name not in self.fixed and
            name not in self.law.logs and not least < self.values[name] < greatest]

  @property
  def values(self) -> dict[str, float]:
    return {name: float(value) for name, value in self.law.display(self.theta).items()}

  @property
  def errors(self) -> dict[str, float]:
    """Standard errors of the displayed values, by the covariance (a logged parameter: value times that of its log)."""
    sd = np.sqrt(np.diagonal(self.covariance))
    return {name: float(s * (value if name in self.law.logs else 1.0))
            for s, (name, value) in zip(sd, self.values.items())}

  @property
  def correlation(self) -> np.ndarray:
    sd = np.sqrt(np.diagonal(self.covariance))
    return self.covariance / np.outer(sd, sd)

  @property
  def free(self) -> int:
    return len(self.law.parameters) - len(self.fixed)

  @property
  def relative(self) -> np.ndarray:
    """Residuals of ln loss, whatever the objective is of."""
    return np.log1p(self.residuals / self.observations.loss) if self.loss.raw else self.residuals

  @property
  def rms(self) -> float:
    """Root mean square residual of ln loss, about the relative error of the loss."""
    return float(np.sqrt(np.mean(self.relative ** 2)))

  def predict(self, N=None, D=None, **columns) -> np.ndarray:
    """Loss in nats per token."""
    return self.law.loss(self.theta, N, D, **columns)

  def optimum(self, C, K=None, at=None) -> tuple[np.ndarray, np.ndarray]:
    """Compute-optimal N and D at C FLOPs, as the table counts them; K, at: see `Law.others`."""
    n, d = allocation(self.law, self.theta, C, self.observations.convention.k, K, at)
    return np.exp(n), np.exp(d)


@np.errstate(all='ignore')
def screen(x, y, loss: Loss, weights=None, size: int = 41) -> np.ndarray:
  """Additive coordinates [size^2, 5] by objective, best first: E, A, B solved linearly for each pair of exponents.

  The linear problem has weights 1/L^2, so that its residuals are about those of ln L; a negative E, A or B is replaced
  by a small positive one and the others are solved again.
  """
  grid = np.geomspace(0.03, 1.6, size)
  n, d = x['n'] - x['n'].mean(), x['d'] - x['d'].mean()
  target = np.exp(y)
  w = 1.0 / target ** 2 if weights is None else weights / target ** 2
  by_n, by_d = np.exp(-grid[:, None] * n), np.exp(-grid[:, None] * d)
  gram = np.empty((size, size, 3, 3))
  right = np.empty((size, size, 3))
  one_n, one_d = by_n @ w, by_d @ w
  gram[..., 0, 0] = w.sum()
  gram[..., 0, 1] = gram[..., 1, 0] = one_n[:, None]
  gram[..., 0, 2] = gram[..., 2, 0] = one_d[None]
  gram[..., 1, 1] = ((by_n ** 2) @ w)[:, None]
  gram[..., 2, 2] = ((by_d ** 2) @ w)[None]
  gram[..., 1, 2] = gram[..., 2, 1] = (by_n * w) @ by_d.T
  right[..., 0], right[..., 1], right[..., 2] = w @ target, ((by_n * w) @ target)[:, None], ((by_d * w) @ target)[None]
  ridge = 1e-12 * np.eye(3) * np.trace(gram, axis1=-2, axis2=-1)[..., None, None]
  solution = np.linalg.solve(gram + ridge, right[..., None])[..., 0]
  floor = 0.02 * target.min()
  for i in range(3):
    low = solution[..., i] < floor
    if low.any():
      rest = [j for j in range(3) if j != i]
      sub = gram[low][:, rest][:, :, rest] + ridge[low][:, :2, :2]
      part = np.linalg.solve(sub, (right[low][:, rest] - floor * gram[low][:, rest, i])[..., None])[..., 0]
      fixed = np.empty((low.sum(), 3))
      fixed[:, i], fixed[:, rest] = floor, np.maximum(part, floor)
      solution[low] = fixed
  alpha, beta = (g.ravel() for g in np.meshgrid(grid, grid, indexing='ij'))
  e, a, b = solution.reshape(-1, 3).T
  fitted = e[:, None] + a[:, None] * by_n.repeat(size, 0) + b[:, None] * np.tile(by_d, (size, 1))
  value = loss.total(np.log(fitted) - y, 1.0 if weights is None else weights)
  order = np.argsort(value)
  logs = np.stack([np.log(e), np.log(a) + alpha * x['n'].mean(), np.log(b) + beta * x['d'].mean(), alpha, beta], -1)
  return logs[order]


@np.errstate(all='ignore')
def screen_one(column, y, loss: Loss, size: int = 41) -> np.ndarray:
  """As `screen`, for a law of one column x: E + A/x^alpha, with B and beta as A and alpha."""
  grid, target, middle = np.geomspace(0.03, 1.6, size), np.exp(y), column.mean()
  rows, values = [], []
  for alpha in grid:
    basis = np.stack([np.ones(len(y)), np.exp(-alpha * (column - middle))], 1)
    e, a = np.maximum(np.linalg.lstsq(basis / target[:, None], np.ones(len(y)), rcond=None)[0], 0.02 * target.min())
    a_log = np.log(a) + alpha * middle
    rows.append([np.log(e), a_log, a_log, alpha, alpha])
    values.append(loss.total(np.log(basis @ [e, a]) - y))
  return np.array(rows)[np.argsort(values)]


def _screened(law: Law, x, y, loss: Loss) -> np.ndarray:
  """Additive coordinates, best first, of the columns that the law reads."""
  if {'n', 'd'} <= set(law.columns):
    return screen(x, y, loss)
  logs = [column.key for column in law.reads if column.log] or [column.key for column in law.reads]
  return screen_one(x[logs[0]], y, loss)


def _scale(residual, loss: Loss, parameters: int) -> Loss:
  """The loss with its own scale fitted to residuals [rows]: delta, or sigma and nu by maximum likelihood."""
  spread = 1.4826 * np.median(np.abs(residual)) * np.sqrt(len(residual) / max(len(residual) - parameters, 1))
  spread = max(spread, 1e-12)
  if loss.name == 'lad':
    return dataclasses.replace(loss, delta=max(1e-5 * spread, 1e-8))
  if loss.name != 'student_t':
    return dataclasses.replace(loss, delta=float(1.345 * spread))

  def likelihood(p):
    return dataclasses.replace(loss, sigma=float(np.exp(p[0])), nu=float(np.exp(p[1]))).total(residual)
  start = [np.log(loss.sigma or spread), np.log(loss.nu)]
  fitted = optimize.minimize(likelihood, start, method='L-BFGS-B', bounds=[(start[0] - 9, start[0] + 9), (-1.0, 4.6)],
                            options={'ftol': 1e-15, 'gtol': 1e-9}).x
  return dataclasses.replace(loss, sigma=float(np.exp(fitted[0])), nu=float(np.exp(fitted[1])))


def _refine(problem: Problem, starts, loss: Loss):
  """(phi, value, gradient, loss) of every start; a loss that fits its own scale is refined on a ladder of scales."""
  fitted_scale = loss.name in ('lad', 'student_t') or (loss.name != 'squares' and loss.delta == 0)
  if not fitted_scale:
    return *minimise(problem, starts, loss), loss
  rough = Loss('huber', 1e-2, weights=loss.weights)
  phi, value, _ = minimise(problem, starts, rough)
  if loss.name == 'lad':
    start = _scale(problem.residual(phi[np.argmin(value)][None])[0], loss, phi.shape[-1])
    for factor in np.geomspace(1e4, 1.0, 9):
      step = dataclasses.replace(start, delta=float(start.delta * factor))
      phi, value, gradient = minimise(problem, phi, step, gauss=4)
    return phi, value, gradient, step
  step = loss
  for turn in range(60):
    if turn == 3:  # the scale is near its own, and lanes far from the best stay there
      phi, value = (v[np.argsort(value)[:8]] for v in (phi, value))
    best = int(np.argmin(value))
    new = _scale(problem.residual(phi[best][None])[0], step, phi.shape[-1])
    change = max(abs(np.log(new.sigma / step.sigma)) if step.sigma else 1.0, abs(np.log(new.nu / step.nu))) \
        if loss.name == 'student_t' else abs(np.log(new.delta / step.delta)) if step.delta else 1.0
    step = new
    phi, value, gradient = minimise(problem, phi, step, gauss=2 if change < 0.1 else 8)
    if change < 1e-9:
      break
  return phi, step.total(problem.residual(phi)), gradient, step


def check_rows(o: Observations, law: Law, fixed: int = 0) -> None:
  """Raises ConfigError if these N and D do not suffice for a law with so many of its parameters fixed."""
  free = len(law.parameters) - fixed
  if len(o) <= free:
    raise ConfigError(f'{len(o)} rows cannot determine {free} parameters of the law {law.name}; expected at least '
                      f'{free + 1}')
  for column in law.reads:
    values = o.x.get(column.key)
    if values is not None and column.key != 'u' and np.ptp(values) == 0:
      raise ConfigError(f'all rows have the same {column.name}; a law needs several')
  if {'n', 'd'} <= set(law.columns) and free > TOGETHER:
    n, d = o.x['n'], o.x['d']
    slope, middle = np.polyfit(n, d, 1)
    if np.ptp(d - slope * n - middle) < LINE:
      form = f'D = {np.exp(np.median(d - n)):.3g} N' if abs(slope - 1.0) < 0.02 else f'D ~ N^{slope:.3g}'
      raise ConfigError(f'{form} in all rows: parameters and tokens cannot be told apart, and the {free} free parameters '
                        f'of the law {law.name} are not determined; nearest is a law of one column, size or compute')


@np.errstate(all='ignore')  # far starts overflow, and are refused by their value
def fit(observations: Observations, law: Law | None = None, loss: Loss = Loss(),
        fixed: Mapping[str, float] | None = None, starts=None) -> Fit:
  """The law (additive unless given) that minimises the loss on the observations.

  fixed: displayed values kept as they are. starts: theta[lanes, P] instead of the screen's. Raises ConfigError if there
  are not more rows than free parameters; an unsure minimum is returned with `accepted` False and says so in `notes`.
  """
  law, fixed = law or additive(), dict(fixed or {})
  x, y = observations.x, observations.y
  loss = dataclasses.replace(loss, weights=observations.weights)
  problem = Problem.of(law, x, y, fixed, loss.raw)
  if not len(problem.free):
    raise ConfigError(f'every parameter of the law {law.name} is kept as given ({", ".join(fixed)}); expected one or more '
                      f"to fit, nearest is all but '{law.parameters[-1]}'")
  check_rows(observations, law, len(fixed))
  given = starts is not None
  if not given and len(y) > LARGE:
    part = fit(observations.take(np.linspace(0, len(y) - 1, LARGE // 4).astype(int)), law, loss, fixed)
    given, starts = True, part.theta + np.array([0.0, 1e-2, -1e-2])[:, None] * (np.abs(part.theta) + 1e-2)
    kept = [law.parameters.index(name) for name in fixed]
    starts[:, kept] = part.theta[kept]
  if not given:
    rough = loss if loss.name in ('huber', 'asymmetric') and loss.delta else Loss('huber', 1e-2)
    ranked = _screened(law, x, y, dataclasses.replace(rough, weights=loss.weights))
    starts = _starts(law, problem, ranked[[rank for rank in RANKS if rank < len(ranked)]])
  lanes = problem.phi(np.atleast_2d(starts))
  phi, value, gradient, loss = _refine(problem, lanes, loss)
  agreeing, best = _agreeing(value, loss, len(y)), int(np.nanargmin(value))
  tried, rng = len(phi), np.random.default_rng(0)
  for spread in (0.3, 0.1, 0.03):  # where the landscape has several minima: wider attempts from around what was found
    if agreeing < 2 or gradient[best] > GRADIENT:
      wide = [phi[[best]], phi[best] + rng.normal(0, spread, (24, phi.shape[-1]))]
      wide += [] if given else [problem.phi(_starts(law, problem, ranked[::70]))]
      phi, value, gradient, loss = _refine(problem, np.concatenate(wide), loss)
      agreeing, best, tried = _agreeing(value, loss, len(y)), int(np.nanargmin(value)), tried + len(phi)
  return _finish(problem, phi[best], loss, value[best], gradient[best], tried, agreeing, observations, fixed)


def _agreeing(value, loss: Loss, rows: int) -> int:
  """Starts within 1e-5 of the least objective, or within the objective of residuals of 1e-9: an exact fit."""
  least = np.nanmin(value)
  exact = loss.total(np.full(rows, 1e-9)) - loss.total(np.zeros(rows))
  return int((value <= least + max(1e-5 * abs(least), exact)).sum())


def _starts(law: Law, problem: Problem, ranked):
  """Coordinates of the law from additive ones, the best of each law-specific variant first when there are many."""
  theta = np.array(law.start(ranked))
  fixed = np.setdiff1d(np.arange(theta.shape[-1]), problem.free)
  theta[..., fixed] = problem.base[fixed]
  if len(theta) <= 16:
    return theta
  value = Loss('huber', 1e-2).total(problem.residual(problem.phi(theta)))
  return theta[np.argsort(np.where(np.isfinite(value), value, np.inf), kind='stable')[:16]]


def _finish(problem, phi, loss, value, gradient, starts, agreeing, observations, fixed) -> Fit:
  law, theta = problem.law, problem.theta(phi)
  free = len(phi)
  second, terms = hessian(problem, phi, loss)
  unit = 1.0 / np.sqrt(np.maximum(np.abs(np.diagonal(second)), 1e-300))
  eigen, vectors = np.linalg.eigh(finite(second * np.outer(unit, unit)))
  covariance = np.full((len(theta), len(theta)), np.nan)
  notes = []
  correlation = np.eye(free)
  if eigen[0] > 1e-9:
    inner = _sandwich(problem, phi, loss, second, terms)
    covariance[np.ix_(problem.free, problem.free)] = (problem.move @ inner @ problem.move.T)[
        np.ix_(problem.free, problem.free)]
    correlation = inner / np.sqrt(np.outer(np.diagonal(inner), np.diagonal(inner)))
  residual = problem.residual(phi[None])[0]
  out = Fit(law, theta, loss, float(value), float(gradient), starts, agreeing, covariance, residual, observations,
            fixed)
  if not out.accepted:
    astray = f', {", ".join(out.astray)} out of bounds' if out.astray else ''
    notes.append(f'not accepted: {agreeing} of {starts} starts reach the objective (2 expected), scaled gradient '
                 f'{gradient:.1e} (below {GRADIENT:.0e} expected){astray}')
  for name, (least, greatest) in law.bounds.items():
    if name not in fixed and not least < out.values[name] < greatest:
      notes.append(f'{name} = {out.values[name]:.4g} is outside ({least:g}, {greatest:g}): the runs do not show it')
  smallest = float(observations.loss.min())
  if 'E' in out.values and out.values['E'] > smallest:
    notes.append(f'E = {out.values["E"]:.4f} is above the smallest loss {smallest:.4f}')
  if 'E' in out.values and out.values['E'] < 0.05 * smallest:
    notes.append(f'E = {out.values["E"]:.3g} is next to zero: the runs show no irreducible loss')
  names = [law.parameters[i] for i in problem.free]
  if eigen[0] <= 1e-9:
    heavy = [names[i] for i in np.argsort(-np.abs(vectors[:, 0])) if abs(vectors[i, 0]) > 0.2]
    notes.append(f'unidentified: {", ".join(heavy)} can move together without changing the fit')
  for i, j in zip(*np.triu_indices(free, 1)):  # at the centre of the runs, where A and alpha have no forced tie
    if abs(correlation[i, j]) > 0.99:
      notes.append(f'{names[i]} and {names[j]} are determined only together, also at the centre of the runs '
                   f'(correlation {correlation[i, j]:+.4f})')
  return dataclasses.replace(out, notes=tuple(notes))


def _sandwich(problem, phi, loss, second, terms):
  """Covariance of phi: H^-1 (sum of g g^T) H^-1 n/(n - p); H smooths a kinked objective over a robust bandwidth."""
  residual = problem.residual(phi[None])[0]
  rows, free = len(residual), len(phi)
  if loss.name in ('huber', 'lad', 'asymmetric'):
    jac = problem.jacobian(phi[None])[0]
    second = (jac.T * loss.smoothed(residual, free)) @ jac
  inverse = np.linalg.pinv(finite(second), hermitian=True)
  return inverse @ (terms.T @ terms) @ inverse * rows / (rows - free)
