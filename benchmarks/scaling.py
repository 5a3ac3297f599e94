"""Scaling fits measured: speed beside scipy's L-BFGS-B from the Chinchilla paper's grid, and coverage of intervals.

  python -m benchmarks.scaling                 speed, then coverage; about two minutes on two cores
  python -m benchmarks.scaling --part=coverage

The table is that of Besiroglu et al. 2024 (245 points) below LEMMA_SHARED or ../shared, else one simulated from its
law. Times are wall seconds of this process. Every method is shown with the objective it reached: a Huber sum at 1e-3,
whose least is 1.0182740e-3 on the published 240 rows.
"""

import dataclasses
import itertools
import os
import pathlib
import sys
import time

import numpy as np
from scipy import optimize

from foundation.command import Command, Flag, run
from foundation.errors import ConfigError
from scaling import laws, table, uncertainty
from scaling.fit import fit, screen
from scaling.objective import Loss, Problem, refine_optimistix
from scaling.observations import Observations, levels

GRID = dict(alpha=(0, 0.5, 1, 1.5, 2), beta=(0, 0.5, 1, 1.5, 2), e=(-1, -0.5, 0, 0.5, 1), a=(0, 5, 10, 15, 20, 25),
            b=(0, 5, 10, 15, 20, 25))  # Hoffmann et al. 2022, section 3.3: 4500 starts


def runs() -> tuple[Observations, Observations]:
  """(all rows, the rows of the published fit)."""
  shared = pathlib.Path(os.environ.get('LEMMA_SHARED', pathlib.Path(__file__).resolve().parents[2] / 'shared'))
  path = shared / 'data' / 'scaling' / 'chinchilla_epoch_245.csv'
  if path.exists():
    read = table.read(path)
    return read.observe(), read.exclude('outlier5').observe()
  rng, law = np.random.default_rng(0), laws.additive()
  n, d = np.exp(rng.uniform(np.log(4e7), np.log(1e10), 245)), np.exp(rng.uniform(np.log(1e9), np.log(3e11), 245))
  theta = law.coordinates({'E': 1.82, 'A': 482.0, 'B': 2085.0, 'alpha': 0.348, 'beta': 0.366})
  o = Observations.of(n, d, law.loss(theta, n, d) * np.exp(0.004 * rng.standard_t(3, 245)))
  return o, o.take(slice(0, 240))


def timed(work, repeats: int = 1):
  """(result, first wall seconds, median of the later ones or the first)."""
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    result = work()
    times.append(time.perf_counter() - start)
    if repeats == 0:
      break
  return result, times[0], float(np.median(times[1:] or times))


def lbfgs(o: Observations, starts: int, seed: int = 0):
  """scipy L-BFGS-B with numerical gradients, as published: (best objective, seconds a start, share at the least)."""
  x, y = o.x, o.y

  def objective(p):
    r = np.logaddexp(np.logaddexp(p[0] - p[3] * x['n'], p[1] - p[4] * x['d']), p[2]) - y
    size = np.abs(r)
    return np.where(size <= 1e-3, 0.5 * r * r, 1e-3 * (size - 5e-4)).sum()
  grid = list(itertools.product(GRID['a'], GRID['b'], GRID['e'], GRID['alpha'], GRID['beta']))
  chosen = np.random.default_rng(seed).choice(len(grid), starts, replace=False)
  begin = time.perf_counter()
  objectives = np.array([optimize.minimize(objective, grid[i], method='L-BFGS-B').fun for i in chosen])
  return objectives.min(), (time.perf_counter() - begin) / starts, len(grid), objectives


def speed(sample: int) -> None:
  everything, o = runs()
  print(f'{"what":<52s} {"seconds":>9s} {"objective":>14s}')
  result, first, later = timed(lambda: fit(o), 5)
  print(f'{f"one fit, {len(o)} rows, first call in the process":<52s} {first:9.3f} {result.objective:14.9f}')
  print(f'{"one fit, later calls (median of 5)":<52s} {later:9.3f} {result.objective:14.9f}')
  best, each, size, objectives = lbfgs(o, sample)
  share = (objectives < result.objective * 1.001).mean()
  print(f'{f"scipy L-BFGS-B, {sample} of {size} starts":<52s} {each * sample:9.3f} {best:14.9f}')
  print(f'{f"  extrapolated to {size}; {100 * share:.0f} % of starts at the least":<52s} {each * size:9.1f}')
  problem = Problem.of(result.law, o.x, o.y)
  starts = problem.phi(screen(o.x, o.y, Loss())[[0, 1, 3, 7, 15, 31, 63, 127]])
  (_, value), first, later = timed(lambda: refine_optimistix(problem, starts, Loss()))
  print(f'{"optimistix LM from the same 8 starts, with compiling":<52s} {first:9.3f} {value.min():14.9f}')
  draws, first, _ = timed(lambda: uncertainty.bootstrap(result, 1000), 0)
  spread = result.law.display(draws)
  print(f'{"1000 bootstraps":<52s} {first:9.3f}   sd ' + ', '.join(f'{k} {np.std(v):.3g}' for k, v in spread.items()))
  student, first, _ = timed(lambda: fit(everything, loss=Loss('student_t')), 0)
  print(f'{f"Student-t fit, {len(everything)} rows, -log likelihood":<52s} {first:9.3f} {student.objective:14.5f}')
  try:
    (draws, state), first, _ = timed(lambda: uncertainty.posterior(everything), 0)
    shown = result.law.display(draws)
    print(f'{"posterior, 2 x (500 + 1000), with compiling":<52s} {first:9.3f}   ' + ', '.join(
        f'{k} {v.mean():.4g} ± {v.std():.2g}' for k, v in shown.items()) + f', r_hat {state["r_hat"]:.3f}')
  except ConfigError as error:
    print(f'posterior left out: {error}')


