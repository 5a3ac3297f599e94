"""Pictures of a program on an input: each selector as a matrix between what it reads and what it makes.

Rows are queries, columns are keys, as in Rush's RASP lecture: the values that are aggregated stand above the columns,
the result beside the rows. With a compiled program the attention of its heads stands beside the ideal matrices, with
BOS as the first column.
"""

from collections.abc import Sequence
import dataclasses
import io
import pathlib
from typing import Any

import numpy as np

from foundation import files
from foundation.errors import ConfigError
from foundation.figures import literal
from rasp import interpreter, language
from rasp.compiling import Compiled
from rasp.language import SOp, Value

FORMATS = ('.svg', '.png')


@dataclasses.dataclass(frozen=True)
class Panel:
  """One step: `above` are the values read (for a width nothing), `left` the tokens, `right` the result."""
  title: str
  matrix: list[list[bool]]
  above: list[Value]
  left: list[Value]
  right: list[Value]
  attention: np.ndarray | None = None  # [query, BOS and keys]


def show(value: Value) -> str:
  return '_' if value is None else 'T' if value is True else 'F' if value is False else str(value)


def panels(program: SOp, sequence: Sequence[Value], compiled: Compiled | None = None) -> list[Panel]:
  """A panel for every aggregate and width, inputs first; with `compiled` for every head that it has instead."""
  trace = interpreter.Trace(list(sequence))
  def panel(node: SOp, title: str, attention=None) -> Panel:
    above = trace(node.args[0]) if node.args else [''] * len(sequence)
    return Panel(title, trace.matrix(node.selector), above, list(sequence), trace(node), attention)
  if compiled is None or compiled.plan is None:
    return [panel(n, repr(n)) for n in language.nodes(program) if n.selector is not None]
  out, weights = [], compiled.activations(sequence).weights_NxHxTxT
  for layer in range(compiled.plan.layers):
    for number, head in enumerate(h for h in compiled.plan.circuit.heads if h.time == 2 * layer):
      out.append(panel(head.node, f'layer {layer + 1}, head {number + 1}: {head.node!r}', weights[layer, number, 1:]))
  return out


def text(program: SOp, sequence: Sequence[Value]) -> str:
  """The panels for a terminal."""
  lines = []
  for p in panels(program, sequence):
    width = max(len(show(v)) for v in (*p.above, *p.left, ' '))
    left = max(len(show(v)) for v in p.left)
    lines.append(p.title)
    lines.append(' ' * left + ' ' + ' '.join(show(v).rjust(width) for v in p.above))
    for token, row, value in zip(p.left, p.matrix, p.right):
      lines.append(show(token).rjust(left) + ' ' + ' '.join(('#' if m else '.').rjust(width) for m in row) + '  ' +
                   show(value))
    lines.append('')
  result = interpreter.run(program, list(sequence))
  return '\n'.join([*lines, f'{program!r}: ' + ' '.join(map(show, result))])


def figure(program: SOp, sequence: Sequence[Value], compiled: Compiled | None = None) -> Any:
  """All panels as one matplotlib figure."""
  from matplotlib.figure import Figure  # no pyplot: no display and no global state
  rows = panels(program, sequence, compiled)
  columns = 1 if all(p.attention is None for p in rows) else 2
  across = max(1, min(len(rows), 4 // columns))
  down = -(-max(1, len(rows)) // across)
  n = len(sequence)
  size = 1.2 + 0.26 * n
  drawing = Figure(figsize=(across * columns * (size + 0.6), down * (size + 0.3)), layout='constrained')
  axes = drawing.subplots(down, across * columns, squeeze=False)
  for a in axes.ravel():
    a.set_axis_off()
  for number, p in enumerate(rows):
    at = (number // across, number % across * columns)
    _matrix(axes[at], np.array(p.matrix, float), p, p.above)
    axes[at].set_title(literal(p.title[:18 * columns + n]), fontsize=9, loc='left')
    if p.attention is not None:
      _matrix(axes[at[0], at[1] + 1], p.attention, p, ['BOS', *p.above])
      axes[at[0], at[1] + 1].set_title('compiled', fontsize=9, loc='left')
  return drawing


def _matrix(axes: Any, matrix: np.ndarray, p: Panel, above: Sequence[Value]) -> None:
  axes.set_axis_on()
  axes.imshow(matrix, cmap='Blues', vmin=0, vmax=1, aspect='equal')
  axes.set_xticks(range(matrix.shape[1]), [literal(show(v)) for v in above], fontsize=7, rotation=90 if any(
      len(show(v)) > 2 for v in above) else 0)
  axes.xaxis.tick_top()
  axes.set_yticks(range(matrix.shape[0]), [literal(show(v)) for v in p.left], fontsize=7)
  right = axes.secondary_yaxis('right')
  right.set_yticks(range(matrix.shape[0]), [literal(show(v)) for v in p.right], fontsize=7, color='tab:red')
  for a in (axes, right):
    a.tick_params(length=0)
  axes.set_xticks(np.arange(-.5, matrix.shape[1]), minor=True)
  axes.set_yticks(np.arange(-.5, matrix.shape[0]), minor=True)
  axes.grid(which='minor', color='0.85', linewidth=0.5)
  axes.tick_params(which='minor', length=0)


def save(drawing: Any, path: pathlib.Path) -> None:
  """Writes a figure as a new .svg or .png, in full or not at all; the same picture again is left as it is.

  Raises:
    ConfigError: another name, or one of something else.
  """
  if path.suffix not in FORMATS:
    raise ConfigError(f"--out is '{path}'; expected a name that ends in {' or '.join(FORMATS)}, nearest is "
                      f"'{path.with_suffix('.svg')}'")
  if not path.parent.is_dir():
    raise ConfigError(f"--out is '{path}', whose folder does not exist; expected an existing folder")
  from matplotlib import rc_context
  buffer = io.BytesIO()
  with rc_context({'svg.hashsalt': 'lemma', 'svg.fonttype': 'none'}):  # the same picture is the same file
    still = {'Date': None} if path.suffix == '.svg' else None
    drawing.savefig(buffer, format=path.suffix[1:], dpi=150, bbox_inches='tight', metadata=still)
  try:
    files.write_new(path, buffer.getvalue())
  except FileExistsError:
    raise ConfigError(f"--out is '{path}', which exists and is not this picture; expected a new name") from None
