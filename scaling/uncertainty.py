"""How sure a fit is: of its parameters and of what is decided with it, with the coverage that simulation shows.

Intervals come from the profile of the objective: those values of a quantity at which the best fit that has that value
is not significantly worse. They are as wide as the runs demand, also to infinity, and do not depend on how the law is
written. Bootstraps give standard errors and joint draws; a posterior needs the extra `bayes`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, stats

from foundation.errors import ConfigError, nearest
from scaling.fit import Fit, fit
from scaling.laws import Law, additive, allocation
from scaling.objective import Loss, Problem, Pull, finite, hessian, minimise
from scaling.observations import Observations

BOOTSTRAPS = ('pairs', 'cluster', 'residual')
REACH = (0.5, 1.0, 1.4, 1.7, 2.0, 2.5, 3.2, 4.5, 7.0, 12.0, 25.0, 60.0)  # standard errors at which a profile is taken


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


def _at(law: Law, theta, n, d, K=None):
  x = {'n': np.asarray(n)[..., None], 'd': np.asarray(d)[..., None], 'k': np.log([K or 1.0])}
  return law.log_loss(theta, x, np)[..., 0]


def loss_at(law: Law, N: float, D: float, U: float | None = None, K: float | None = None) -> Quantity:
  """Loss in nats per token of a run of N parameters and D tokens (U unique ones: D if not given; K experts: 1)."""
  given = {'n': N, 'd': D, 'u': U or D, 'k': K or 1.0}
  x = {key: np.log([given[key]]) for key in law.columns}
  return Quantity(f'loss at N={N:.3g}, D={D:.3g}', lambda theta: law.log_loss(theta, x, np)[..., 0], True)


def n_opt(law: Law, C: float, K: float | None = None) -> Quantity:
  """Compute-optimal (active) parameters at C FLOPs, with K experts."""
  return Quantity(f'N_opt at C={C:.3g}', lambda theta: allocation(law, theta, C, K=K)[0], True)


def d_opt(law: Law, C: float, K: float | None = None) -> Quantity:
  """Compute-optimal tokens at C FLOPs, with K experts."""
  return Quantity(f'D_opt at C={C:.3g}', lambda theta: allocation(law, theta, C, K=K)[1], True)


def best_loss(law: Law, C: float, K: float | None = None) -> Quantity:
  """Loss in nats per token at the compute optimum of C FLOPs, with K experts."""
  return Quantity(f'loss at C={C:.3g}', lambda theta: _at(law, theta, *allocation(law, theta, C, K=K), K), True)


def share(law: Law) -> Quantity:
  """The exponent a of N_opt ~ C^a."""
  def value(theta):
    t = law.terms(theta, {'k': 0.0})
    return t.beta / (t.alpha + t.beta)
  return Quantity('a (N_opt ~ C^a)', value)


@np.errstate(all='ignore')
def regret(law: Law, thetas, C: float, N: float, K: float | None = None) -> np.ndarray:
  """Loss lost, in nats per token, by training N parameters and not N_opt on C FLOPs, for each theta."""
  thetas = np.atleast_2d(thetas)
  chosen = np.full(len(thetas), np.log(N))
  here = _at(law, thetas, chosen, np.log(C / 6.0) - chosen, K)
  return np.exp(here) - np.exp(_at(law, thetas, *allocation(law, thetas, C, K=K), K))


def _state(result: Fit):
  problem = Problem.of(result.law, result.observations.x, result.observations.y, result.fixed)
  return problem, problem.phi(result.theta)


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

  def __str__(self) -> str:
    text = f'{self.name} {self.estimate:.5g}, {100 * self.level:g} % {self.method} [{self.low:.5g}, {self.high:.5g}]'
    return text if self.coverage is None else f'{text}, simulated coverage {100 * self.coverage:.0f} %'


@np.errstate(all='ignore')
def profile(result: Fit, quantity: Quantity, level: float = 0.9, new_run: bool = False) -> Interval:
  """The profile interval of a quantity; an end that the runs do not bound is infinite (0 for a logged quantity).

  new_run: the quantity is a loss that one new run will measure, so its own noise, the rms residual with n - p degrees
  of freedom, is added in quadrature to each side.
  """
  _check_level(level)
  problem, phi = _state(result)
  free = len(phi)
  estimate = float(quantity.value(result.theta[None])[0])
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
  statistic = 2.0 * factor * np.maximum(values - result.objective, 0.0)
  limit = stats.f.ppf(level, 1, len(problem.y) - free)
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
    noise = np.sqrt(limit) * result.rms * np.sqrt(rows / (rows - free))
    ends = [estimate + np.sign(end - estimate) * np.hypot(end - estimate, noise) for end in ends]
  return Interval(quantity.name, float(quantity.show(estimate)), float(quantity.show(ends[0])),
                  float(quantity.show(ends[1])), level, 'prediction' if new_run else 'profile')


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ConfigError(f'level={level}: expected a probability between 0 and 1, such as 0.9')


@np.errstate(all='ignore')
def bootstrap(result: Fit, count: int = 1000, kind: str = 'pairs', seed: int = 0) -> np.ndarray:
  """theta[count, P] of refits. kind: pairs (rows drawn with replacement) | cluster (sizes drawn, all their rows, for
  ladders that share a trunk) | residual (the law's losses plus drawn residuals). Fitted scales are kept."""
  problem, phi = _state(result)
  rng, rows = np.random.default_rng(seed), len(problem.y)
  starts = np.repeat(phi[None], count, 0)
  if kind == 'residual':
    simulated = simulate(result, rng, count)
    return problem.theta(minimise(simulated, starts, result.loss)[0])
  if kind == 'pairs':
    weights = rng.multinomial(rows, np.full(rows, 1.0 / rows), count).astype(float)
  elif kind == 'cluster':
    _, group = np.unique(np.round(np.log(result.observations.N) / 0.02), return_inverse=True)
    groups = int(group.max()) + 1  # type: ignore[call-overload]  # NumPy 2.5
    weights = rng.multinomial(groups, np.full(groups, 1.0 / groups), count).astype(float)[:, group]
  else:
    raise ConfigError(f'bootstrap kind {kind!r} is not one of {", ".join(BOOTSTRAPS)}{nearest(kind, BOOTSTRAPS)}')
  return problem.theta(minimise(problem, starts, result.loss, weights)[0])


def simulate(result: Fit, rng, count: int) -> Problem:
  """The same runs with losses [count, rows] of the law plus resampled residuals, in one batch.

  The residuals are centred where the objective says that their middle is: about their mean a robust fit of skewed
  residuals would be simulated off its own truth.
  """
  problem, _ = _state(result)
  rows, free = len(problem.y), result.free
  noise = result.residuals * np.sqrt(rows / (rows - free))
  reach = np.quantile(np.abs(noise), 0.8) + 1e-15
  pull = lambda centre: float(result.loss.psi(noise - centre).sum())
  if pull(-reach) * pull(reach) < 0:
    noise = noise - optimize.brentq(pull, -reach, reach)
  truth = problem.y + result.residuals
  return dataclasses.replace(problem, y=truth - rng.choice(noise, (count, rows)))


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
             fit_scale: bool | None = None) -> np.ndarray:
  """Share of simulated tables (same N and D, the fitted law, its residuals) whose profile interval holds the truth.

  One value a quantity; its own standard error is about sqrt(.09/count) at a level of 0.9. The truth is inside where
  the fit held at it passes the profile's test, so that no interval needs to be computed. fit_scale: also refit a Huber
  delta to each table (default: if it was fitted here).
  """
  problem, phi = _state(result)
  simulated = simulate(result, np.random.default_rng(seed), count)
  inside, _ = covered(simulated, np.repeat(phi[None], count, 0), result.theta, result.loss, quantities, level,
                       bool(fit_scale))
  return inside.mean(1)


