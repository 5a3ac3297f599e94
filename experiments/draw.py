"""Figures of single runs. Each is written in full or not at all."""

import io
import pathlib
from typing import Any

from framework import files


def _save(figure, path: pathlib.Path) -> None:
  buffer = io.StringIO()
  figure.savefig(buffer, format='svg', bbox_inches='tight', metadata={'Date': None})
  files.write_atomically(path, buffer.getvalue())


def _axes(title: str, x: str, y: str):
  from matplotlib.figure import Figure  # no pyplot: no display and no global state
  figure = Figure(figsize=(6.4, 4.0))
  axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
  axes.grid(alpha=0.3)
  return figure, axes


def loss_curve(workdir: pathlib.Path) -> None:
  """Training loss and held-out loss by step, from metrics.jsonl, as loss.svg."""
  rows = files.read_rows(workdir / 'metrics.jsonl')
  figure, axes = _axes(workdir.name, 'step', 'nats per token')
  axes.plot([r['step'] for r in rows], [r['loss'] for r in rows], linewidth=1, label='training batch')
  held_out = [r for r in rows if 'validation_loss' in r]
  axes.plot([r['step'] for r in held_out], [r['validation_loss'] for r in held_out], 'o-', label='held out')
  axes.legend()
  _save(figure, workdir / 'loss.svg')


def loss_by_position(results: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Held-out loss by position in the window, one line a stride (Kaplan et al. 2020, arXiv:2001.08361, figure 20)."""
  figure, axes = _axes('loss by position', 'position in the window', 'nats per token')
  for result in results:
    points = [(i + 1, loss) for i, loss in enumerate(result['loss_by_position']) if loss is not None]
    axes.plot(*zip(*points), linewidth=1, label=f"stride {result['stride']}")
  axes.set_xscale('log')
  axes.legend()
  _save(figure, path)
