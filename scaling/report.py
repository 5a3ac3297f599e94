"""One page about a table of runs: what was fitted, how sure it is, what it predicts badly, and what to do next.

`summary` is the text that the command line prints; `page` writes it with figures as one HTML file and its parts.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from foundation import files, outputs
from foundation.page import Figure, Section, Text, render
from scaling import plot, prediction
from scaling.approaches import Optima, positions, side_by_side
from scaling.fit import Fit, fit
from scaling.laws import law as law_of
from scaling.lints import Finding
from scaling.objective import Loss
from scaling.holdout import COMPARED, Holdout, holdout, thin, weights
from scaling.observations import LARGE, Counting, Observations
from scaling.table import Runs, best_rate
from scaling.quantities import best_loss, d_opt, n_opt, parameter, share
from scaling.uncertainty import Interval, bootstrap, profile, worst_coverage


@dataclasses.dataclass(frozen=True)
class Doubt:
  """Bootstrap draws theta[draws, P], standard errors by displayed name, and profile intervals with their coverage."""
  draws: np.ndarray
  errors: dict[str, float]
  intervals: tuple[Interval, ...]


def quantities(result: Fit, C: float):
  """What intervals are given for: the free parameters, and decisions at C FLOPs for a law of N and D alone."""
  law = result.law
  out = [parameter(law, name) for name in law.parameters if name not in result.fixed]
  if not law.plain or law.terms is None and np.isnan(result.optimum(C)[0]):
    return out
  if law.terms is not None and np.abs(share(law).gradient(result.theta[None])).max() > 1e-12:  # not fixed at 1/2
    out.append(share(law))
  k = result.observations.convention.k
  return out + [n_opt(law, C, k=k), d_opt(law, C, k=k), best_loss(law, C, k=k)]


@np.errstate(all='ignore')
def doubt(result: Fit, C: float, draws: int = 1000, simulations: int = 100, level: float = 0.9, kind: str = 'pairs',
          fit_scale: bool = False) -> Doubt:
  """Bootstrap and profile of a fit. C: FLOPs of the decision. simulations 0: no coverage."""
  thetas = bootstrap(result, draws, kind)
  spread = {name: float(np.std(value)) for name, value in result.law.display(thetas).items()
            if name not in result.fixed}
  wanted = quantities(result, C)
  intervals = [profile(result, q, level) for q in wanted]
  if simulations and len(result.observations) <= LARGE:
    shares = worst_coverage(result, wanted, level, simulations, fit_scale=fit_scale)
    intervals = [dataclasses.replace(i, coverage=c, noise=noise) for i, (c, noise) in zip(intervals, shares)]
  if result.law.plain and len(result.observations) <= LARGE and intervals[-1].name.startswith('loss at'):
    N, D = (float(v) for v in result.optimum(C))  # that is a prediction, of which the law itself may be wrong
    far = float(prediction.distance(result.observations, N, D))
    walk = prediction.drift(result.observations, result.law, result.loss, result.fixed) if far > 0 else prediction.Drift()
    intervals[-1] = prediction.widened(intervals[-1], walk, far)
  return Doubt(thetas, spread, tuple(intervals))


def parameter_row(interval: Interval, error: float) -> str:
  """'alpha 0.3473 ± 0.0146   90 % [...]'; a parameter with an open end has a bound and no value.

  A spread of a thousand estimates is some resamples' without any bound: ± inf.
  """
  if not np.isfinite([interval.low, interval.high]).all() or interval.low == 0:
    return f'{interval.name} {_bounded(interval)}'
  error = error if error < 1e3 * abs(interval.estimate) else np.inf
  return f'{interval.name} {interval.estimate:.5g} ± {error:.3g}   {_bounded(interval)}'


def _bounded(interval: Interval) -> str:
  """An interval in words; an open end is a bound and not a number."""
  tail = f'   {interval.covers}' if interval.covers else ''
  level = f'{100 * interval.level:g} %'
  low_open, high_open = not np.isfinite(interval.low) or interval.low == 0, not np.isfinite(interval.high)
  if low_open and high_open:
    return f'unidentified: any value fits at {level}{tail}'
  if high_open:
    return f'unidentified above {interval.low:.4g} (lower bound, {level}){tail}'
  if low_open:
    return f'unidentified below {interval.high:.4g} (upper bound, {level}){tail}'
  return f'{level} [{interval.low:.5g}, {interval.high:.5g}]{tail}'


@np.errstate(all='ignore')
def summary(result: Fit, about: Doubt | None = None, findings: Sequence[Finding] = ()) -> str:
  """A row a parameter (value, standard error, interval), the objective, the correlations and every doubt in words."""
  lines = [f'law {result.law.name}: {result.law.formula}',
           f'runs {len(result.observations)} of {result.observations.source}']
  intervals = {i.name: i for i in about.intervals} if about else {}
  errors = about.errors if about else result.errors
  for name, value in result.values.items():
    if name in result.fixed:
      lines.append(f'{name} {value:.6g} fixed')
    elif name in intervals:
      lines.append(parameter_row(intervals[name], errors[name]))
    else:
      lines.append(f'{name} {value:.5g} ± {errors[name]:.3g}')
  loss = result.loss
  detail = (f' sigma {loss.sigma:.4g}, nu {loss.nu:.3g}' if loss.name == 'student_t' else
            '' if loss.name == 'squares' else f' delta {loss.delta:.4g}')
  lines.append(f'objective {result.objective:.7g} ({loss.name}{detail}, sum over {len(result.observations)} rows; '
               f'{result.agreeing} of {result.starts} starts agree, scaled gradient {result.gradient:.1e})')
  lines.append(f'rms residual {100 * result.rms:.3f} % of the loss')
  lines += [f'{name} {_line(i)}' for name, i in intervals.items() if name not in result.values]
  names = [n for n in result.law.parameters if n not in result.fixed]
  index = [result.law.parameters.index(n) for n in names]
  matrix = np.corrcoef(about.draws[:, index].T) if about else \
      result.correlation[np.ix_(index, index)]
  lines.append('correlation ' + ' '.join(f'{n:>7s}' for n in names))
  for name, row in zip(names, np.atleast_2d(matrix)):
    lines.append(f'{name:>11s} ' + ' '.join(f'{v:+7.3f}' for v in row))
  short: list[Any] = [i for i in intervals.values() if i.coverage is not None and i.coverage < i.level - 0.05]
  if short:
    worst = min(short, key=lambda i: i.coverage)
    lines.append(f'doubt: simulated coverage {100 * worst.coverage:.0f} % of {worst.name} is below '
                 f'{100 * worst.level:g} %; a delta fitted to the residuals (--delta=0) is better calibrated')
  lines += [f'doubt: {note}' for note in result.notes] + [f'warning: {f}' for f in findings]
  return '\n'.join(lines)


def _line(interval: Interval) -> str:
  return f'{interval.estimate:.5g}   {_bounded(interval)}'


def comparison(holdouts: Sequence[Holdout], rms: Sequence[float]) -> str:
  """A row a law: error inside the fit, error of prediction, weight; then which is preferred."""
  shares = weights(holdouts)
  lines = [f'{"law":<14s} {"inside %":>9s} {"beyond %":>9s} {"weight":>7s}']
  for item, inside, part in zip(holdouts, rms, shares):
    lines.append(f'{item.law:<14s} {100 * inside:9.3f} {100 * item.score:9.3f} {part:7.3f}')
  best = holdouts[int(np.argmax(shares))].law
  lines.append(f'preferred {best} ({len(holdouts[0].cut)} cuts, fitted below, predicted above)')
  return '\n'.join(lines)


def approaches_text(optima: Sequence[Optima], reasons: Sequence[str], C: float) -> str:
  """A row an approach: exponent a of N_opt ~ C^a, its standard error, N_opt at C FLOPs; then why some are missing."""
  lines = [f'{"approach":<24s} {"a":>7s} {"± se":>7s} {"points":>7s}   N_opt at C={C:.3g}']
  for item in optima:
    error = f'{item.a_error:7.4f}' if np.isfinite(item.a_error) else '      -'
    lines.append(f'{item.approach:<24s} {item.a:7.4f} {error} {len(item.C):7d}   {item.n_opt(C):.4g}')
  return '\n'.join(lines + [f'left out: {reason}' for reason in reasons])


def positions_text(runs: Runs, counting: Counting, groups: int = 0) -> str:
  """A row a group of positions in the window: E, A, B of laws that share their exponents, and the error they leave."""
  runs = best_rate(runs)
  names, losses = runs.grouped_positions(groups)
  o = runs.observe(counting)
  shared = positions(o.N, o.D, losses)
  lines = [f'laws by position, E + A/N^{shared["alpha"]:.4g} + B/D^{shared["beta"]:.4g}',
           f'{"position":>12s} {"E":>9s} {"A":>9s} {"B":>9s} {"rms %":>7s}']
  for name, e, a, b, rms in zip(names, shared['E'], shared['A'], shared['B'], shared['rms']):
    lines.append(f'{name:>12s} {e:9.4f} {a:9.4g} {b:9.4g} {100 * rms:7.3f}')
  return '\n'.join(lines)


def headline(result: Fit, about: Doubt, C: float) -> str:
  """What the fit says, in a sentence."""
  o, law = result.observations, result.law
  if not result.accepted:
    return f'The fit of the {law.name} law to {len(o)} runs was not accepted: {result.notes[-1]}.'
  known = {i.name.split(' at ')[0]: i for i in about.intervals}
  fitted = f'The {law.name} law of {len(o)} runs, to {100 * result.rms:.2g} % of their loss,'
  if 'loss' not in known:
    return f'{fitted} has parameters but no compute optimum.'
  best = {name: known[name] for name in ('N_opt', 'D_opt', 'loss')}
  if not all(np.isfinite([i.low, i.high]).all() and i.low > 0 for i in best.values()):
    return f'{fitted} does not know what to train for {C:.3g} FLOPs: its optimum there has no bound.'
  N, D, loss = (f'{i.estimate:.3g} [{i.low:.3g}, {i.high:.3g}]' for i in best.values())
  return (f'{fitted} advises {N} parameters and {D} tokens for {C:.3g} FLOPs, {C / o.C.max():.3g} times the largest '
          f'run, and expects a loss of {loss} nats per token there ({100 * best["loss"].level:g} % intervals).')


CAPTIONS = {
    'envelope': 'Loss of every run against its compute, the least so far, and the law at its optimum.',
    'isoflop': 'Runs of equal compute against their size, with the slices of the law and their minima.',
    'contours': 'The loss that the law gives to each compute and size, the runs, and the efficient frontier.',
    'optimum': 'The size to train for each compute: the law, the band of its bootstrap, and the other approaches.',
    'holdout': 'Error of each law on the runs beyond the compute that it was fitted to.',
    'residuals': 'What the law leaves over, run by run.',
}


def check_folder(key: str, folder: pathlib.Path) -> None:
  """Raises ConfigError unless `page` may write into the folder: it is new, or has a page of ours, whole or half."""
  outputs.check_page(key, folder / 'index.html')
  charts = [f'{name}.{suffix}' for name in CAPTIONS for suffix in ('png', 'svg', 'csv')]
  outputs.check_folder(key, folder, ('index.html', *charts), mark='index.html')


def page(folder: str | pathlib.Path, o: Observations, result: Fit, about: Doubt, C: float, loss: Loss = Loss(),
         laws: Sequence[str] = COMPARED, findings: Sequence[Finding] = (),
         title: str = '', facts: Sequence[str] = ()) -> pathlib.Path:
  """Writes folder/index.html and, beside it, each figure as PNG, SVG and CSV; returns the page's path.

  title: of the page, the table's source if none. facts: lines that stand after the first sentence.
  """
  folder = pathlib.Path(folder)
  check_folder('the folder of the report', folder)
  texts, charts = [('Fit', summary(result, about, findings))], {}
  optima, reasons = side_by_side(o, loss)
  texts.append(('Approaches', approaches_text(optima, reasons, C)))
  charts['envelope'], charts['isoflop'] = plot.envelope(o, result), plot.isoflops(o, result)
  if result.law.plain:
    charts['contours'] = plot.contours(o, result)
    if np.isfinite(result.optimum(C)[0]):
      charts['optimum'] = plot.optimum_band(o, result, about.draws, others=optima[:3])
  try:
    holdouts = [holdout(o, law_of(name), loss, cuts=thin(o)) for name in laws]
    texts.append(('Choice of law', comparison(holdouts, [fit(o, law_of(name), loss).rms for name in laws])))
    charts['holdout'] = plot.holdout_error(holdouts)
  except ValueError as error:
    texts.append(('Choice of law', f'left out: {error}'))
  charts['residuals'] = plot.residuals(result)
  drawn = []
  for name, chart in charts.items():
    if chart.rows:  # else no budget has enough sizes for a slice: the text below says so
      _, svg, _ = plot.save(chart, folder / name)
      drawn.append(Figure(svg.read_text(encoding='utf-8'), CAPTIONS[name], f'{name}.csv; also {name}.png, {name}.svg'))
  sections = [*([Section('In short', facts)] if facts else []), Section('Figures', drawn),
              *(Section(name, [Text(text)]) for name, text in texts)]
  path = folder / 'index.html'
  files.write_atomically(path, render(title or o.source, headline(result, about, C), sections))
  return path