@np.errstate(all='ignore')
def covered(simulated: Problem, starts, truth, loss: Loss, quantities, level: float, fit_scale: bool):
  """(inside[quantities, tables], theta[tables, P]) of a batch of tables whose y is [tables, rows]."""
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
  limit = stats.f.ppf(level, 1, rows - free)
  inside = []
  for quantity in quantities:
    target = float(quantity.value(truth[None])[0])
    slope = quantity.gradient(simulated.theta(refitted)) @ simulated.move
    jac = simulated.jacobian(refitted)
    gram = np.linalg.pinv(finite(jac.mT @ jac), hermitian=True)
    variance = np.einsum('si,sij,sj->s', slope, gram, slope) * np.mean(residual ** 2, -1)
    pull = Pull(quantity.value, quantity.gradient, np.full(count, target), 1e4 / (factor * np.maximum(variance, 1e-24)))
    held = np.full(count, np.inf)
    for start in (starts, refitted):
      at, _, _ = minimise(simulated, start, loss, pull=pull)
      held = np.minimum(held, (loss.rho(simulated.residual(at))).sum(-1))
    inside.append(2.0 * factor * np.maximum(held - (loss.rho(residual)).sum(-1), 0.0) <= limit)
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
    raise ConfigError('a posterior needs numpyro; install the extra: pip install "lemma[bayes]"') from None
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
