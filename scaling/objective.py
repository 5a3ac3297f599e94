"""Robust objectives of residuals in ln loss, and their minimisation from many starts at once, in float64 numpy.

Objectives are sums over rows, never means: a stopping rule that is absolute below one ends a mean far from its
minimum. Every test here is relative, so the scale of the objective does not matter.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import special

from foundation.errors import ConfigError, nearest
from scaling.laws import Law

LOSSES = ('huber', 'lad', 'student_t', 'asymmetric', 'squares')
GRADIENT = 1e-6  # scaled gradient below which a minimum is accepted


@dataclasses.dataclass(frozen=True)
class Loss:
  """Objective sum(w rho(r)) of residuals r = predicted - measured ln loss; `raw`: of the loss itself, in nats.

  huber: quadratic within delta. lad: |r|, as Huber's at a delta 1e-5 of the spread. student_t: negative log
  likelihood (nats) with scale sigma and nu degrees of freedom, both fitted. asymmetric: Huber, multiplied by `penalty`
  where the law is above the run, so that the fit follows the lower envelope. squares: r^2 / 2. delta 0: 1.345 robust
  standard deviations of the residuals (95 % efficient for normal noise), fitted. weights: w of each row; None: 1.
  """
  name: str = 'huber'
  delta: float = 1e-3
  penalty: float = 10.0
  nu: float = 4.0
  sigma: float = 0.0
  raw: bool = False
  weights: np.ndarray | None = None

  def __post_init__(self):
    if self.name not in LOSSES:
      raise ConfigError(f'loss {self.name!r} is not one of {", ".join(LOSSES)}{nearest(self.name, LOSSES)}')
    if not np.all(np.asarray(self.delta) >= 0) or not np.all(np.isfinite(self.delta)):
      raise ConfigError(f'delta={self.delta}: expected a positive number such as 1e-3, or 0 to fit it')
    if not self.penalty > 0:
      raise ConfigError(f'penalty={self.penalty}: expected a positive number such as 10')

  def take(self, index) -> 'Loss':
    """The loss of some lanes, where delta differs by lane ([lanes, 1])."""
    delta: Any = self.delta
    return dataclasses.replace(self, delta=delta[index]) if np.ndim(delta) else self

  def _weighed(self, r, out):
    """A term of the objective, or of a derivative, with what multiplies it at residuals r."""
    if self.name == 'asymmetric':
      out = np.where(r > 0, self.penalty, 1.0) * out
    elif self.name == 'lad':
      out = out / self.delta
    return out if self.weights is None else out * self.weights

  def rho(self, r):
    """The objective's terms."""
    if self.name == 'squares':
      return self._weighed(r, 0.5 * r * r)
    if self.name == 'student_t':
      nu, s = self.nu, self.sigma
      return self._weighed(r, 0.5 * (nu + 1.0) * np.log1p(r * r / (nu * s * s)))
    size = np.abs(r)
    capped = np.minimum(size, self.delta)
    return self._weighed(r, capped * (size - 0.5 * capped))

  def psi(self, r):
    """d rho / d r."""
    if self.name == 'squares':
      return self._weighed(r, r)
    if self.name == 'student_t':
      return self._weighed(r, (self.nu + 1.0) * r / (self.nu * self.sigma ** 2 + r * r))
    return self._weighed(r, np.clip(r, -self.delta, self.delta))

  def curvature(self, r):
    """d psi / d r, almost everywhere."""
    if self.name == 'squares':
      return self._weighed(r, np.ones_like(r))
    if self.name == 'student_t':
      v = self.nu * self.sigma ** 2
      return self._weighed(r, (self.nu + 1.0) * (v - r * r) / (v + r * r) ** 2)
    return self._weighed(r, (np.abs(r) <= self.delta).astype(float))

  def smoothed(self, r, free: int):
    """What the curvature of a fitted objective is expected to be at residuals r [..., rows] after `free` parameters.

    A kink is smoothed over a bandwidth. Fitted residuals are narrower than the noise, by sqrt(1 - free/rows), and a
    kink interpolates `free` of them: without the factor the noise would look denser at the kink than it is.
    """
    if self.name not in ('huber', 'asymmetric', 'lad'):
      return self.curvature(r)
    rows = r.shape[-1]
    noise = r * np.sqrt(rows / (rows - free))
    width = np.maximum(1.4826 * np.median(np.abs(noise), -1, keepdims=True) * rows ** -0.2, 1e-12)
    inside = special.ndtr((self.delta - noise) / width) - special.ndtr((-self.delta - noise) / width)
    return self._weighed(r, inside)

  def weight(self, r):
    """psi / r: the weights of iteratively reweighted least squares, which bound the objective from above."""
    if self.name == 'squares':
      return self._weighed(r, np.ones_like(r))
    if self.name == 'student_t':
      return self._weighed(r, (self.nu + 1.0) / (self.nu * self.sigma ** 2 + r * r))
    return self._weighed(r, np.minimum(1.0, self.delta / np.maximum(np.abs(r), 1e-300)))

  def total(self, r, weights=1.0):
    """What is minimised over the law's coordinates, and reported; [..., rows] -> [...]."""
    value = (weights * self.rho(r)).sum(-1)
    if self.name == 'student_t':  # the normalisation, so that sigma and nu can be compared
      nu = self.nu
      constant = special.gammaln(nu / 2) - special.gammaln((nu + 1) / 2) + 0.5 * np.log(nu * np.pi) + np.log(self.sigma)
      value = value + constant * np.sum(np.broadcast_to(self._weighed(r, weights), np.shape(r)), -1)
    return value


