"""Figures of single runs. Each is written in full or not at all."""

from collections.abc import Iterable
import pathlib
from typing import Any

from foundation import figures as style
from foundation import files
from framework.models import contract


def _save(figure, path: pathlib.Path) -> None:
  files.write_atomically(path, style.svg(figure))


def loss_curve(workdir: pathlib.Path) -> None:
  """Training loss and held-out loss by step, from metrics.jsonl, as loss.svg."""
  rows = files.read_rows(workdir / 'metrics.jsonl')
  figure, axes = style.axes(workdir.name, 'step', 'nats per token')
  axes.plot([r['step'] for r in rows], [r['loss'] for r in rows], linewidth=1, label='training batch')
  held_out = [r for r in rows if 'validation_loss' in r]
  axes.plot([r['step'] for r in held_out], [r['validation_loss'] for r in held_out], 'o-', label='held out')
  axes.legend()
  _save(figure, workdir / 'loss.svg')


def loss_curves(workdir: pathlib.Path, stages: Iterable[contract.Stage]) -> None:
  """The loss curve of every stage of a run that has been begun, each in its own folder."""
  for stage in stages:
    if (workdir / stage.name / 'metrics.jsonl').exists():
      loss_curve(workdir / stage.name)


def loss_by_position(results: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Held-out loss by position in the window, one line a stride (Kaplan et al. 2020, arXiv:2001.08361, figure 20).

  Only positions that every window predicts: those before them are targets in the first window of the text alone.
  """
  figure, axes = style.axes('loss by position', 'position in the window', 'nats per token')
  for result in results:
    points = [(i + 1, loss) for i, loss in enumerate(result['loss_by_position'])
              if loss is not None and i >= result['window'] - result['stride']]
    axes.plot(*zip(*points), linewidth=1, label=f"stride {result['stride']}")
  axes.set_xscale('log')
  axes.legend()
  _save(figure, path)


def attention(weights_NxHxQxT, labels: list[str], path: pathlib.Path) -> None:
  """A matrix for every layer (row) and head (column); the sharpest one, larger, with its tokens beside it."""
  from matplotlib.figure import Figure
  N, H = weights_NxHxQxT.shape[:2]
  figure = Figure(figsize=(2.2 * H + 5.0, max(5.0, 2.2 * N)), layout='constrained')
  left, right = figure.subfigures(1, 2, width_ratios=[5.0, 2.2 * H])  # type: ignore[misc]  # an array of two
  names = [label.translate({10: '⏎', 9: '⇥', 32: '␣'}) for label in labels]
  # The head whose weights are farthest from uniform has most to show.
  layer, head = divmod(int((weights_NxHxQxT**2).sum(-1).mean(-1).argmax()), H)
  axes = left.add_subplot(title=f'layer {layer + 1}, head {head + 1}')
  axes.imshow(weights_NxHxQxT[layer, head], cmap='Blues', vmin=0, vmax=1)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(range(len(names)), names, fontsize=min(9, 240 / len(names)), family='monospace', parse_math=False)
  if max(map(len, names)) > 1:
    axes.tick_params('x', rotation=90)
  axes.set_xlabel('is read')
  axes.set_ylabel('reads')
  for ax, (n, h) in zip(right.subplots(N, H, squeeze=False).flat, [(n, h) for n in range(N) for h in range(H)]):
    ax.imshow(weights_NxHxQxT[n, h], cmap='Blues', vmin=0, vmax=1)
    ax.set_title(f'{n + 1}.{h + 1}', fontsize='small')
    ax.set_xticks([])
    ax.set_yticks([])
  _save(figure, path)


def roofline(rows: list[dict[str, float]], peak: float, bandwidth: float, path: pathlib.Path) -> None:
  """FLOP/s of n x n products by FLOPs a byte, below the roofs (Williams, Waterman and Patterson 2009)."""
  figure, axes = style.axes('', 'FLOPs a byte', 'GFLOP/s')
  low, high = min(row['flops_per_byte'] for row in rows) / 2, max(row['flops_per_byte'] for row in rows) * 2
  ridge = peak / bandwidth
  corners = [low, *([ridge] if low < ridge < high else []), high]
  axes.plot(corners, [min(peak, x * bandwidth) / 1e9 for x in corners], color='black', linewidth=1)
  axes.plot([row['flops_per_byte'] for row in rows], [row['flops_per_second'] / 1e9 for row in rows], 'o')
  for row in rows:
    axes.annotate(f"{row['n']:.0f}", (row['flops_per_byte'], row['flops_per_second'] / 1e9), fontsize='small',
                  textcoords='offset points', xytext=(4, -10))
  axes.set_xscale('log')
  axes.set_yscale('log')
  _save(figure, path)


def losses(runs: dict[str, list[dict[str, Any]]]):
  """Figure: loss by tokens read, of the rows of metrics.jsonl by run; lines for batches, points for held-out text."""
  figure, axes = style.axes('', 'tokens', 'nats per token')
  for i, (name, rows) in enumerate(runs.items()):
    color = f'C{i % 10}'
    axes.plot([r['tokens'] for r in rows], [r.get('loss') for r in rows], linewidth=0.8, alpha=0.6, color=color)
    held_out = [r for r in rows if 'validation_loss' in r]
    axes.plot([r['tokens'] for r in held_out], [r['validation_loss'] for r in held_out], 'o-', markersize=3,
              color=color, label=style.literal(name))
  axes.set_xscale('log')
  _legend(axes, len(runs))
  return figure


def positions(runs: dict[str, list[float | None]]):
  """Figure: held-out loss by position in the window, a line a run."""
  figure, axes = style.axes('', 'position in the window', 'nats per token')
  for i, (name, values) in enumerate(runs.items()):
    points = [(place + 1, loss) for place, loss in enumerate(values) if loss is not None]
    axes.plot(*zip(*points), linewidth=1, color=f'C{i % 10}', label=style.literal(name))
  axes.set_xscale('log')
  _legend(axes, len(runs))
  return figure


def _legend(axes, lines: int) -> None:
  if 1 < lines <= 12:  # more names than that hide the picture
    axes.legend(fontsize='small')


def ladder(rows: list[dict[str, Any]]):
  """Figure: bits per byte of predictors, a bar each, in the order of the rows; the upper axis is in bits per token."""
  figure, axes = style.axes('', 'bits per byte of held-out text', '')
  figure.set_size_inches(6.4, 0.8 + 0.28 * len(rows))
  colors = {'counts': 'C0', 'compressor': 'C7', 'network': 'C1', 'two-sided': 'C4'}
  values = [row['bits_per_byte'] for row in rows]
  bars = axes.barh(range(len(rows)), values, color=[colors[row['kind']] for row in rows])
  axes.bar_label(bars, [f'{value:.3f}' for value in values], padding=2, fontsize='small')
  axes.set_yticks(range(len(rows)), [style.literal(row['name']) for row in rows])
  axes.invert_yaxis()
  axes.set_xlim(0, 1.12 * max(values))
  one = next(row for row in rows if row.get('same_tokens', True))
  bytes_per_token = one['bytes'] / one['targets']
  axes.secondary_xaxis('top', functions=(lambda x: x * bytes_per_token, lambda x: x / bytes_per_token)).set_xlabel(
      'bits per token')
  kinds = [kind for kind in colors if kind in {row['kind'] for row in rows}]
  axes.legend([bars[next(i for i, row in enumerate(rows) if row['kind'] == kind)] for kind in kinds], kinds,
              fontsize='small', loc='lower right')
  return figure


def along_training(results: list[dict[str, Any]]):
  """Figure: held-out loss of the checkpoints of a run, a line for each stride."""
  figure, axes = style.axes('', 'step', 'bits per byte of held-out text')
  for stride in dict.fromkeys(r['stride'] for r in results):
    points = sorted((r['step'], r['bits_per_byte']) for r in results if r['stride'] == stride)
    axes.plot(*zip(*points), marker='o', markersize=3, label=f'stride {stride}')
  axes.legend(fontsize='small')
  return figure


def study(module: Any, results: dict[str, Any], verdict: dict[str, Any], path: pathlib.Path) -> None:
  """The figure of a study of experiments/studies, with its verdict as the title."""
  figure, axes = style.axes(f"{pathlib.Path(verdict['name']).stem}: {verdict['verdict']}", '', '')
  module.figure(results, axes)
  _save(figure, path)
