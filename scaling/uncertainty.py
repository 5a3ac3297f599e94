"""How sure a fit is: of its parameters and of what is decided with it, with the coverage that simulation shows.

Intervals come from the profile of the objective: those values of a quantity at which the best fit that has that value
is not significantly worse. They are as wide as the runs demand, also to infinity, and do not depend on how the law is
written. What is significant does not take the noise for equal and independent: see `sandwich`. Bootstraps give standard
errors and joint draws; a posterior needs the extra `bayes`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from foundation.errors import ConfigError, nearest
from scaling import sandwich
from scaling.fit import Fit, fit
from scaling.laws import Law, additive
from scaling.objective import Loss, Problem, Pull, finite, hessian, minimise
from scaling.observations import LARGE, Observations, levels
from scaling.quantities import Quantity, best_loss, d_opt, loss_at, n_opt, parameter, regret, share

__all__ = ['BOOTSTRAPS', 'NOISES', 'Interval', 'Quantity', 'best_loss', 'bootstrap', 'coverage', 'covered', 'd_opt',
           'loss_at', 'n_opt', 'parameter', 'percentile', 'posterior', 'profile', 'regret', 'share', 'simulate',
           'worst_coverage']

BOOTSTRAPS = ('pairs', 'cluster', 'residual')
NOISES = ('residual', 'wild', 'size')  # of simulated tables, see `simulate`
REACH = (0.5, 1.0, 1.4, 1.7, 2.0, 2.5, 3.2, 4.5, 7.0, 12.0, 25.0, 60.0)  # standard errors at which a profile is taken


def _state(result: Fit):
  problem = Problem.of(result.law, result.observations.x, result.observations.y, result.fixed, result.loss.raw)
  return problem, problem.phi(result.theta)


def _labels(problem: Problem) -> np.ndarray:
  """Which rows may err together: those of one size; of a law that does not read N, each by itself."""
  return levels(np.exp(problem.x['n']), 0.01)[1] if 'n' in problem.x else np.arange(problem.y.shape[-1])


def _significance(loss: Loss, residual, free: int):
  """Factor that makes 2 (rho_constrained - rho) of residuals [..., rows] follow F(1, n - p).

  Mean curvature over mean psi^2: the likelihood-ratio-type test for M-estimates (Ronchetti 1982). For squares the
  factor is one over the variance, and the test is exact for a linear law.
  """
  rows = residual.shape[-1]
  variance = (loss.psi(residual) ** 2).sum(-1) / (rows - free)
  curvature = loss.smoothed(residual, free).mean(-1)
  return np.maximum(curvature, 1e-300) / np.maximum(variance, 1e-300)


@dataclasses.dataclass(frozen=True)
class Interval:
  """Shown values; an end at infinity (or zero) means that the runs do not bound the quantity on that side."""
  name: str
  estimate: float
  low: float
  high: float
  level: float
  method: str
  coverage: float | None = None  # of the nominal level, by simulation
  noise: str = ''  # under which it was simulated, see `simulate`

  def __str__(self) -> str:
    text = f'{self.name} {self.estimate:.5g}, {100 * self.level:g} % {self.method} [{self.low:.5g}, {self.high:.5g}]'
    return f'{text}, {self.covers}' if self.covers else text

  @property
  def covers(self) -> str:
    """Its simulated coverage in words, '' if there is none."""
    kind = f' ({self.noise} noise)' if self.noise else ''
    return '' if self.coverage is None else f'simulated coverage {100 * self.coverage:.0f} %{kind}'


@np.errstate(all='ignore')
def profile(result: Fit, quantity: Quantity, level: float = 0.9, new_run: bool = False, robust: bool = True) -> Interval:
  """The profile interval of a quantity; an end that the runs do not bound is infinite (0 for a logged quantity).

  new_run: the quantity is a loss that one new run will measure, so its own noise, the rms residual with n - p degrees
  of freedom, is added in quadrature to each side. robust False: as if the noise were equal and independent.
  """
  _check_level(level)
  problem, phi = _state(result)
  free = len(phi)
  estimate = float(quantity.value(result.theta[None])[0])
  if len(problem.y) > LARGE:
    return _normal(result, quantity, estimate, level, new_run)
  factor = float(_significance(result.loss, result.residuals, free))
  second, _ = hessian(problem, phi, result.loss)
  if np.isfinite(result.covariance).any():
    covariance = np.nan_to_num(result.covariance)
  else:
    covariance = problem.move @ np.linalg.pinv(finite(second * factor), hermitian=True) @ problem.move.T
  slope = quantity.gradient(result.theta[None])[0]
  error = float(np.sqrt(max(slope @ covariance @ slope, 1e-24)))
  reach = np.concatenate([-np.array(REACH)[::-1], REACH]) * error
  direction = covariance @ slope / error ** 2
  starts = problem.phi(result.theta + reach[:, None] * direction)
  near = problem.phi(result.theta + 0.2 * np.clip(reach, -error, error)[:, None] * direction)
  pull = Pull(quantity.value, quantity.gradient, estimate + reach, np.full(len(reach), 100.0 / (factor * error ** 2)))
  best = np.full(len(reach), np.inf)
  values, achieved = best.copy(), np.full(len(reach), np.nan)
  for start in (starts, near):
    usable = np.isfinite(result.loss.total(problem.residual(start)))
    start = np.where(usable[:, None], start, phi)
    refined, value, _ = minimise(problem, start, result.loss, pull=pull)
    improve = value < best
    best[improve], values[improve] = value[improve], result.loss.total(problem.residual(refined))[improve]
    achieved[improve] = quantity.value(problem.theta(refined))[improve]
  ratio, degrees = 1.0, float(len(problem.y) - free)
  if robust:
    ratio, degrees = (float(v[0]) for v in sandwich.spread(
        result.loss, result.residuals[None], problem.jacobian(phi[None]), (slope @ problem.move)[None],
        _labels(problem)))
  statistic = 2.0 * factor * ratio * np.maximum(values - result.objective, 0.0)
  limit = sandwich.limit(level, degrees)
  ends = []
  for side in (-1.0, 1.0):
    here = side * (achieved - estimate) > 0
    distance, height = np.abs(achieved[here] - estimate), np.sqrt(statistic[here])
    order = np.argsort(distance)
    distance, height = np.append(0.0, distance[order]), np.append(0.0, height[order])
    above = np.flatnonzero(height > np.sqrt(limit))
    if not above.size:
      ends.append(side * np.inf)
      continue
    k = above[0]
    part = (np.sqrt(limit) - height[k - 1]) / (height[k] - height[k - 1])
    ends.append(estimate + side * (distance[k - 1] + part * (distance[k] - distance[k - 1])))
  if new_run:
    rows = len(problem.y)
    noise = np.sqrt(sandwich.limit(level, rows - free)) * result.rms * np.sqrt(rows / (rows - free))  # of ln loss
    ends = [estimate + np.sign(end - estimate) * np.hypot(end - estimate, noise) for end in ends]
  return Interval(quantity.name, float(quantity.show(estimate)), float(quantity.show(ends[0])),
                  float(quantity.show(ends[1])), level, 'prediction' if new_run else 'profile')


def _normal(result: Fit, quantity: Quantity, estimate: float, level: float, new_run: bool) -> Interval:
  """The interval of a large table, on which a profile is a parabola: plus and minus the robust standard error."""
  problem, phi = _state(result)
  residual, jac = result.residuals[None], problem.jacobian(phi[None])
  slope = (quantity.gradient(result.theta[None])[0] @ problem.move)[None]
  ratio, degrees = sandwich.spread(result.loss, residual, jac, slope, _labels(problem))
  variance = float(sandwich.influence(result.loss, residual, jac, slope)[1][0] / ratio[0])
  half = np.sqrt(sandwich.limit(level, float(degrees[0])) * (variance + (result.rms ** 2 if new_run else 0.0)))
  return Interval(quantity.name, float(quantity.show(estimate)), float(quantity.show(estimate - half)),
                  float(quantity.show(estimate + half)), level, 'prediction' if new_run else 'normal')


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ConfigError(f'level={level}: expected a probability between 0 and 1, such as 0.9')


@np.errstate(all='ignore')
def bootstrap(result: Fit, count: int = 1000, kind: str = 'pairs', seed: int = 0) -> np.ndarray:
  """theta[count, P] of refits. kind: pairs (rows drawn with replacement) | cluster (sizes drawn, all their rows, for
  ladders that share a trunk) | residual (the law's losses plus drawn residuals). Fitted scales are kept. Of a large
  table (LARGE rows) the draws are from the normal limit of pairs."""
  if count < 2:
    raise ConfigError(f'{count} bootstrap draws; expected 2 or more')
  problem, phi = _state(result)
  rng, rows = np.random.default_rng(seed), len(problem.y)
  if rows > LARGE and np.isfinite(result.covariance[problem.free][:, problem.free]).all():
    inner = result.covariance[np.ix_(problem.free, problem.free)]
    draws = np.repeat(result.theta[None], count, 0)
    draws[:, problem.free] += rng.multivariate_normal(np.zeros(len(inner)), inner, count)
    return draws
  starts = np.repeat(phi[None], count, 0)
  if kind == 'residual':
    simulated = simulate(result, rng, count)
    return problem.theta(minimise(simulated, starts, result.loss)[0])
  if kind == 'pairs':
    weights = rng.multinomial(rows, np.full(rows, 1.0 / rows), count).astype(float)
  elif kind == 'cluster':
    group = levels(result.observations.N, 0.01)[1]
    groups = int(group.max()) + 1
    weights = rng.multinomial(groups, np.full(groups, 1.0 / groups), count).astype(float)[:, group]
  else:
    raise ConfigError(f'bootstrap kind {kind!r} is not one of {", ".join(BOOTSTRAPS)}{nearest(kind, BOOTSTRAPS)}')
  return problem.theta(minimise(problem, starts, result.loss, weights)[0])


def simulate(result: Fit, rng, count: int, noise: str = 'residual') -> Problem:
  """The same runs with losses [count, rows] of the law plus noise, in one batch.

  noise: residual (drawn from all residuals) | wild (each row keeps its own residual, of random sign) | size (the
  residuals of a size keep together, times one of Webb's six values: 2014, Queen's working paper 1315). Drawn residuals
  are centred where the objective says that their middle is: about their mean a robust fit of skewed residuals would be
  simulated off its own truth.
  """
  if noise not in NOISES:
    raise ConfigError(f'noise {noise!r} is not one of {", ".join(NOISES)}{nearest(noise, NOISES)}')
  problem, phi = _state(result)
  rows, free = len(problem.y), result.free
  truth = problem.y + result.residuals
  if noise == 'residual':
    drawn = _centred(result.residuals * np.sqrt(rows / (rows - free)), result.loss)
    return dataclasses.replace(problem, y=truth - rng.choice(drawn, (count, rows)))
  labels = np.arange(rows) if noise == 'wild' else _labels(problem)
  wide = sandwich.adjusted(result.residuals[None], problem.jacobian(phi[None]), sandwich.by_group(labels))[0]
  signs = [-1.0, 1.0] if noise == 'wild' else [s * np.sqrt(v) for s in (-1.0, 1.0) for v in (0.5, 1.0, 1.5)]
  return dataclasses.replace(problem, y=truth - wide * rng.choice(signs, (count, labels.max() + 1))[:, labels])


def _centred(noise, loss: Loss):
  reach = np.quantile(np.abs(noise), 0.8) + 1e-15
  pull = lambda centre: float(loss.psi(noise - centre).sum())
  return noise - optimize.brentq(pull, -reach, reach) if pull(-reach) * pull(reach) < 0 else noise


@np.errstate(all='ignore')
def percentile(quantity: Quantity, estimate, thetas, level: float = 0.9) -> Interval:
  """The interval between quantiles of bootstrap or posterior draws theta[draws, P]."""
  _check_level(level)
  values = quantity.value(np.asarray(thetas))
  low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
  return Interval(quantity.name, float(quantity.show(quantity.value(np.asarray(estimate)[None])[0])),
                  float(quantity.show(low)), float(quantity.show(high)), level, 'percentile')


@np.errstate(all='ignore')
def coverage(result: Fit, quantities: Sequence[Quantity], level: float = 0.9, count: int = 200, seed: int = 0,
             fit_scale: bool | None = None, noise: str = 'residual') -> np.ndarray:
  """Share of simulated tables (same columns, the fitted law, noise: see `simulate`) whose profile holds the truth.

  One value a quantity; its own standard error is about sqrt(.09/count) at a level of 0.9. The truth is inside where
  the fit held at it passes the profile's test, so that no interval needs to be computed. fit_scale: also refit a Huber
  delta to each table (default: if it was fitted here).
  """
  problem, phi = _state(result)
  simulated = simulate(result, np.random.default_rng(seed), count, noise)
  inside, _ = covered(simulated, np.repeat(phi[None], count, 0), result.theta, result.loss, quantities, level,
                       bool(fit_scale))
  return inside.mean(1)


def worst_coverage(result: Fit, quantities: Sequence[Quantity], level: float = 0.9, count: int = 200,
                   fit_scale: bool | None = None) -> list[tuple[float, str]]:
  """(coverage, the noise under which it is that low) of each quantity: the worst of NOISES, `count` tables each."""
  shares = np.array([coverage(result, quantities, level, count, fit_scale=fit_scale, noise=noise) for noise in NOISES])
  return [(float(column.min()), NOISES[int(column.argmin())]) for column in shares.T]


@np.errstate(all='ignore')
def covered(simulated: Problem, starts, truth, loss: Loss, quantities, level: float, fit_scale: bool,
            robust: bool = True):
  """(inside[quantities, tables], theta[tables, P]) of a batch of tables whose y is [tables, rows]; see `profile`."""
  count, rows = simulated.y.shape
  free = starts.shape[-1]
  refitted, value, _ = minimise(simulated, starts, loss)
  if fit_scale and loss.name == 'huber':
    for _ in range(6):
      spread = 1.4826 * np.median(np.abs(simulated.residual(refitted)), -1, keepdims=True)
      loss = dataclasses.replace(loss, delta=1.345 * np.maximum(spread, 1e-12) * np.sqrt(rows / (rows - free)))
      refitted, value, _ = minimise(simulated, refitted, loss, gauss=3)
  residual = simulated.residual(refitted)
  factor = _significance(loss, residual, free)
  jac, labels, inside = simulated.jacobian(refitted), _labels(simulated), []
  for quantity in quantities:
    target = float(quantity.value(truth[None])[0])
    slope = quantity.gradient(simulated.theta(refitted)) @ simulated.move
    ratio, degrees = sandwich.spread(loss, residual, jac, slope, labels) if robust else (1.0, rows - free)
    gram = np.linalg.pinv(finite(jac.mT @ jac), hermitian=True)
    variance = np.einsum('si,sij,sj->s', slope, gram, slope) * np.mean(residual ** 2, -1)
    pull = Pull(quantity.value, quantity.gradient, np.full(count, target), 1e4 / (factor * np.maximum(variance, 1e-24)))
    held = np.full(count, np.inf)
    for start in (starts, refitted):
      at, _, _ = minimise(simulated, start, loss, pull=pull)
      held = np.minimum(held, (loss.rho(simulated.residual(at))).sum(-1))
    statistic = 2.0 * factor * ratio * np.maximum(held - (loss.rho(residual)).sum(-1), 0.0)
    inside.append(statistic <= sandwich.limit(level, degrees))
  return np.array(inside), simulated.theta(refitted)


def posterior(observations: Observations, law: Law | None = None, draws: int = 1000, warmup: int = 500, chains: int = 2,
              seed: int = 0) -> tuple[np.ndarray, dict[str, float]]:
  """(theta[draws, P], diagnostics) of a Student-t likelihood by NUTS, float64; needs the extra `bayes` (numpyro).

  Flat-ish priors around the least-absolute fit: normal of sd 3 on the coordinates at the centre of the runs (sd 1 on
  exponents), half-Cauchy scale of the fit's spread on sigma, Gamma(2, 0.5) on nu. Diagnostics: r_hat (largest),
  divergences, nu, sigma (means).
  """
  try:
    import numpyro
  except ImportError:
    raise ConfigError('a posterior needs numpyro; install the extra: pip install -e ".[bayes]"') from None
  import jax
  import jax.numpy as jnp
  import numpyro.distributions as dist
  from numpyro.infer import MCMC, NUTS, init_to_value
  law = law or additive()
  start = fit(observations, law, Loss('student_t'))
  problem, phi = _state(start)
  free = len(phi)
  spread = np.sqrt(np.maximum(np.diagonal(np.nan_to_num(np.linalg.pinv(
      hessian(problem, phi, start.loss)[0], hermitian=True))), 1e-12))
  names = [law.parameters[i] for i in problem.free]
  width = np.array([1.0 if name in law.bounds and name not in law.logs else 3.0 for name in names])
  with jax.enable_x64(True):
    x = {key: jnp.asarray(value) for key, value in problem.x.items()}
    base, move, y = jnp.asarray(problem.base), jnp.asarray(problem.move), jnp.asarray(problem.y)

    def model():
      z = numpyro.sample('z', dist.Normal(0.0, jnp.asarray(width / spread)).to_event(1))
      sigma = numpyro.sample('sigma', dist.HalfCauchy(max(10.0 * start.loss.sigma, 1e-6)))
      nu = numpyro.sample('nu', dist.Gamma(2.0, 0.5))
      theta = base + move @ (jnp.asarray(phi) + jnp.asarray(spread) * z)
      numpyro.sample('y', dist.StudentT(nu, law.log_loss(theta, x, jnp), sigma), obs=y)

    kernel = NUTS(model, dense_mass=True, target_accept_prob=0.9, init_strategy=init_to_value(values={
        'z': jnp.zeros(free), 'sigma': jnp.asarray(start.loss.sigma), 'nu': jnp.asarray(max(start.loss.nu, 1.0))}))
    run = MCMC(kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method='vectorized',
               progress_bar=False)
    run.run(jax.random.key(seed))
    grouped = run.get_samples(group_by_chain=True)
    r_hat = max(float(np.max(numpyro.diagnostics.split_gelman_rubin(np.asarray(v)))) for v in grouped.values())
    diverging = int(np.asarray(run.get_extra_fields()['diverging']).sum())
    samples = {key: np.asarray(value) for key, value in run.get_samples().items()}
  thetas = problem.theta(phi + spread * samples['z'])
  return thetas, {'r_hat': r_hat, 'divergences': diverging, 'nu': float(samples['nu'].mean()),
                  'sigma': float(samples['sigma'].mean())}
