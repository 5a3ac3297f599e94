"""Figures of runs, laws and their doubt. Each returns a Chart; `save` writes PNG, SVG and the CSV behind it.

matplotlib is imported when a figure is drawn. A chart's series is a table: what a reader needs to draw it again.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from foundation import figures, files
from foundation.figures import BLUE, GREY, ORANGE
from scaling.approaches import Optima, frontier
from scaling.fit import Fit
from scaling.laws import allocation
from scaling.lints import isoflop_groups
from scaling.holdout import Holdout
from scaling.observations import Observations

@dataclasses.dataclass(frozen=True)
class Chart:
  """A figure and the table behind it: header and rows (series, x, y, ...)."""
  figure: Any  # of matplotlib
  header: tuple[str, ...]
  rows: list


def _colours(values):
  import matplotlib
  spread = np.ptp(np.log(values)) or 1.0
  return matplotlib.colormaps['viridis']((np.log(values) - np.log(np.min(values))) / spread * 0.9)


def envelope(o: Observations, result: Fit | None = None) -> Chart:
  """Loss against compute, coloured by size, with the frontier of the runs and, if given, the law's."""
  figure, axes = figures.axes('Loss against compute', 'training compute C (FLOPs)', 'loss (nats per token)', 'x')
  axes.scatter(o.C, o.loss, c=_colours(o.N), s=14)
  index = frontier(o)
  axes.step(o.C[index], o.loss[index], where='post', color=GREY, linewidth=1, label='frontier of the runs')
  rows = [('run', c, l, n, d) for c, l, n, d in zip(o.C, o.loss, o.N, o.D)]
  rows += [('frontier', o.C[i], o.loss[i], o.N[i], o.D[i]) for i in index]
  if result is not None and result.law.plain:
    C = np.geomspace(o.C.min(), o.C.max() * 10, 60)
    N, D = result.optimum(C)
    loss = result.predict(N, D)
    axes.plot(C, loss, color=ORANGE, label=f'{result.law.name} law at its optimum')
    rows += [('law', *row) for row in zip(C, loss, N, D)]
  axes.legend(frameon=False)
  return Chart(figure, ('series', 'C', 'loss', 'N', 'D'), rows)


def isoflops(o: Observations, result: Fit | None = None) -> Chart:
  """Loss against size for each compute budget, with the law's slices and their minima."""
  figure, axes = figures.axes('IsoFLOP slices', 'parameters N', 'loss (nats per token)', 'x')
  rows, groups = [], isoflop_groups(o)
  for group, colour in zip(groups, _colours([o.C[g].mean() for g in groups]) if groups else ()):
    C = np.exp(np.log(o.C[group]).mean())
    order = group[np.argsort(o.N[group])]
    axes.plot(o.N[order], o.loss[order], 'o', color=colour, markersize=4, label=f'{C:.1e} FLOPs')
    rows += [('run', C, o.N[i], o.loss[i]) for i in order]
    if result is not None and result.law.plain:
      N = np.geomspace(o.N[group].min() / 1.5, o.N[group].max() * 1.5, 60)
      loss = result.predict(N, C / (o.convention.k * N))
      axes.plot(N, loss, color=colour, linewidth=1)
      best = float(result.optimum(C)[0])
      axes.plot([best], [float(result.predict(best, C / o.convention.k / best))], 'x', color=colour)
      rows += [('law', C, n, l) for n, l in zip(N, loss)]
  if not groups:
    axes.text(0.5, 0.5, 'no budget with four sizes or more', ha='center', transform=axes.transAxes)
  else:
    axes.legend(frameon=False, fontsize=7)
  return Chart(figure, ('series', 'C', 'N', 'loss'), rows)


def contours(o: Observations, result: Fit) -> Chart:
  """Contours of the law's loss over N and C = k N D, the runs, and the efficient frontier."""
  figure, axes = figures.axes(f'{result.law.name}: loss over compute and size', 'training compute C (FLOPs)',
                              'parameters N', 'xy')
  C = np.geomspace(o.C.min() / 2, o.C.max() * 20, 70)
  N = np.geomspace(o.N.min() / 2, o.N.max() * 4, 60)
  grid_c, grid_n = np.meshgrid(C, N)
  k = o.convention.k
  loss = result.predict(grid_n, grid_c / (k * grid_n))
  low, high = np.quantile(loss, [0.0, 0.8])
  levels = np.unique(np.round(np.linspace(low, high, 14), 3))
  if len(levels) > 1:  # else the law gives one loss to everything
    axes.clabel(axes.contour(C, N, loss, levels=levels, colors=GREY, linewidths=0.7), fontsize=6)
  axes.scatter(o.C, o.N, c=o.loss, s=14, cmap='viridis')
  best = result.optimum(C)[0]
  axes.plot(C, best, color=ORANGE, label='efficient frontier')
  axes.set_ylim(N[0], N[-1])
  axes.legend(frameon=False)
  rows = [('run', c, n, l) for c, n, l in zip(o.C, o.N, o.loss)]
  rows += [('frontier', c, n, l) for c, n, l in zip(C, best, result.predict(best, C / k / best))]
  rows += [('grid', c, n, l) for c, n, l in zip(grid_c.ravel(), grid_n.ravel(), loss.ravel())]
  return Chart(figure, ('series', 'C', 'N', 'loss'), rows)


