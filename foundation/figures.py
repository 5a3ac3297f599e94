"""One look for all figures, and the same bytes for the same figure. matplotlib is imported when one is drawn."""

import dataclasses
import io

from foundation.printable import printable

BLUE, ORANGE, GREY = '#1f5fa8', '#c8601a', '#777777'


def literal(text: object) -> str:
  """Somebody else's text as matplotlib draws it letter by letter: what stands between two dollars is no formula."""
  return printable(text, 120).replace('$', r'\$')


def axes(title: str, x: str, y: str, log: str = ''):
  """(figure, axes) with these labels; log: which axes are logarithmic, of 'x', 'y' and 'xy'."""
  from matplotlib.figure import Figure  # no pyplot: no display and no global state
  figure = Figure(figsize=(6.4, 4.0))
  plot = figure.add_subplot(title=literal(title), xlabel=x, ylabel=y)
  plot.grid(alpha=0.3)
  if 'x' in log:
    plot.set_xscale('log')
  if 'y' in log:
    plot.set_yscale('log')
  return figure, plot


def svg(figure) -> str:
  """A matplotlib figure as an SVG document without date or random names."""
  import matplotlib
  buffer = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': 'lemma'}):
    figure.savefig(buffer, format='svg', bbox_inches='tight', metadata={'Date': None})
  return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Picture:
  """An SVG document that a notebook shows."""
  svg: str

  def _repr_svg_(self) -> str:
    return self.svg


def picture(figure) -> Picture:
  """A matplotlib figure for the end of a notebook's cell, whatever its backend."""
  return Picture(svg(figure))
