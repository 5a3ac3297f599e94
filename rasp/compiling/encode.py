"""What each layer has to compute for a program: heads, steps of the feed-forward layers, and features that they read.

Each consumer asks for the cheapest encoding it can work with. A feed-forward layer reads one number per input, exact or
nearly; attention logits read whole numbers that are exact: a value v itself and v^2 (a pointer: -(u - v)^2 is a product
of three), indicators of classes of values (a one-hot), or bits. A feature that a consumer asks for becomes a column of
the residual stream; those of a token or an index lie in the embedding tables, and features that differ by a scale and a
constant are one column. Scores are whole numbers below 2^24, so that they carry no rounding error at all.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from rasp import interpreter, language
from rasp.compiling import said
from rasp.compiling.analysis import Analysis, is_number
from rasp.compiling.circuit import Circuit, Feature, Gate, Head, Output, Reading, Slot, Step, Table
from rasp.compiling.conjunctions import Leaf, Term, conjunctions, product
from rasp.language import RaspError, Selector, SOp

POINTER = 100  # the most values for which a computed v^2 stays exact through its ramps
SQUARES = 2**23  # the largest scores of pointers
HEADS = 12  # more for one selector than a head that reads tuples is worth
RAW_ERROR = 2.0**-17  # what is lost to keys that are not selected
ONE = Reading(const=1.0)


@dataclasses.dataclass(frozen=True)
class Effort:
  """How dearly a program is encoded: the cheapest at first, and more where a proof is refused.

  apart: maps that keep their own arguments as inputs, for two layers in place of a step of too many ramps. sharpness:
  log2 of how nearly a count is proportional. decoded: maps whose inputs are made exact in a layer before. gated:
  `where`s that pass a number on or stop it, in place of a table of its values. listed: whether fractions are said as
  listed values, where they cannot be read as numbers. digits: in how many the listed values of the output are said.
  """
  apart: frozenset[SOp] = frozenset()
  sharpness: int = 6
  decoded: frozenset[SOp] = frozenset()
  gated: frozenset[SOp] = frozenset()
  listed: bool = False
  digits: int = 1


def encode(root: SOp, analysis: Analysis, causal: bool, effort: Effort) -> Circuit:
  """The heads, steps and features that compute `root` and say it."""
  builder = _Builder(analysis, causal, effort)
  return builder.circuit(said.output(builder, root))


class _Features:
  """The features that are asked of one table, each once and in that order."""

  def __init__(self, source: Step | Any, size: int, time: int = -1):  # or 'token' or 'index'
    self.source, self.size, self.time = source, size, time
    self.by_vector: dict[bytes, Feature] = {}

  def reading(self, vector: np.ndarray) -> Reading:
    vector = np.asarray(vector, np.float64)
    return Reading(((self.by_vector.setdefault(vector.tobytes(), Feature(vector, self.time)), 1.0),))

  def table(self) -> Table:
    return Table(self.source, self.size, tuple(self.by_vector.values()))


class _Builder:
  """Turns s-ops into readings, and keeps what they read: every head, step and feature once."""

  def __init__(self, analysis: Analysis, causal: bool, effort: Effort):
    self.analysis, self.causal, self.effort, self.longest = analysis, causal, effort, analysis.longest
    self.token = _Features('token', len(analysis.vocabulary))
    self.index = _Features('index', analysis.longest)
    self._steps: dict[SOp, _Features] = {}
    self._heads: dict[Any, Head] = {}
    self._brought: dict[Any, list[Slot]] = {}  # by each of these heads
    self._slots: dict[Any, Reading] = {}
    self._gates: dict[Any, Gate] = {}
    self._terms: dict[Selector, list[Term]] = {}

  def circuit(self, output: Output) -> Circuit:
    heads = [dataclasses.replace(head, slots=tuple(self._brought[key])) for key, head in self._heads.items()]
    return Circuit(
        tuple(heads), tuple(step.source for step in self._steps.values()), tuple(self._gates.values()),
        tuple(features.table() for features in (self.token, self.index, *self._steps.values())), output,
        self.longest, self.causal)

  # Values

  def codes(self, node: SOp) -> np.ndarray:
    """A number for every value: the value itself, or its place where there is text; what is no number above a mean's."""
    d = self.analysis(node)
    mean = node.kind == 'aggregate' and not self.analysis.copies(node)
    if not mean and any(isinstance(v, str) for v in d.values):
      return np.arange(len(d.values), dtype=np.float64)
    above = itertools.count(math.floor(d.high) + 1)
    return np.array([float(v) if is_number(v) else float(next(above)) for v in d.values])

  def number(self, node: SOp) -> Reading:
    """The codes of a node, exact or nearly: what a feed-forward layer may read."""
    d = self.analysis(node)
    if d.terms is not None and not (len(d.terms) == 1 and node in d.terms):
      out = Reading(const=float(d.const))
      for term, k in d.terms.items():
        out = out + self.number(term) * float(k)
      return out
    if node.kind in ('width', 'total'):
      return self._total(node)
    if node.kind == 'aggregate':
      return self.aggregate(node, None)
    if self._is_gated(node):
      return self._gated(node)
    return self.exact(node, self.codes(node))

  def _is_gated(self, node: SOp) -> bool:
    return node in self.effort.gated or node.op == 'where' and self.analysis(node).table is None

  def _gated(self, node: SOp) -> Reading:
    """A `where` as the sum of its two branches, of which one is stopped."""
    condition, *branches = node.args
    yes = self.exact(condition, np.array([float(bool(v)) for v in self.analysis(condition).values]))
    out = Reading()
    for on, branch in zip((yes, ONE + yes * -1.0), branches):
      d = self.analysis(branch)
      if branch.kind == 'constant':
        out = out + on * float(math.floor(self.analysis(node).high) + 1 if d.values[0] is None else d.values[0])
        continue
      key = branch, on
      if key not in self._gates:
        value = self.number(branch)
        codes = np.array([float(d.low), float(d.high)]) if d.values is None else self.codes(branch)
        time = max(value.time, on.time)
        self._gates[key] = Gate(value, 0.0, float(codes.min()), float(codes.max()),
                                time + 1 if time % 2 == 0 else time + 2, node, on)
      out = out + Reading(((self._gates[key], 1.0),))
    return out

  def exact(self, node: SOp, vector: np.ndarray) -> Reading:
    """A whole number for every value of a node, without error: what attention may read."""
    d = self.analysis(node)
    vector = np.asarray(vector, np.float64)
    if (vector == vector[0]).all():
      return Reading(const=float(vector[0]))
    if d.token or d.index:
      table, sequence = (self.token, self.analysis.vocabulary) if d.token else (self.index, [None] * self.longest)
      place = d.place
      places = [place[language.plain(v)] for v in interpreter.Trace(sequence)(node)]
      return table.reading(vector[places])
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
    return self._step(node).reading(vector)

  # Feed-forward steps

  def _step(self, node: SOp) -> _Features:
    """The step that computes a node, and its features; one that decodes the node itself where it is no map."""
    if node not in self._steps:
      readings, codes, table = self._axes(node)
      wide = [a for a in range(len(codes)) if table.shape[a] > 1]
      table = table.reshape([table.shape[a] for a in wide])
      readings, codes = [readings[a] for a in wide], [codes[a] for a in wide]
      order, scales, places = _interleaved(table, codes)
      z, levels = Reading(), np.zeros(1)
      for a in order:
        levels = (levels[:, None] + scales[a] * codes[a][None, :]).ravel()
      for reading, scale in zip(readings, scales):
        z = z + reading * scale
      time = z.time + 1 if z.time % 2 == 0 else z.time + 2
      step = Step(node, z, levels, places, time)
      self._steps[node] = _Features(step, len(self.analysis(node).values), time)
    return self._steps[node]

  def _axes(self, node: SOp) -> tuple[list[Reading], list[np.ndarray], np.ndarray]:
    """(readings, codes, table): table[a, b, ..] is the place of the node's value where readings say codes[a], ..

    The codes of an input ascend; values of it that change nothing are one where its codes are free.
    """
    d = self.analysis(node)
    if d.values is None:
      raise RaspError(node.source, f'{node!r} takes too many values to be read by a selector or a function; compare it '
                                   'with a bound first')
    if d.table is not None:
      place = d.place
      inputs, table = list(d.inputs), np.vectorize(lambda v: place[v], otypes=[np.int64])(d.table)
    else:
      inputs, table = [node], np.arange(len(d.values))
    readings, codes = [], []
    for axis, i in enumerate(inputs):
      if self._free(i) and i is not node:
        slices = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
        first, classes = np.unique(slices, axis=0, return_index=True, return_inverse=True)[1:]
        rank = np.argsort(np.argsort(first))
        readings.append(self._coded(i, rank[classes.ravel()].astype(float)))
        table = np.take(table, np.sort(first), axis)
        codes.append(np.arange(len(first), dtype=float))
      else:
        decoded = node in self.effort.decoded and i is not node and not d.levels
        code = np.array([float(v) for v in d.levels]) if d.levels else (
            np.arange(table.shape[axis], dtype=float) if decoded else self.codes(i))
        order = np.argsort(code)
        readings.append(self.exact(i, code) if decoded else self.number(i))
        table = np.take(table, order, axis)
        codes.append(code[order])
    return readings, codes, table

  def _free(self, node: SOp) -> bool:
    """Whether any code of a node's values can be had for a column."""
    d = self.analysis(node)
    return d.token or d.index or node.kind == 'map' and d.table is not None and not self._is_gated(node) or (
        node.kind == 'aggregate' and self.analysis.copies(node))

  def _coded(self, node: SOp, codes: np.ndarray) -> Reading:
    if node.kind == 'aggregate' and not (self.analysis(node).token or self.analysis(node).index):
      return self.aggregate(node, codes)
    return self.exact(node, codes)

  # Attention

  def _terms_of(self, selector: Selector) -> list[Term]:
    if selector not in self._terms:
      terms = conjunctions(selector, self.analysis)
      if len(terms) > HEADS:
        try:  # one head that reads tuples
          terms = conjunctions(self.analysis.derived(selector, lambda: product(selector, self.analysis)), self.analysis)
        except RaspError:
          pass
      self._terms[selector] = terms
    return self._terms[selector]

  def _total(self, node: SOp) -> Reading:
    """The sum of what a node selects; of a width, of ones."""
    s, x = node.selector, node.args[0] if node.args else language.constant(1)
    if s.kind in language.PICKS:  # one key if any
      one = self.analysis.derived(('one', node), lambda: language.aggregate(s, x, 0, one=True))
      return self.aggregate(one, None)
    d, out = self.analysis(x), Reading()
    value = self._plain(x) if node.args else ONE
    most = max(abs(float(d.low)), abs(float(d.high)))
    for term in self._terms_of(s):
      out = out + self._slot(node, term, 'count', None, value, 0.0, (
          float(min(0, d.low * self.longest)), float(max(0, d.high * self.longest))), most)
    return out

  def _plain(self, x: SOp) -> Reading:
    """The number that an s-op is, exact where it is whole."""
    d = self.analysis(x)
    whole = d.whole and all(self.analysis(t).whole for t in d.terms or ())
    return self.exact(x, np.array(d.values, float)) if whole else self.number(x)

  def aggregate(self, node: SOp, codes: np.ndarray | None) -> Reading:
    """An aggregate's value (codes None), or a code of it where it copies one."""
    d, x = self.analysis(node), node.args[0]
    s = node.selector
    prior = (s.kind, s.keys) if s.kind in language.PICKS else None
    terms = self._terms_of(s.args[0] if prior else s)
    default, copies = language.plain(node.value), self.analysis.copies(node)
    total = self.analysis.total(s)
    if d.values is not None:
      codes = self.codes(node) if codes is None else codes
      code: Any = dict(zip(d.values, codes.tolist()))
      sink = 0.0 if total else code[default]
    else:
      code, sink = None, 0.0 if total else float(default)
    if not terms:
      return Reading(const=sink)
    xd = self.analysis(x)
    if copies:
      vector = np.array([code[v] for v in xd.values])
      if xd.whole and not (vector == vector.astype(int)).all() or xd.numeric and not xd.whole and (
          vector == np.array([float(v) for v in xd.values])).all():
        value = self.number(x)
      else:
        value = self.exact(x, vector)
      span = (float(vector.min()), float(vector.max()))
    elif not xd.numeric:  # undefined is a number above all others: the one that says undefined of the result
      vector = np.array([code[None] if v is None else float(v) for v in xd.values])
      value = self.number(x) if np.array_equal(vector, self.codes(x)) else self.exact(x, vector)
      span = (float(vector.min()), float(vector.max()))
    else:
      value = self._plain(x)
      span = (float(xd.low), float(xd.high))
    if len(terms) > 1 and (prior or not copies or not self.analysis.unique(s)):
      terms = self._terms_of(self.analysis.derived(
          s.args[0] if prior else s, lambda: product(s.args[0] if prior else s, self.analysis)))
    if len(terms) == 1:
      return self._slot(node, terms[0], 'total' if total else 'sink', prior, value, sink, span)
    out = Reading(const=sink)  # at most one of them selects: each brings the difference from the default, or 0
    for term in terms:
      out = out + self._slot(node, term, 'sink', None, value + Reading(const=-sink), 0.0,
                             (span[0] - sink, span[1] - sink))
    return out

  def _slot(self, node: SOp, term: Term, mode: str, prior: Any, value: Reading, sink: float,
            span: tuple[float, float], most: float = 1.0) -> Reading:
    """A head's output for one value, on a head shared by all that select alike."""
    known = (term, mode, prior, value, sink)
    if known not in self._slots:
      low, high = span
      spread = max(abs(high - low), abs(sink - low), abs(sink - high))
      head = self._head(node, term, mode, prior, value, most if mode == 'count' else spread)
      slot = Slot(value, sink, min(low, sink), max(high, sink), self._heads[head].time)
      self._brought[head].append(slot)
      self._slots[known] = Reading(((slot, 1.0),))
    return self._slots[known]

  def _head(self, node: SOp, term: Term, mode: str, prior: Any, value: Reading, spread: float) -> Any:
    """The key in `_heads` of the head that selects by `term`, as sharp as a value of this spread needs it.

    Keys that do not match lose at most RAW_ERROR of the spread of the values, by the gap between scores.
    """
    N = self.longest
    unit = math.ceil(math.log((N + 1) * max(spread, 1.0) / RAW_ERROR))
    if mode == 'count':
      level, gap = math.ceil(math.log(max(2, N) ** 2 * max(spread, 1.0) * 2.0**self.effort.sharpness)), math.ceil(
          math.log(N * N * max(spread, 1.0) / RAW_ERROR))
    elif prior:
      order, most_order = self._order(*prior)
      level, gap = -unit * most_order - unit, unit * most_order + 2 * unit
    elif mode == 'sink':
      level, gap = -unit, 2 * unit
    else:
      level, gap = -unit, unit
    scores, bias, at_bos = [], None, Reading()
    for leaf in term.leaves:
      if leaf.keys is None:
        decided = self._by_distance(leaf, gap)
        if decided is not None:
          bias, at_bos = decided
          continue
        leaf = Leaf(language.indices, language.indices, leaf.matrix, leaf.source)
      scores += self._scores(leaf, gap, mode == 'total' and len(term.leaves) == 1 and not prior)
    if prior:
      scores += [(Reading(const=float(unit)), reading) for reading in order]
    scores = _merged(scores)
    latest = max([value.time] + [r.time for pair in scores for r in pair])
    time = latest + 1 if latest % 2 else latest + 2
    key = (term, mode, prior, time)
    same = self._heads.get(key)
    # A slot with a wider spread: the sharper head serves both.
    if same is None or gap > same.gap or level > same.level and mode == 'count':
      self._heads[key] = Head(same.node if same else node, mode, time, gap, level, gap if mode == 'count' else unit,
                              tuple(scores), bias, at_bos)
    self._brought.setdefault(key, [])
    return key

  def _order(self, kind: str, key: SOp | None) -> tuple[list[Reading], int]:
    """(whole numbers that rank the keys, 0 for the best; the most that their sum goes below)."""
    N = self.longest
    away = np.arange(N) - (N - 1.0) if kind == 'last' else -np.arange(N, dtype=float)
    if key is None:
      return [self.index.reading(away)], N - 1
    d = self.analysis(key)
    if d.values is None or None in d.values:
      raise RaspError(key.source, f'{kind} by {key!r}, which has too many values or may be undefined; expected listed '
                                  'values, rasp.default(.., a number) replaces undefined')
    places = np.arange(len(d.values), dtype=float)
    if d.whole and d.high - d.low <= 4 * len(d.values):  # the number itself needs no table
      places = np.array(d.values, float) - float(d.low)
    if kind == 'smallest':
      places = places.max() - places
    return [self.exact(key, (places - places.max()) * N), self.index.reading(away)], int(places.max()) * N + N - 1

  def _by_distance(self, leaf: Leaf, gap: int) -> tuple[np.ndarray | None, Reading] | None:
    """(bias, what BOS needs against it) of a predicate on indices that the mask or the distance decides, or None."""
    grid, N = leaf.matrix, self.longest
    matters = np.tri(N, dtype=bool) if self.causal else np.ones((N, N), bool)
    if grid[matters].all():
      return None, Reading()
    if not (grid[1:, 1:] == grid[:-1, :-1])[matters[1:, 1:]].all():
      return None
    allowed = np.array([grid[max(0, t), max(0, -t)] if t >= 0 or not self.causal else grid[0, 0]
                        for t in range(1 - N, N)])
    R = max([1] + [abs(t) + 1 for t in range(2 - N, N - 1) if allowed[t + N - 1] != allowed[
        (2 * N - 2 if t > 0 else 0)]]) if N > 1 else 1
    R = min(R, N - 1) or 1
    away = np.clip(np.arange(-R, R + 1), 1 - N, N - 1)
    bias = np.where(allowed[away + N - 1], 0.0, -float(gap))
    # BOS stands at distance i + 1 from token i, which must not change its score.
    blocked = np.array([bias[min(i + 1, R) + R] for i in range(N)])
    return bias, Reading(const=-blocked[0]) if (blocked == blocked[0]).all() else self.index.reading(-blocked)

  def _scores(self, leaf: Leaf, gap: int, relative: bool) -> list[tuple[Reading, Reading]]:
    """(query, key) pairs whose products sum to 0 on a match and to at most -gap elsewhere.

    `relative`: a number that depends on the query alone may be missing.
    """
    m = leaf.matrix
    if (m == m[:1]).all():  # the key alone decides
      return [(Reading(const=float(gap)), self.exact(leaf.keys, m[0] - 1.0))]
    if (m == m[:, :1]).all():
      return [(gap * self.exact(leaf.queries, m[:, 0] - 1.0), ONE)]
    equal = self._equality(leaf)
    if equal is not None and m.shape[1] > 2:
      u, v = equal
      d_k, d_q = self.analysis(leaf.keys), self.analysis(leaf.queries)
      computed = [d for d, needed in ((d_k, True), (d_q, not relative)) if needed and not (d.token or d.index)]
      reach = float(max(u.max(), v.max()) - min(u.min(), v.min()))
      if all(len(d.values) <= POINTER for d in computed) and gap * reach**2 <= SQUARES:
        middle = round((v.min() + v.max()) / 2)
        u, v = u - middle, v - middle
        scores = [(2.0 * gap * self.exact(leaf.queries, u), self.exact(leaf.keys, v)),
                  (Reading(const=-float(gap)), self.exact(leaf.keys, v * v))]
        return scores if relative else scores + [(-float(gap) * self.exact(leaf.queries, u * u), ONE)]
      low, high = min(u.min(), v.min()), max(u.max(), v.max())
      bits = range(int(high - low).bit_length())
      sign = lambda x, b: 2.0 * ((x - low).astype(int) >> b & 1) - 1
      half = -(-gap // 2)
      return [(half * self.exact(leaf.queries, sign(u, b)), self.exact(leaf.keys, sign(v, b))) for b in bits] + [
          (Reading(const=-float(half * len(bits))), ONE)]
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
    both = {*k.values, *q.values}
    if k.whole and q.whole and max(both) - min(both) <= 4 * len(both):
      u, v = np.array(q.values, float), np.array(k.values, float)
    else:
      place = {x: float(i) for i, x in enumerate(sorted(both, key=language.order))}
      u, v = np.array([place[x] for x in q.values]), np.array([place[x] for x in k.values])
      if None in place:  # undefined selects nothing: not even undefined
        return None
    return (u, v) if np.array_equal(leaf.matrix, u[:, None] == v[None, :]) else None


def _interleaved(table: np.ndarray, codes: list[np.ndarray]) -> tuple[tuple[int, ...], list[float], np.ndarray]:
  """(order, scales, places): the order of the inputs in which sum of scale * code has the fewest changes of value.

  A short function of many inputs has few changes in some order of them; its last axis moves fastest.
  """
  best: Any = None
  axes = range(len(codes))
  for order in itertools.permutations(axes) if len(codes) <= 4 else [tuple(axes)]:
    places = table.transpose(order).ravel()
    scales, span, gap = [0.0] * len(order), 0.0, 1.0
    for turn, a in enumerate(reversed(order)):
      least = np.diff(codes[a]).min()
      if turn == 0:
        scales[a], gap = 1.0, least
      else:
        scales[a] = (span + gap) / least
      span += scales[a] * (codes[a][-1] - codes[a][0])
    cost = (np.count_nonzero(np.diff(places)), max(scales))
    if best is None or cost < best[0]:
      best = cost, order, scales, places
  return best[1:]


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
  return rest + [pair for pair in ((ONE, by_query), (by_key, ONE)) if Reading() not in pair]