def optimum_band(o: Observations, result: Fit, thetas, level: float = 0.9, others: Sequence[Optima] = ()) -> Chart:
  """Compute-optimal N against compute with the band of the draws theta[draws, P], and other approaches' points."""
  figure, axes = figures.axes('Compute-optimal size', 'training compute C (FLOPs)', 'N_opt (parameters)', 'xy')
  C = np.geomspace(o.C.min(), o.C.max() * 100, 60)
  middle = result.optimum(C)[0]
  draws = np.stack([allocation(result.law, thetas, c, o.convention.k)[0] for c in C], 1)
  low, high = np.exp(np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0))
  axes.fill_between(C, low, high, color=BLUE, alpha=0.2, linewidth=0, label=f'{100 * level:g} % of draws')
  axes.plot(C, middle, color=BLUE, label=f'{result.law.name} law')
  axes.axvline(o.C.max(), color=GREY, linewidth=0.7, linestyle=':')
  rows = [('law', c, m, a, b) for c, m, a, b in zip(C, middle, low, high)]
  for optima, marker in zip(others, 'os^vD'):
    axes.plot(optima.C, optima.N, marker, markersize=4, label=optima.approach)
    rows += [(optima.approach, c, n, '', '') for c, n in zip(optima.C, optima.N)]
  axes.legend(frameon=False, fontsize=7)
  return Chart(figure, ('series', 'C', 'N_opt', 'low', 'high'), rows)


def holdout_error(holdouts: Sequence[Holdout]) -> Chart:
  """Extrapolation error of each law against the compute below which it was fitted."""
  figure, axes = figures.axes('Error of prediction beyond the fitted compute', 'largest compute fitted (FLOPs)',
                              'rms error of ln loss above it (%)', 'xy')
  rows = []
  for item in holdouts:
    axes.plot(item.cut, 100 * item.error, 'o-', markersize=3, linewidth=1, label=item.law)
    rows += [(item.law, c, 100 * e, 100 * b, *r) for c, e, b, r in zip(item.cut, item.error, item.bias, item.runs)]
  axes.legend(frameon=False)
  return Chart(figure, ('series', 'cut', 'error_percent', 'bias_percent', 'runs_fitted', 'runs_held'), rows)


def residuals(result: Fit) -> Chart:
  """Residuals of ln loss (predicted - measured, %) against compute, coloured by size."""
  o = result.observations
  figure, axes = figures.axes(f'{result.law.name}: residuals', 'training compute C (FLOPs)',
                              'predicted / measured - 1 (%)', 'x')
  axes.axhline(0, color=GREY, linewidth=0.7)
  axes.scatter(o.C, 100 * result.relative, c=_colours(o.N), s=14)
  rows = [(name, c, n, d, 100 * r) for name, c, n, d, r in zip(o.rows, o.C, o.N, o.D, result.relative)]
  return Chart(figure, ('row', 'C', 'N', 'D', 'residual_percent'), rows)


def save(chart: Chart, stem: str | pathlib.Path) -> list[pathlib.Path]:
  """Writes stem.png, stem.svg and stem.csv; returns their paths."""
  stem = pathlib.Path(stem)
  stem.parent.mkdir(parents=True, exist_ok=True)
  paths = [stem.with_suffix(suffix) for suffix in ('.png', '.svg', '.csv')]
  picture = io.BytesIO()
  chart.figure.savefig(picture, format='png', dpi=150, bbox_inches='tight')
  files.write_atomically(paths[0], picture.getvalue())
  files.write_atomically(paths[1], figures.svg(chart.figure))
  table = io.StringIO()
  writer = csv.writer(table)
  writer.writerow(chart.header)
  writer.writerows([[f'{v:.10g}' if isinstance(v, (float, np.floating)) else v for v in row] for row in chart.rows])
  files.write_atomically(paths[2], table.getvalue())
  return paths