def designs() -> dict[str, tuple[Observations, np.ndarray, np.ndarray]]:
  """{name: (runs on an additive law, its coordinates, noise that rows may have of their own [drafts, rows])}."""
  law, rng = laws.additive(), np.random.default_rng(7)
  theta = law.coordinates({'E': 0.85, 'A': 56.0, 'B': 83.0, 'alpha': 0.35, 'beta': 0.37})
  n, d = (g.ravel() for g in np.meshgrid([1e4, 3.3e4, 9.5e4, 1.64e5, 4.67e5], [2.5e5, 5e5, 1e6, 2e6], indexing='ij'))
  wide = law.coordinates({'E': 1.82, 'A': 482.0, 'B': 2085.0, 'alpha': 0.348, 'beta': 0.366})
  m, e = (g.ravel() for g in np.meshgrid(np.geomspace(2e7, 2e9, 8), np.geomspace(1e9, 6e10, 5), indexing='ij'))
  published = fit(runs()[1])
  o = published.observations
  return {'5 sizes x 4': (Observations.of(n, d, law.loss(theta, n, d)), theta, 0.004 * rng.standard_t(5, (10, 20))),
          '8 sizes x 5': (Observations.of(m, e, law.loss(wide, m, e)), wide, 0.002 * rng.standard_t(5, (10, 40))),
          f'published {len(o)}': (dataclasses.replace(o, loss=published.predict(o.N, o.D)), published.theta,
                                  published.residuals[None])}


def noises(o: Observations, own, count: int):
  """{kind: noise [count, rows]} of the same spread, that of `own`; wild noise keeps each row of a draft, of random sign."""
  rng, sd, shape = np.random.default_rng(0), float(np.sqrt(np.mean(own ** 2))), (count, len(o))
  _, size = levels(o.N, 0.01)
  falling = (o.C / o.C.min()) ** -0.25
  return {'normal': rng.normal(0, sd, shape), 'wild': np.abs(own)[np.arange(count) % len(own)] * rng.choice([-1, 1], shape),
          'heteroscedastic': rng.normal(0, sd, shape) * falling / np.sqrt(np.mean(falling ** 2)),
          'per size': sd * (rng.normal(0, 0.5 ** 0.5, (count, size.max() + 1))[:, size] + rng.normal(0, 0.5 ** 0.5, shape)),
          'Student-t 3': sd * rng.standard_t(3, shape) / 3 ** 0.5}


def coverage(count: int) -> None:
  """Share of `count` simulated tables whose 90 % interval holds the truth, for five kinds of noise."""
  law = laws.additive()
  print(f'coverage of printed 90 % intervals, {count} tables each (%), and of those of equal independent noise')
  for name, (o, theta, own) in designs().items():
    problem, C = Problem.of(law, o.x, o.y), 10 * float(o.C.max())
    k = o.convention.k
    quantities = [uncertainty.parameter(law, p) for p in ('E', 'alpha', 'beta')] + [
        uncertainty.share(law), uncertainty.n_opt(law, C, k=k), uncertainty.best_loss(law, C, k=k)]
    starts = np.repeat(problem.phi(theta)[None], count, 0)
    print(f'{name + ": objective, noise":<44s} ' + ' '.join(f'{q.name.split(" ")[0]:>6s}' for q in quantities) +
          '   equal independent  seconds')
    for label, loss, scale in (('huber, delta 1e-3', Loss(), False), ('huber, delta fitted', Loss('huber', 0.008), True)):
      for kind, noise in noises(o, own, count).items():
        simulated, begin = dataclasses.replace(problem, y=problem.y + noise), time.perf_counter()
        robust, plain = (uncertainty.covered(simulated, starts, theta, loss, quantities, 0.9, scale, robust=way)[0].mean(1)
                         for way in (True, False))
        print(f'{f"  {label}, {kind}":<44s} ' + ' '.join(f'{100 * v:6.1f}' for v in robust) +
              f'   {100 * plain.min():5.1f} to {100 * plain.max():5.1f}  {time.perf_counter() - begin:9.1f}', flush=True)


def main(flags) -> None:
  """Runs the parts that were asked for."""
  if flags.part != 'coverage':
    speed(flags.starts)
  if flags.part != 'speed':
    coverage(flags.sweeps)


COMMAND = Command('', main, 'speed of fits and coverage of their intervals', __doc__, (
    Flag('part', str, 'all', 'what to measure', ('speed', 'coverage', 'all')),
    Flag('starts', int, 60, 'grid starts of scipy that are run', least=1),
    Flag('sweeps', int, 200, 'simulated sweeps', least=1)))


if __name__ == '__main__':
  sys.exit(run('python -m benchmarks.scaling', '', [COMMAND]))
