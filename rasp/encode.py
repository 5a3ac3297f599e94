"""Program -> heads, ramps of the feed-forward layers, and the features that they read.

Each consumer asks for the cheapest encoding it can work with. A feed-forward layer reads one number per input, exact or
nearly; attention logits read whole numbers that are exact: a value v itself and v^2 (a pointer: -(u - v)^2 is a product
of three), indicators of classes of values (a one-hot), or bits. A feature that a consumer asks for becomes a column of
the residual stream; those of a token or an index lie in the embedding tables, and features that differ by a scale and a
constant are one column. Scores are whole numbers below 2^24, so that they carry no rounding error at all.
"""

from collections.abc import Iterable
import itertools
import math
from typing import Any

import numpy as np

from rasp import interpreter, language
from rasp.conjunctions import Leaf, conjunctions
from rasp.domains import Analysis
from rasp.language import RaspError, Selector, SOp
from rasp.parts import Head, Reading, Slot, Step, Table

POINTER = 100  # the most values for which a computed v^2 stays exact through its ramps
RAW_ERROR = 2.0**-17  # what is lost to keys that are not selected


class Encoder:
  """Turns s-ops into readings; `heads`, `steps` and the two embedding tables are what was asked for on the way."""

  def __init__(self, analysis: Analysis, causal: bool, sharpness: int = 6, decoded: frozenset[SOp] = frozenset()):
    # sharpness: log2 of how nearly a count is proportional; decoded: maps whose inputs are made exact first.
    self.analysis, self.causal, self.sharpness, self.decoded = analysis, causal, sharpness, decoded
    self.longest = analysis.longest
    self.token = Table('token', len(analysis.vocabulary))
    self.index = Table('index', analysis.longest)
    self.heads: list[Head] = []
    self.steps: list[Step] = []
    self._tables: dict[SOp, Table] = {}
    self._heads: dict[Any, Head] = {}
    self._slots: dict[Any, Reading] = {}
    self._terms: dict[Selector, list[list[Leaf]]] = {}
    self._made: list[Any] = []  # keeps what is known by id alive

  # Values

  def codes(self, node: SOp) -> np.ndarray:
    """A number for every value: the value itself, undefined above all; for text its place."""
    d = self.analysis(node)
    if any(isinstance(v, str) for v in d.values):
      return np.arange(len(d.values), dtype=np.float64)
    undefined = math.floor(d.high) + 1
    return np.array([undefined if v is None else float(v) for v in d.values])

  def number(self, node: SOp) -> Reading:
    """The codes of a node, exact or nearly: what a feed-forward layer may read."""
    d = self.analysis(node)
    if d.terms is not None and not (len(d.terms) == 1 and node in d.terms):
      out = Reading(const=float(d.const))
      for term, k in d.terms.items():
        out = out + self.number(term) * float(k)
      return out
    if node.kind == 'width':
      return self._width(node)
    if node.kind == 'aggregate':
      return self._aggregate(node, None)
    return self.exact(node, self.codes(node))

  def exact(self, node: SOp, vector: np.ndarray) -> Reading:
    """A whole number for every value of a node, without error: what attention may read."""
    d = self.analysis(node)
    vector = np.asarray(vector, np.float64)
    if (vector == vector[0]).all():
      return Reading(const=float(vector[0]))
    if d.token or d.index:
      table, sequence = (self.token, self.analysis.vocabulary) if d.token else (self.index, [None] * self.longest)
      place = d.place
      values = [place[language.plain(v)] for v in interpreter.Trace(sequence)(node)]
      return Reading({table.feature(vector[values]): 1.0})
    if d.terms is not None and node not in d.terms:
      if len(d.terms) == 1:
        (term, k), = d.terms.items()
        place = d.place
        return self.exact(term, vector[[place[language.plain(k * v + d.const)] for v in self.analysis(term).values]])
      values = np.array([float(v) for v in d.values])
      slope = (vector[-1] - vector[0]) / (values[-1] - values[0])
      if np.array_equal(vector, vector[0] + slope * (values - values[0])) and all(
          self.analysis(t).whole for t in d.terms):
        out = Reading(const=float(vector[0] - slope * values[0] + slope * float(d.const)))
        for term, k in d.terms.items():
          out = out + self.exact(term, np.array(self.analysis(term).values, float)) * (slope * float(k))
        return out
    return Reading({self._step(node).feature(vector): 1.0})

  # Feed-forward steps

  def _step(self, node: SOp) -> Table:
    if node in self._tables:
      return self._tables[node]
    d = self.analysis(node)
    if d.values is None:
      raise RaspError(node.source, f'{node!r} takes too many values to be read by a selector or a function; compare it '
                                   'with a bound first')
    if d.table is not None:
      place = d.place
      inputs, table = list(d.inputs), np.vectorize(lambda v: place[v], otypes=[np.int64])(d.table)
    else:
      inputs, table = [node], np.arange(len(d.values))
    # A short function of many inputs has few changes in some order of them.
    readings, codes = [], []
    for axis, i in enumerate(inputs):
      slices = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
      if self._free(i) and i is not node:
        first, classes = np.unique(slices, axis=0, return_index=True, return_inverse=True)[1:]
        rank = np.argsort(np.argsort(first))
        classes = rank[classes.ravel()].astype(float)
        readings.append(self._coded(i, classes))
        table = np.take(table, np.sort(first), axis)
        codes.append(np.arange(len(first), dtype=float))
      else:
        made_exact = node in self.decoded and i is not node
        code = np.arange(table.shape[axis], dtype=float) if made_exact else self.codes(i)
        order = np.argsort(code)
        readings.append(self.exact(i, code) if made_exact else self.number(i))
        table = np.take(table, order, axis)
        codes.append(code[order])
    keep = [a for a in range(len(inputs)) if table.shape[a] > 1]
    table = table.reshape([table.shape[a] for a in keep])
    readings, codes = [readings[a] for a in keep], [codes[a] for a in keep]
    best = None
    for p in itertools.permutations(range(len(keep))) if len(keep) <= 4 else [tuple(range(len(keep)))]:
      flat = table.transpose(p).ravel()
      scales, span, gap = [0.0] * len(p), 0.0, 1.0
      for turn, a in enumerate(reversed(p)):  # the last axis moves fastest
        own = np.diff(codes[a]).min()
        if turn == 0:
          scales[a], gap = 1.0, own
        else:
          scales[a] = (span + gap) / own
        span += scales[a] * (codes[a][-1] - codes[a][0])
      score = (np.count_nonzero(np.diff(flat)), max(scales))
      if best is None or score < best[0]:
        best = score, p, scales, flat
    _, p, scales, flat = best
    z, levels = Reading(), np.zeros(1)
    for a in p:
      levels = (levels[:, None] + scales[a] * codes[a][None, :]).ravel()
    for a, r in enumerate(readings):
      z = z + r * scales[a]
    time = z.time + 1 if z.time % 2 == 0 else z.time + 2
    step = Step(node, z, levels, flat, time)
    self.steps.append(step)
    out = self._tables[node] = Table('step', len(d.values), time, step)
    return out

  def _free(self, node: SOp) -> bool:
    """Whether any code of a node's values can be had for a column."""
    d = self.analysis(node)
    return d.token or d.index or node.kind == 'map' and d.table is not None or (
        node.kind == 'aggregate' and self.analysis.copies(node))

  def _coded(self, node: SOp, codes: np.ndarray) -> Reading:
    if node.kind == 'aggregate' and not (self.analysis(node).token or self.analysis(node).index):
      return self._aggregate(node, codes)
    return self.exact(node, codes)

  # Attention

  def terms(self, selector: Selector) -> list[list[Leaf]]:
    if selector not in self._terms:
      self._terms[selector] = conjunctions(selector, self.analysis)
    return self._terms[selector]

  def _width(self, node: SOp) -> Reading:
    s = node.selector
    prior = s.kind if s.kind in ('first', 'last') else ''
    if prior:  # one key if any: whether there is one
      return self._aggregate(language.aggregate(s, 1, 0, one=True), None)
    out = Reading()
    for term in self.terms(s):
      out = out + self._slot(node, term, 'count', '', Reading(const=1.0), 0.0, (0.0, 1.0))
    return out

  def _aggregate(self, node: SOp, codes: np.ndarray | None) -> Reading:
    """An aggregate's value (codes None), or a code of it where it copies one."""
    d, x = self.analysis(node), node.args[0]
    s = node.selector
    prior = s.kind if s.kind in ('first', 'last') else ''
    terms = self.terms(s.args[0] if prior else s)
    default, copies = language.plain(node.value), self.analysis.copies(node)
    total = self.analysis.total(s)
    if d.values is not None:
      codes = self.codes(node) if codes is None else codes
      code = dict(zip(d.values, codes.tolist()))
      sink = 0.0 if total else code[default]
    else:
      code, sink = None, 0.0 if total else float(default)
    if not terms:
      return Reading(const=sink)
    xd = self.analysis(x)
    if copies:
      vector = np.array([code[v] for v in xd.values])
      if xd.whole and not (vector == vector.astype(int)).all() or xd.numeric and not xd.whole and (
          vector == [float(v) for v in xd.values]).all():
        value = self.number(x)
      else:
        value = self.exact(x, vector)
      span = (float(vector.min()), float(vector.max()))
    else:
      whole = xd.whole and all(self.analysis(t).whole for t in xd.terms or ())
      value = self.exact(x, np.array(xd.values, float)) if whole else self.number(x)
      span = (float(xd.low), float(xd.high))
    if len(terms) > 1 and (prior or not copies):
      terms = self.terms(self._product(s.args[0] if prior else s))
    if len(terms) == 1:
      return self._slot(node, terms[0], 'total' if total else 'sink', prior, value, sink, span)
    out = Reading(const=sink)  # at most one of them selects: each brings the difference from the default, or 0
    for term in terms:
      out = out + self._slot(node, term, 'sink', '', value + Reading(const=-sink), 0.0,
                             (span[0] - sink, span[1] - sink))
    return out

  def _product(self, selector: Selector) -> Selector:
    """Any selector as one predicate on tuples: what a mean over an `or` needs."""
    leaves = language.leaves(selector)
    sides = []
    for side in ('keys', 'queries'):
      ops = list(dict.fromkeys(getattr(leaf, side) for leaf in leaves))
      known: dict[str, tuple] = {}
      def pack(*values, known=known):
        known[repr(values)] = values
        return repr(values)
      node = SOp('map', tuple(ops), 'default', pack, source=selector.source, name=f'{side} of {selector!r}')
      size = np.prod([float(len(self.analysis(o).values or range(10**6))) for o in ops])
      if size > 2**11:
        raise RaspError(selector.source, f'an aggregate over `|` needs a table of {size:.0f} {side}; aggregate each '
                                         'part by itself, or narrow the ranges')
      self.analysis(node)
      sides.append((node, {o: i for i, o in enumerate(ops)}, known))
    (keys, key_ops, key_of), (queries, query_ops, query_of) = sides
    def holds(s, k, q):
      if s.kind == 'leaf':
        return interpreter.truth(s, key_of[k][key_ops[s.keys]], query_of[q][query_ops[s.queries]])
      parts = [holds(p, k, q) for p in s.args]
      return not parts[0] if s.kind == 'not' else all(parts) if s.kind == 'and' else any(parts)
    return Selector('leaf', (), keys, queries, 'apply product', lambda k, q: holds(selector, k, q), selector.source)

  def _slot(self, node: SOp, term: list[Leaf], mode: str, prior: str, value: Reading, sink: float,
            span: tuple[float, float]) -> Reading:
    """A head's output for one value, on a head shared by all that select alike."""
    at = (id(term), value.const, tuple((id(p), k) for p, k in value.parts.items()), mode, prior, sink)
    if at in self._slots:
      return self._slots[at]
    self._made += [term, value]
    head = self._head(node, term, mode, prior, value, max(abs(span[1] - span[0]), abs(sink - span[0]),
                                                           abs(sink - span[1])))
    slot = Slot(head, value, sink, min(span[0], sink), max(span[1], sink))
    head.slots.append(slot)
    self._slots[at] = Reading({slot: 1.0})
    return self._slots[at]

  def _head(self, node: SOp, term: list[Leaf], mode: str, prior: str, value: Reading, spread: float) -> Head:
    # Keys that do not match lose at most RAW_ERROR of the spread of the values, by the gap between scores.
    N = self.longest
    unit = math.ceil(math.log((N + 1) * max(spread, 1.0) / RAW_ERROR))
    if mode == 'count':
      level, gap = math.ceil(math.log(max(2, N) ** 2 * 2.0**self.sharpness)), math.ceil(math.log(N * N / RAW_ERROR))
    elif prior:
      level, gap = -unit * (N - 1) - unit, unit * (N - 1) + 2 * unit
    elif mode == 'sink':
      level, gap = -unit, 2 * unit
    else:
      level, gap = -unit, unit
    head = Head(node, mode, 0, gap, level, gap if mode == 'count' else unit)
    for leaf in self._with_indices(term, head):
      head.scores += self._scores(leaf, gap, mode == 'total' and len(term) == 1 and not prior)
    if prior:
      away = np.arange(N) - (N - 1.0) if prior == 'last' else -np.arange(N, dtype=float)
      head.scores.append((Reading(const=float(unit)), Reading({self.index.feature(away): 1.0})))
    head.scores = _merged(head.scores)
    latest = max([value.time] + [r.time for pair in head.scores for r in pair])
    head.time = latest + 1 if latest % 2 else latest + 2
    same = self._heads.setdefault((id(term), mode, prior, head.time), head)
    if same is head:
      self.heads.append(head)
      return head
    if gap > same.gap:  # a slot with a wider spread: the sharper head serves both
      same.gap, same.level, same.margin = gap, level, head.margin
      same.scores, same.at_bos, same.bias = head.scores, head.at_bos, head.bias
    return same

  def _with_indices(self, term: list[Leaf], head: Head) -> Iterable[Leaf]:
    """The leaves that need scores; a predicate on distances becomes the head's bias, the causal one the mask."""
    for leaf in term:
      if leaf.keys is not None:
        yield leaf
        continue
      grid, N = leaf.matrix, self.longest
      matters = np.tri(N, dtype=bool) if self.causal else np.ones((N, N), bool)
      if grid[matters].all():
        continue
      if (grid[1:, 1:] == grid[:-1, :-1])[matters[1:, 1:]].all():
        allowed = np.array([grid[max(0, t), max(0, -t)] if t >= 0 or not self.causal else grid[0, 0]
                            for t in range(1 - N, N)])
        R = max([1] + [abs(t) + 1 for t in range(2 - N, N - 1) if allowed[t + N - 1] != allowed[
            (2 * N - 2 if t > 0 else 0)]]) if N > 1 else 1
        R = min(R, N - 1) or 1
        away = np.clip(np.arange(-R, R + 1), 1 - N, N - 1)
        head.bias = np.where(allowed[away + N - 1], 0.0, -float(head.gap))
        # BOS stands at distance i + 1 from token i, which must not change its score.
        blocked = np.array([head.bias[min(i + 1, R) + R] for i in range(N)])
        head.at_bos = (Reading(const=-blocked[0]) if (blocked == blocked[0]).all() else
                       Reading({self.index.feature(-blocked): 1.0}))
        continue
      yield Leaf(language.indices, language.indices, grid, leaf.source)

  def _scores(self, leaf: Leaf, gap: int, relative: bool) -> list[tuple[Reading, Reading]]:
    """(query, key) pairs whose products sum to 0 on a match and to at most -gap elsewhere.

    `relative`: a number that depends on the query alone may be missing.
    """
    m, one = leaf.matrix, Reading(const=1.0)
    if (m == m[:1]).all():  # the key alone decides
      return [(Reading(const=float(gap)), self.exact(leaf.keys, m[0] - 1.0))]
    if (m == m[:, :1]).all():
      return [(gap * self.exact(leaf.queries, m[:, 0] - 1.0), one)]
    equal = self._equality(leaf)
    if equal is not None and m.shape[1] > 2:
      u, v = equal
      d_k, d_q = self.analysis(leaf.keys), self.analysis(leaf.queries)
      computed = [d for d, needed in ((d_k, True), (d_q, not relative)) if needed and not (d.token or d.index)]
      if all(len(d.values) <= POINTER for d in computed):
        middle = round((v.min() + v.max()) / 2)
        u, v = u - middle, v - middle
        scores = [(2.0 * gap * self.exact(leaf.queries, u), self.exact(leaf.keys, v)),
                  (Reading(const=-float(gap)), self.exact(leaf.keys, v * v))]
        return scores if relative else scores + [(-float(gap) * self.exact(leaf.queries, u * u), one)]
      low, high = min(u.min(), v.min()), max(u.max(), v.max())
      bits = range(int(high - low).bit_length())
      sign = lambda x, b: 2.0 * ((x - low).astype(int) >> b & 1) - 1
      half = -(-gap // 2)
      return [(half * self.exact(leaf.queries, sign(u, b)), self.exact(leaf.keys, sign(v, b))) for b in bits] + [
          (Reading(const=-float(half * len(bits))), one)]
    columns, column = np.unique(m, axis=1, return_inverse=True)
    rows, row = np.unique(m, axis=0, return_inverse=True)
    scores = []
    if columns.shape[1] <= rows.shape[0]:
      for c in range(columns.shape[1]):
        scores.append((gap * self.exact(leaf.queries, columns[:, c] - 1.0),
                       self.exact(leaf.keys, (column.ravel() == c) * 1.0)))
    else:
      for r in range(rows.shape[0]):
        scores.append((gap * self.exact(leaf.queries, (row.ravel() == r) * 1.0), self.exact(leaf.keys, rows[r] - 1.0)))
    return scores

  def _equality(self, leaf: Leaf) -> tuple[np.ndarray, np.ndarray] | None:
    """Whole codes of queries and keys if the leaf asks whether the two are equal."""
    k, q = self.analysis(leaf.keys), self.analysis(leaf.queries)
    if k.whole and q.whole:
      u, v = np.array(q.values, float), np.array(k.values, float)
    else:
      both = sorted(set(k.values) | set(q.values), key=language.order)
      place = {x: float(i) for i, x in enumerate(both)}
      u, v = np.array([place[x] for x in q.values]), np.array([place[x] for x in k.values])
      if None in place:  # undefined selects nothing: not even undefined
        return None
    return (u, v) if np.array_equal(leaf.matrix, u[:, None] == v[None, :]) else None


def _merged(scores: list[tuple[Reading, Reading]]) -> list[tuple[Reading, Reading]]:
  """Products with a constant side share one head dimension."""
  by_query, by_key, rest = Reading(), Reading(), []
  for q, k in scores:
    if not q.parts:
      by_query = by_query + k * q.const
    elif not k.parts:
      by_key = by_key + q * k.const
    else:
      rest.append((q, k))
  one = Reading(const=1.0)
  return rest + ([(one, by_query)] if by_query.parts or by_query.const else []) + ([(by_key, one)] if by_key.parts or
                                                                                   by_key.const else [])