@dataclasses.dataclass(frozen=True)
class Problem:
  """A law on rows, in coordinates phi of the free parameters that are centred: theta = base + move @ phi."""
  law: Law
  x: dict[str, np.ndarray]
  y: np.ndarray
  base: np.ndarray
  move: np.ndarray  # [P, F]
  free: np.ndarray  # indices of the free coordinates
  raw: bool = False  # y is the loss in nats, else its logarithm

  @classmethod
  def of(cls, law: Law, x, y, fixed=None, raw: bool = False) -> 'Problem':
    """fixed: {displayed name: value} kept as given. raw: see Loss; y is ln loss all the same."""
    for key in law.columns:
      if key not in x:
        name = next(column.name for column in law.reads if column.key == key)
        raise ConfigError(f'law {law.name} needs the column {name} besides N and D')
    fixed = fixed or {}
    for name in fixed:
      if name not in law.parameters:
        raise ConfigError(f'fixed {name!r}: law {law.name} has {", ".join(law.parameters)}'
                         f'{nearest(name, law.parameters)}')
      if not np.isfinite(fixed[name]) or name in law.logs and not fixed[name] > 0:
        raise ConfigError(f'fixed {name}={fixed[name]:g}: expected a {"positive" if name in law.logs else "finite"} number')
    base, full = np.zeros(len(law.parameters)), np.eye(len(law.parameters))
    place = {name: i for i, name in enumerate(law.parameters)}
    for name, value in fixed.items():
      base[place[name]] = np.log(value) if name in law.logs else value
    for scale, exponent, column, factor in law.pairs:
      if scale not in fixed and exponent not in fixed:
        full[place[scale], place[exponent]] = factor * np.mean(x[column])
    free = np.array([i for name, i in place.items() if name not in fixed], int)
    return cls(law, {key: x[key] for key in law.columns}, np.exp(y) if raw else y, base, full[:, free], free, raw)

  def take(self, index) -> 'Problem':
    """The problem of some lanes, where y differs by lane ([lanes, rows])."""
    return dataclasses.replace(self, y=self.y[index]) if self.y.ndim == 2 else self

  def theta(self, phi):
    return self.base + phi @ self.move.T

  def phi(self, theta):
    return np.linalg.solve(self.move[self.free], (theta - self.base)[..., self.free, None])[..., 0]

  def residual(self, phi):
    value = self.law.log_loss(self.theta(phi), self.x, np)
    return (np.exp(value) if self.raw else value) - self.y

  def jacobian(self, phi):
    theta = self.theta(phi)
    out = self.law.jacobian(theta, self.x) @ self.move
    return np.exp(self.law.log_loss(theta, self.x, np))[..., None] * out if self.raw else out


