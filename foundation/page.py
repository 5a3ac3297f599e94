"""One self-contained HTML page: sections of sentences, tables that sort, and figures. It needs no network.

Whatever is on the page says which file it was read from, relative to the page.
"""

import base64
from collections.abc import Sequence
import dataclasses
import html
import math
from typing import Any

from foundation import chart
from foundation.printable import printable

MARK = '<meta name="generator" content="lemma report">'  # how a page of ours is known before it is written anew
LISTED = 16  # sections; the list of more of them is closed at first


@dataclasses.dataclass(frozen=True)
class Table:
  """rows[i][j]: numbers, strings or None (nothing known), under columns[j]; a click on a column sorts by it.

  rising: the column by which the rows are sorted already, if there is one.
  """
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  source: str = ''
  rising: str = ''


@dataclasses.dataclass(frozen=True)
class Figure:
  """An SVG document and what it shows."""
  svg: str
  caption: str
  source: str = ''


@dataclasses.dataclass(frozen=True)
class Text:
  """Text whose lines are kept, such as a sample or what a command printed."""
  text: str
  source: str = ''


@dataclasses.dataclass(frozen=True)
class Details:
  """Something that is closed until it is asked for."""
  title: str
  content: Table | Text


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and, below it, paragraphs (str), tables and figures in order."""
  title: str
  blocks: Sequence['str | Table | Figure | Text | Details | chart.Chart']


def _escape(text: object) -> str:
  return html.escape(printable(text, keep='\n\t'))


def number(value: Any) -> str:
  """A value as people read it: 467,072; 0.0003; 1.35e+16; 2.0231. Nothing known is an empty cell."""
  if value is None:
    return ''
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  if not math.isfinite(value):
    return str(value)
  if value == int(value) and abs(value) < 1e10:
    return f'{int(value):,}'
  return f'{value:.4e}' if abs(value) >= 1e6 or abs(value) < 1e-4 else f'{value:,.4f}'.rstrip('0') \
      if abs(value) >= 0.1 else f'{value:.4g}'


def _cell(value: Any) -> str:
  if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
    return f'<td class="n" data-v="{float(value)!r}">{number(value)}</td>'
  return f'<td>{_escape(number(value))}</td>'


def _source(text: str) -> str:
  return f'<p class="source">from {_escape(text)}</p>' if text else ''


def _table(table: Table) -> str:
  head = ''.join(f'<th aria-sort="{"ascending" if c == table.rising else "none"}"><button type="button">{_escape(c)}'
                 '</button></th>' for c in table.columns)
  body = '\n'.join('<tr>' + ''.join(_cell(v) for v in row) + '</tr>' for row in table.rows)
  return (f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
          f'{_source(table.source)}')


def _figure(figure: Figure) -> str:
  # As an image, so that the names inside one drawing never meet those of another.
  data = base64.b64encode(figure.svg.encode()).decode()
  caption = _escape(figure.caption)
  return (f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}"><figcaption>{caption}</figcaption>'
          f'{_source(figure.source)}</figure>')


def _block(block: 'str | Table | Figure | Text | Details | chart.Chart') -> str:
  if isinstance(block, chart.Chart):
    return chart.render(block)
  if isinstance(block, str):
    return f'<p>{_escape(block)}</p>'
  if isinstance(block, Text):
    return f'<pre class="wide">{_escape(block.text)}</pre>{_source(block.source)}'
  if isinstance(block, Details):
    return f'<details><summary>{_escape(block.title)}</summary>{_block(block.content)}</details>'
  return _table(block) if isinstance(block, Table) else _figure(block)


def render(title: str, summary: str, sections: Sequence[Section], refresh: int = 0) -> str:
  """The page as text: the summary sentence first, then a list of contents, then the sections.

  refresh: seconds after which a browser asks for it again; 0: never.
  """
  names = [f's{i}' for i in range(len(sections))]
  contents = ''.join(f'<li><a href="#{n}">{_escape(s.title)}</a></li>' for n, s in zip(names, sections))
  contents = f'<ul>{contents}</ul>'
  if len(sections) > LISTED:
    contents = f'<details><summary>{len(sections)} sections</summary>{contents}</details>'
  body = '\n'.join(f'<section id="{n}"><h2>{_escape(s.title)}</h2>\n' + '\n'.join(map(_block, s.blocks)) +
                   '</section>' for n, s in zip(names, sections))
  return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{MARK}\n'
          '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
          + (f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else '') +
          f'<link rel="icon" href="data:,"><title>{_escape(title)}</title>\n<style>{STYLE}{chart.STYLE}</style></head>\n<body>'
          f'<h1>{_escape(title)}</h1>\n<p class="summary">{_escape(summary)}</p>\n'
          f'<nav>{contents}</nav>\n{body}\n<script>{SCRIPT}{chart.SCRIPT}</script></body></html>\n')


STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5c6370; --line: #d8dbe0; --paper: #fdfdfc; --blue: #1f5fa8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --soft: #9aa1ac; --line: #3a3e46; --paper: #17181b; --blue: #8ab8f0 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem;
  overflow-wrap: anywhere }
.summary { font-size: 1.15rem }
p { max-width: 48rem; overflow-wrap: anywhere; white-space: pre-line }
a { color: var(--blue) }
nav ul { columns: 16rem; padding-left: 1.1rem; margin: 1rem 0 0; font-size: .9rem }
.wide { overflow-x: auto }
pre { font-size: .85rem; line-height: 1.35; border-left: 3px solid var(--line); padding-left: .7rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top;
  white-space: nowrap }
td.n { text-align: right }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: left }
th[aria-sort=ascending] button::after { content: ' ▲' }
th[aria-sort=descending] button::after { content: ' ▼' }
figure { margin: 1rem 0 }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
figcaption { font-size: .9rem }
.source { color: var(--soft); font-size: .78rem; margin: .1rem 0 .8rem; overflow-wrap: anywhere }
details { margin: .5rem 0 } summary { cursor: pointer; color: var(--blue) }
@media print {
  body { max-width: none; font-size: 11px; padding: 0 } nav { display: none } section { break-inside: auto }
  figure, tr { break-inside: avoid } .wide { overflow: visible } td, th { white-space: normal }
}
"""

# A click sorts by that column, a second one the other way; rows without a value stay at the end.
SCRIPT = """
document.querySelectorAll('th button').forEach(button => button.addEventListener('click', () => {
  const th = button.parentElement, table = th.closest('table'), body = table.tBodies[0];
  const column = [...th.parentElement.children].indexOf(th);
  const down = th.getAttribute('aria-sort') === 'ascending';
  for (const other of th.parentElement.children) other.setAttribute('aria-sort', 'none');
  th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const value = row => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const order = (a, b) => {
    const x = value(a), y = value(b);
    if (x === '' || y === '') return (x === '') - (y === '');
    const sign = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
    return down ? -sign : sign;
  };
  body.append(...[...body.rows].sort(order));
}));
"""
