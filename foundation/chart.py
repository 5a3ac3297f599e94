"""Lines that are told apart under the pointer, as a part of a page: the reader chooses what either axis shows.

The numbers stand in the page as JSON and are drawn there by a script, without any library; where scripts are off, a
still picture is shown.
"""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import html
import json
import math

from foundation.printable import printable

MOST = 400  # points of a line
Values = Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Chart:
  """lines: {name: {quantity: values}}, the quantities of a line of one length, None where one is not known.

  x, y: the quantities that an axis may show, the first of them at first. log: those whose axis is logarithmic at first.
  still: an SVG document for who has no scripts.
  """
  lines: Mapping[str, Mapping[str, Values]]
  x: Sequence[str]
  y: Sequence[str]
  log: Sequence[str]
  still: str
  caption: str
  source: str = ''


def thinned(count: int, kept: Sequence[int] = ()) -> list[int]:
  """At most MOST of the places 0 .. count - 1, evenly spread, with the last and as many of `kept` as there is room for."""
  room = list(kept)[:: max(1, -(-len(kept) // (MOST // 2)))]
  even = MOST - len(room)
  places = range(count) if count <= even else [round(i * (count - 1) / (even - 1)) for i in range(even)]
  return sorted({*places, *room})


def render(chart: Chart) -> str:
  """The chart as HTML."""
  def clean(values: Values) -> list[float | None]:
    return [None if v is None or not math.isfinite(v) else v for v in values]
  data = {'x': list(chart.x), 'y': list(chart.y), 'log': list(chart.log),
          'lines': [{'name': printable(name, 120), 'values': {key: clean(values) for key, values in quantities.items()}}
                    for name, quantities in chart.lines.items()]}
  text = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')
  caption = html.escape(printable(chart.caption))
  still = base64.b64encode(chart.still.encode()).decode()
  return (f'<figure class="chart"><script type="application/json">{text}</script>'
          f'<noscript><img alt="{caption}" src="data:image/svg+xml;base64,{still}"></noscript>'
          f'<figcaption>{caption}</figcaption></figure>'
          + (f'<p class="source">from {html.escape(printable(chart.source))}</p>' if chart.source else ''))


STYLE = """
.chart .choices { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .85rem; align-items: center }
.chart select { font: inherit; max-width: 15rem; color: inherit; background: var(--paper); border: 1px solid var(--line) }
.chart svg { width: 100%; height: auto; display: block; touch-action: pan-y }
.chart svg text { fill: var(--soft); font-size: 12px }
.chart .grid { stroke: var(--line) }
.chart .line { fill: none; stroke-width: 1.4; stroke-linejoin: round }
.chart.picked .line { opacity: .13 }
.chart.picked .line.this { opacity: 1; stroke-width: 2.6 }
.chart .told { font-size: .9rem; min-height: 1.4em; margin: .2rem 0; overflow-wrap: anywhere }
tr.this { background: color-mix(in srgb, var(--blue) 18%, transparent) }
"""

# Draws each chart; the line nearest to the pointer, chosen in the list or in a row of the table is shown before the rest.
SCRIPT = """
document.querySelectorAll('figure.chart').forEach(figure => {
  const data = JSON.parse(figure.querySelector('script').textContent), NS = 'http://www.w3.org/2000/svg';
  const W = 760, H = 400, L = 64, R = 12, T = 10, B = 40;
  const add = (tag, parent, attributes = {}, text = '') => {
    const it = tag[0] === '<' ? document.createElement(tag.slice(1)) : document.createElementNS(NS, tag);
    for (const [k, v] of Object.entries(attributes)) it.setAttribute(k, v);
    if (text) it.textContent = text;
    parent.append(it);
    return it;
  };
  const choices = document.createElement('div');
  choices.className = 'choices';
  const choose = (label, names) => {
    const it = add('<select', add('<label', choices, {}, label + ' '), {'aria-label': label});
    names.forEach(n => add('<option', it, {value: n}, n));
    return it;
  };
  const x = choose('x', data.x), y = choose('y', data.y);
  const box = label => {
    const wrap = add('<label', choices), it = add('<input', wrap, {type: 'checkbox'});
    wrap.append(' ' + label);
    return it;
  };
  const logX = box('log x'), logY = box('log y');
  const pick = choose('show', ['all', ...data.lines.map(l => l.name)]);
  const svg = document.createElementNS(NS, 'svg');
  svg.setAttribute('viewBox', `0 0 ${W} ${H}`);
  svg.setAttribute('role', 'img');
  const told = document.createElement('p');
  told.className = 'told';
  figure.prepend(choices, svg, told);
  const show = v => Math.abs(v) >= 1e5 || v && Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(5));
  const color = i => `hsl(${(i * 137.5) % 360} 62% ${i % 2 ? 42 : 55}%)`;
  let drawn = [];
  const scale = (low, high, log, from, to) => {
    if (low === high) { const d = Math.abs(low) / 10 || 1; low -= log ? low / 2 : d; high += d; }
    const f = log ? Math.log10 : v => v, a = f(low), b = f(high);
    const at = v => from + (f(v) - a) / (b - a) * (to - from), ticks = [];
    const marks = b - a > 3 ? [1] : [1, 2, 5];
    if (log) for (let e = Math.floor(a); e <= b; e++) for (const m of marks) ticks.push(m * 10 ** e);
    else {
      const raw = (high - low) / 6, unit = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 5, 10].find(m => m * unit >= raw) * unit;
      for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) ticks.push(+v.toPrecision(12));
    }
    return {at, ticks: ticks.filter(v => v >= low && v <= high)};
  };
  const draw = () => {
    svg.replaceChildren();
    const good = (v, log) => v !== null && v !== undefined && (!log || v > 0);
    const points = data.lines.map(line => {
      const xs = line.values[x.value] || [], ys = line.values[y.value] || [];
      return xs.map((v, i) => [v, ys[i]]).filter(p => good(p[0], logX.checked) && good(p[1], logY.checked));
    });
    const all = points.flat();
    if (!all.length) {
      add('text', svg, {x: W / 2, y: H / 2, 'text-anchor': 'middle'}, 'nothing known');
      drawn = [];
      return;
    }
    const range = k => all.reduce((r, p) => [Math.min(r[0], p[k]), Math.max(r[1], p[k])], [Infinity, -Infinity]);
    const h = scale(...range(0), logX.checked, L, W - R), v = scale(...range(1), logY.checked, H - B, T);
    for (const t of h.ticks) {
      add('line', svg, {class: 'grid', x1: h.at(t), x2: h.at(t), y1: T, y2: H - B});
      add('text', svg, {x: h.at(t), y: H - B + 16, 'text-anchor': 'middle'}, show(t));
    }
    for (const t of v.ticks) {
      add('line', svg, {class: 'grid', x1: L, x2: W - R, y1: v.at(t), y2: v.at(t)});
      add('text', svg, {x: L - 6, y: v.at(t) + 4, 'text-anchor': 'end'}, show(t));
    }
    add('text', svg, {x: (L + W - R) / 2, y: H - 6, 'text-anchor': 'middle'}, x.value);
    const middle = (T + H - B) / 2;
    add('text', svg, {x: 14, y: middle, 'text-anchor': 'middle', transform: `rotate(-90 14 ${middle})`}, y.value);
    drawn = points.map((ps, i) => {
      const places = ps.map(p => [h.at(p[0]), v.at(p[1]), ...p]), name = data.lines[i].name;
      const line = add('polyline', svg, {class: 'line', stroke: color(i), 'data-name': name,
                                         points: places.map(p => `${p[0].toFixed(1)},${p[1].toFixed(1)}`).join(' ')});
      const group = [line];
      if (places.length && places.length <= 12)
        for (const p of places)
          group.push(add('circle', svg, {class: 'line', cx: p[0], cy: p[1], r: 2, stroke: color(i)}));
      return {name, places, group};
    });
    mark(pick.value === 'all' ? null : pick.value);
  };
  const rows = [...(figure.closest('section') || document).querySelectorAll('tbody tr')];
  const mark = (name, place) => {
    figure.classList.toggle('picked', name !== null);
    for (const d of drawn) d.group.forEach(g => g.classList.toggle('this', d.name === name));
    const top = drawn.find(d => d.name === name);
    if (top) svg.append(...top.group);
    rows.forEach(r => r.classList.toggle('this', name !== null && r.cells[0].textContent === name));
    const last = top && (place || top.places[top.places.length - 1]);
    const where = last ? `: ${y.value} ${show(last[3])} at ${x.value} ${show(last[2])}` : '';
    told.textContent = name === null ? '' : name + where;
  };
  svg.addEventListener('pointermove', event => {
    const r = svg.getBoundingClientRect();
    const px = (event.clientX - r.left) * W / r.width, py = (event.clientY - r.top) * H / r.height;
    let best = null, least = 900;
    for (const d of drawn) for (const p of d.places) {
      const far = (p[0] - px) ** 2 + (p[1] - py) ** 2;
      if (far < least) { least = far; best = [d.name, p]; }
    }
    mark(...(best || [pick.value === 'all' ? null : pick.value]));
  });
  const back = () => mark(pick.value === 'all' ? null : pick.value);
  svg.addEventListener('pointerleave', back);
  rows.forEach(r => {
    r.addEventListener('pointerenter', () => mark(r.cells[0].textContent));
    r.addEventListener('pointerleave', back);
  });
  const turned = (axis, log) => { log.checked = data.log.includes(axis.value); draw(); };
  x.addEventListener('change', () => turned(x, logX));
  y.addEventListener('change', () => turned(y, logY));
  [logX, logY, pick].forEach(it => it.addEventListener('change', draw));
  logX.checked = data.log.includes(x.value);
  logY.checked = data.log.includes(y.value);
  draw();
});
"""