@dataclasses.dataclass(frozen=True)
class Pull:
  """An extra term strength/2 (g(theta) - target)^2 a lane, which holds a quantity near a value while the rest moves.

  value(theta) -> [lanes], gradient(theta) -> [lanes, P]; target and strength: [lanes].
  """
  value: object
  gradient: object
  target: np.ndarray
  strength: np.ndarray

  def take(self, index):
    return dataclasses.replace(self, target=self.target[index], strength=self.strength[index])


def minimise(problem: Problem, phi, loss: Loss, weights=None, pull: Pull | None = None, gauss: int = 12,
             newton: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(phi, objective, scaled gradient), one a lane, from starts phi[lanes, F].

  `gauss` damped steps on reweighted squares, then `newton` damped steps with the exact second derivative. weights:
  [lanes, rows] or None. The scaled gradient is the largest |g_j| over the root of the sum of squares of its terms.
  """
  phi = np.array(phi, float)
  lanes, rows = phi.shape[0], problem.y.shape[-1]
  weights = np.ones((1, rows)) if weights is None else np.asarray(weights, float)
  weights = np.broadcast_to(weights, (lanes, rows))
  value, gradient = np.full(lanes, np.inf), np.full(lanes, np.inf)
  block = max(1, min(64, 1_000_000 // rows))  # that stays in cache, and of many rows in memory
  for start in range(0, lanes, block):
    part = slice(start, start + block)
    index = np.arange(lanes)[part]
    phi[part], value[part], gradient[part] = _minimise_block(
        problem.take(index), phi[part], loss.take(index), weights[part],
        None if pull is None else pull.take(index), gauss, newton)
  return phi, value, gradient


def finite(matrix):
  """The matrix with what overflowed set to zero or bounded, so that a decomposition of it ends."""
  return np.clip(np.nan_to_num(matrix, posinf=0.0, neginf=0.0), -1e100, 1e100)


def _objective(problem, phi, loss, weights, pull):
  with np.errstate(all='ignore'):
    r = problem.residual(phi)
    value = (weights * loss.rho(r)).sum(-1)
    if pull is not None:
      value = value + 0.5 * pull.strength * (pull.value(problem.theta(phi)) - pull.target) ** 2
  return r, np.where(np.isfinite(value), value, np.inf)


def _minimise_block(problem, phi, loss, weights, pull, gauss, newton):
  whole = loss
  r, value = _objective(problem, phi, whole, weights, pull)
  damping, scaled = np.full(len(phi), 1e-3), np.full(len(phi), np.inf)
  live = np.flatnonzero(np.isfinite(value))
  quiet = np.zeros(len(phi), int)
  for step in range(gauss + newton):
    if not live.size:
      break
    p, w, res, loss = phi[live], weights[live], r[live], whole.take(live)
    part = None if pull is None else pull.take(live)
    with np.errstate(all='ignore'):
      jac = problem.jacobian(p)
      slope = w * loss.psi(res)
      grad = (slope[:, None, :] @ jac)[:, 0]
      spread = np.sqrt(((slope[..., None] * jac) ** 2).sum(1))
      gram = jac.mT @ (jac * (w * loss.weight(res))[..., None])
      exact = gram if step < gauss else _hessian(problem, p, jac, loss, w, res, slope)
      if part is not None:
        theta = problem.theta(p)
        by = part.gradient(theta) @ problem.move
        off = part.strength * (part.value(theta) - part.target)
        grad, spread = grad + off[:, None] * by, np.hypot(spread, np.abs(off[:, None] * by))
        stiff = part.strength[:, None, None] * by[:, :, None] * by[:, None, :]
        gram, exact = gram + stiff, exact + stiff
      # a coordinate that moves no prediction any more (ln E of an E that went to zero) is not judged
      least = 1e-3 * np.sqrt((slope ** 2).sum(-1, keepdims=True)) + 1e-300
      scaled[live] = (np.abs(grad) / np.maximum(spread, least)).max(-1)
      unit = 1.0 / np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 1e-300))
      matrix = finite(exact * unit[:, :, None] * unit[:, None, :])
      eigen, vectors = np.linalg.eigh(matrix)
      along = (vectors.mT @ (grad * unit)[..., None])[..., 0] / (np.maximum(np.abs(eigen), 1e-13) + damping[live, None])
      moved = p - (vectors @ along[..., None])[..., 0] * unit
    new_r, new_value = _objective(problem.take(live), moved, loss, w, part)
    # near the minimum rounding of the residuals hides the gain of a step, which is then taken for its gradient's sake
    rounding = 4e-16 * np.abs(slope).sum(-1) if step >= gauss else 0.0
    better = new_value <= value[live] + rounding
    gain = np.where(new_value < value[live], (value[live] - new_value) / np.maximum(np.abs(value[live]), 1e-300), 0.0)
    phi[live[better]], value[live[better]], r[live[better]] = moved[better], new_value[better], new_r[better]
    damping[live] = np.where(better, np.maximum(damping[live] / 5.0, 1e-15), np.minimum(damping[live] * 6.0, 1e6))
    quiet[live] = np.where(gain < 1e-13, quiet[live] + 1, 0)
    if step >= gauss or loss.name == 'squares':
      live = live[(scaled[live] > 1e-10) & (quiet[live] < 8)]
  return phi, value, scaled


def _hessian(problem, phi, jac, loss, weights, residual, slope, h=1e-4):
  """Second derivative of the objective: the curvature's part, and central differences of the Jacobian for the rest."""
  out = jac.mT @ (jac * (weights * loss.curvature(residual))[..., None])
  for i in range(phi.shape[-1]):
    shift = np.zeros(phi.shape[-1])
    shift[i] = h
    out[:, i] += (slope[:, None, :] @ (problem.jacobian(phi + shift) - problem.jacobian(phi - shift)))[:, 0] / (2 * h)
  return 0.5 * (out + out.mT)


def hessian(problem: Problem, phi, loss: Loss, weights=1.0):
  """(second derivative [F, F], gradients of the rows [rows, F]) of the objective at phi[F]."""
  p = np.asarray(phi, float)[None]
  r, jac = problem.residual(p), problem.jacobian(p)
  w = np.broadcast_to(np.asarray(weights, float), r.shape)
  slope = w * loss.psi(r)
  return _hessian(problem, p, jac, loss, w, r, slope)[0], (slope[..., None] * jac)[0]


def refine_optimistix(problem: Problem, phi, loss: Loss, steps: int = 300) -> tuple[np.ndarray, np.ndarray]:
  """(phi, objective) by Levenberg and Marquardt's method on sqrt(2 rho), compiled by JAX in float64.

  The independent road to the same minimum; it pays where thousands of starts share one compilation. huber and squares.
  """
  if loss.name not in ('huber', 'squares') or loss.raw or loss.weights is not None:
    raise ConfigError(f'loss {loss.name!r}: the optimistix refinement knows huber and squares')
  import jax
  import jax.numpy as jnp
  import optimistix
  with jax.enable_x64(True):
    x = {key: jnp.asarray(value) for key, value in problem.x.items()}
    base, move, y = jnp.asarray(problem.base), jnp.asarray(problem.move), jnp.asarray(problem.y)

    def residual(p, _):
      r = problem.law.log_loss(base + move @ p, x, jnp) - y
      if loss.name == 'squares':
        return r
      size, delta = jnp.abs(r), loss.delta
      outside = size > delta
      root = jnp.sqrt(2.0 * delta * jnp.where(outside, size, delta) - delta ** 2)
      return jnp.where(outside, root, size) * jnp.sign(r)

    def solve(p):
      solver: Any = optimistix.LevenbergMarquardt(rtol=1e-10, atol=1e-12)
      return optimistix.least_squares(residual, solver, p, max_steps=steps, throw=False).value

    refined = np.asarray(jax.jit(jax.vmap(solve))(jnp.asarray(phi)))
  return refined, loss.total(problem.residual(refined))
