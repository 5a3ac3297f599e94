"""What is known of a program before it is compiled: values that s-ops can take, what is causal, what selects one key.

All of it is for one vocabulary and for lengths 1 .. N. Sets are exact where they are listed (a superset never loses a
value: correlations that are not followed only add some), and undefined is a member like any other. A numeric s-op that
is a linear map of others keeps that form, so that no layer is spent on it. A wrong program is refused here, and its
line quoted.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
from fractions import Fraction
import math
from typing import Any

import numpy as np

from rasp import interpreter, language
from rasp.compiling.selections import Selections, is_everything
from rasp.language import RaspError, Selector, SOp, Value

CELLS = 2**16  # the largest table of one map
LISTED = 2**17  # the most values of one s-op


@dataclasses.dataclass(eq=False)
class Domain:
  """Which values one s-op can take, and what they depend on.

  values: sorted, or None if there are too many to list; then the s-op is a number between low and high.
  token, index: it is a function of the token, of the index at its position alone. shape: of the index and the length.
  terms, const: it is the sum of coefficient * s-op, plus a constant; None if it is no linear map of numbers.
  inputs, table: of a map: table[a, b, ..] is its value where its inputs take their values number a, b, ..
  levels: of a comparison of a number that is not listed: values of that input between which the map does not change.
  parts: of a number that is not listed: it is a whole number divided by one of 1 .. parts; 0 if it need not be.
  """
  values: tuple[Value, ...] | Any  # or None: who reads it has asked, or knows from a flag
  low: Fraction | int = 0
  high: Fraction | int = 0
  token: bool = False
  index: bool = False
  shape: bool = False
  terms: dict[SOp, Any] | Any = None
  const: Any = 0
  inputs: tuple[SOp, ...] = ()
  table: np.ndarray | Any = None
  levels: tuple[Any, ...] | Any = None
  parts: int = 0

  @property
  def numeric(self) -> bool:
    """Whether it is always a number."""
    return self.values is None or all(map(is_number, self.values))

  @property
  def whole(self) -> bool:
    """Whether it is always one of a list of whole numbers."""
    return self.values is not None and self.numeric and all(not isinstance(v, Fraction) for v in self.values)

  @property
  def place(self) -> dict[Value, int]:
    return {v: i for i, v in enumerate(self.values)}


def listed(values: Iterable[Value], **fields) -> Domain:
  """The domain of an s-op that takes these values."""
  values = tuple(sorted(set(values), key=language.order))
  numbers = [v for v in values if is_number(v)]
  return Domain(values, min(numbers, default=0), max(numbers, default=0), **fields)


class Analysis(Selections):
  """Answers the later passes' questions about any s-op or selector; an answer, once given, is kept.

  apart: maps that keep their own arguments as inputs, whatever those depend on.
  """

  def __init__(self, vocabulary: Sequence[Value], longest: int, apart: frozenset[SOp] = frozenset(),
               derived: dict[Any, Any] | None = None):
    self.apart = apart
    self._derived = {} if derived is None else derived
    self.vocabulary = tuple(language.plain(v) for v in vocabulary)
    self.longest = longest
    self.domains: dict[SOp, Domain] = {}
    self.matrices: dict[Selector, np.ndarray] = {}
    self.grids: dict[Selector, np.ndarray | None] = {}

  def derived(self, key: Any, make: Callable[[], Any]) -> Any:
    """An s-op or a selector that a pass makes for itself: the same one whenever it is asked for, also after `keeping`,
    so that what was learnt of it holds."""
    if key not in self._derived:
      self._derived[key] = make()
    return self._derived[key]

  def keeping(self, apart: frozenset[SOp]) -> 'Analysis':
    """A new analysis in which these maps keep their own arguments as inputs."""
    return Analysis(self.vocabulary, self.longest, apart, {
        key: value for key, value in self._derived.items() if not isinstance(value, Selector)})  # tables of the values

  def __call__(self, node: SOp) -> Domain:
    if node not in self.domains:
      for part in language.nodes(node):
        if part not in self.domains:
          self.domains[part] = self._domain(part)
    return self.domains[node]

  def _domain(self, node: SOp) -> Domain:
    if node.kind == 'tokens':
      return self._atom(node, listed(self.vocabulary, token=True))
    if node.kind == 'indices':
      return self._atom(node, listed(range(self.longest), index=True, shape=True))
    if node.kind == 'constant':
      d = listed([language.plain(node.value)], token=True, index=True, shape=True)
      if d.numeric:
        d.terms, d.const = {}, d.values[0] + 0
      return d
    if node.kind == 'width':
      everything = is_everything(node.selector)
      least = 1 if everything or self.total(node.selector) else 0
      return self._atom(node, listed(range(least, self.longest + 1), shape=everything))
    if node.kind == 'aggregate':
      return self._atom(node, self._aggregate(node))
    if node.kind == 'total':
      return self._atom(node, self._total(node))
    return self._map(node)

  def _atom(self, node: SOp, d: Domain) -> Domain:
    if d.numeric:
      d.terms = {node: 1}
    return d

  def _aggregate(self, node: SOp) -> Domain:
    x = self(node.args[0])
    total = self.total(node.selector)
    extra: tuple[Value, ...] = () if total else (language.plain(node.value),)
    if self.copies(node):
      if not node.one and not self.unique(node.selector) and sum(map(is_number, x.values)) > 1:
        raise RaspError(node.source, f'aggregate may select several numbers of {node.args[0]!r}, which holds '
                                     'numbers and text: a mean or one value; select one key (.first() or .last()), or say one=True')
      if x.values is None:
        raise RaspError(node.source, f'{node.args[0]!r} has too many values to copy; give it a range by rounding, or '
                                     'aggregate its parts')
      return listed((*x.values, *extra))
    low, high = min([x.low] + [e for e in extra if is_number(e)]), max([x.high] + [e for e in extra if is_number(e)])
    values = self._means(x)
    if not x.numeric:  # all that are selected are undefined, or none is
      extra = tuple({*extra, None})
    if values is None:
      if any(not is_number(e) for e in extra):
        raise RaspError(node.source, f'a mean of {node.args[0]!r} has too many values to list beside {extra[0]!r}; '
                                     'expected a number as default, and rasp.default(.., a number) of what it averages')
      return Domain(None, low, high, parts=self.longest if x.whole and all(isinstance(e, int) for e in extra) else 0)
    return listed((*values, *extra))

  def _total(self, node: SOp) -> Domain:
    x, N = self(node.args[0]), self.longest
    if not x.numeric:
      raise RaspError(node.source, f'total adds {node.args[0]!r}, which is not always a number; expected numbers, '
                                   'rasp.default(.., 0) replaces undefined')
    low, high = min(0, N * x.low), max(0, N * x.high)
    step = int(np.gcd.reduce([int(v) for v in x.values])) or 1 if x.whole else 0  # type: ignore[call-overload]
    if step and (high - low) // step < LISTED:
      return listed(range(int(low), int(high) + 1, step))
    return Domain(None, low, high, parts=int(bool(step)))

  def _means(self, x: Domain) -> set | None:
    """Every mean of 1 .. N values of x."""
    if x.values is None or any(isinstance(v, Fraction) for v in x.values) or (
        (x.high - x.low) * self.longest**2 > 2 * LISTED):
      return None
    low, high = int(x.low), int(x.high)
    gaps = [int(v) - low for v in x.values if v is not None]
    step = int(np.gcd.reduce(gaps or [0])) or 1  # type: ignore[call-overload]  # NumPy 2.5
    return {language.plain(low + Fraction(k * step, n)) for n in range(1, self.longest + 1)
            for k in range((high - low) // step * n + 1)}

  def copies(self, node: SOp) -> bool:
    """Whether an aggregate gives one of the selected values itself, not a mean."""
    values = self(node.args[0]).values
    return node.one or self.unique(node.selector) or values is not None and (
        any(isinstance(v, str) for v in values) or not any(map(is_number, values)))

  def _map(self, node: SOp) -> Domain:
    parts = [self(a) for a in node.args]
    flags = {flag: all(getattr(p, flag) for p in parts) for flag in ('token', 'index', 'shape')}
    d = self._linear(node, parts)
    d = d or self._threshold(node)
    if d is None and self.gates(node) and any(p.values is None for p in parts):
      d = Domain(None, min(p.low for p in parts[1:]), max(p.high for p in parts[1:]), terms={node: 1})
    if d is None:
      try:
        inputs, table = self._table(node)
        d = listed(table.ravel().tolist(), inputs=inputs, table=table)
      except RaspError:
        if not self.gates(node):
          raise
        d = listed((*parts[1].values, *parts[2].values))
      if len(d.values) > LISTED:
        raise RaspError(node.source, f'{node!r} takes more than {LISTED} values; give it a range, for example with //')
      if d.numeric:
        d.terms = {node: 1}
    for flag, value in flags.items():
      setattr(d, flag, value)
    return d

  def _threshold(self, node: SOp) -> Domain | None:
    """The domain of a number that is not listed, compared with a constant; None if it is another map."""
    if node.op not in language.PREDICATES or sum(a.kind == 'constant' for a in node.args) != 1:
      return None
    x, c = node.args if node.args[1].kind == 'constant' else node.args[::-1]
    d, bound = self(x), self(c).values[0]
    if d.values is not None or not is_number(bound) or len(d.terms or ()) != 1:
      return None
    (term, k), = d.terms.items()
    if not self(term).parts:
      return None
    # No whole number divided by 1 .. parts is nearer to p / q than 1 / (parts q), unless it is p / q.
    near = abs(Fraction(k)) / (self(term).parts * Fraction(Fraction(bound - d.const) / k).denominator)
    levels = tuple(sorted({v for v in (d.low, bound - near, bound, bound + near, d.high) if d.low <= v <= d.high}))
    table = np.empty(len(levels), object)
    table[:] = [interpreter.apply(node, tuple(v if a is x else bound for a in node.args)) for v in levels]
    out = listed(table.tolist(), inputs=(x,), table=table, levels=levels)
    out.terms = {node: 1}
    return out

  def gates(self, node: SOp) -> bool:
    """Whether a map is a `where` of numbers with a condition that is always defined, which units can pass or stop."""
    if node.kind != 'map' or node.op != 'where':
      return False
    condition, yes, no = (self(a) for a in node.args)
    if condition.values is None or None in condition.values:
      return False
    if yes.numeric and no.numeric:
      return True
    values = [v for d in (yes, no) for v in d.values or ()]  # undefined must be the same number in both
    return None not in (yes.values, no.values) and not any(isinstance(v, str) for v in values) and (
        math.floor(yes.high) == math.floor(no.high))

  def _linear(self, node: SOp, parts: list[Domain]) -> Domain | None:
    if node.op not in '+-*' or any(p.terms is None for p in parts):
      return None
    a, b = parts
    if node.op == '*':
      if a.terms and b.terms:
        return None
      scale, of = (a.const, b) if not a.terms else (b.const, a)
      terms, const = {t: scale * k for t, k in of.terms.items()}, scale * of.const
    else:
      sign = 1 if node.op == '+' else -1
      terms, const = dict(a.terms), a.const + sign * b.const
      for t, k in b.terms.items():
        terms[t] = terms.get(t, 0) + sign * k
    terms = {t: k for t, k in terms.items() if k}
    return self.sum_of(terms, const)

  def sum_of(self, terms: dict[SOp, Any], const: Any) -> Domain:
    """The domain of a linear map: sums of every value of every term."""
    low, high = const, const
    values: set[Value] | None = {const}
    for t, k in terms.items():
      d = self(t)
      low += min(k * d.low, k * d.high)
      high += max(k * d.low, k * d.high)
      whole = d.values is not None and values is not None and all(isinstance(v, int) for v in (*values, k, *d.values))
      if values is None or d.values is None or len(values) * len(d.values) > (4 if whole else 0.25) * CELLS:
        values = None
      elif whole:
        a, b = np.fromiter(values, np.int64), np.fromiter(d.values, np.int64)
        values = set(np.unique(a[:, None] + k * b).tolist())
      else:
        values = {a + k * b for a in values for b in d.values}
    if values is None:
      if all(self(t).whole for t in terms) and all(isinstance(k, int) for k in (*terms.values(), const)) and (
          high - low < LISTED):
        return listed(range(int(low), int(high) + 1), terms=terms, const=const)
      return Domain(None, low, high, terms=terms, const=const)
    return listed(map(language.plain, values), terms=terms, const=const)

  def _table(self, node: SOp) -> tuple[tuple[SOp, ...], np.ndarray]:
    """A map as a function of as few inputs as can be: maps of maps become one, if the table stays small."""
    sums, bases, small = self._inputs(node, True), self._inputs(node, False), self._inputs(node, True, 2**6)
    parts = [t for i in sums for t in self(i).terms or {i: 1}]
    if len(parts) > len(set(parts)):  # two inputs move together: apart they would take values that never meet
      sums = bases
    own = [a for a in dict.fromkeys(node.args) if a.kind != 'constant']
    for inputs in (own,) if node in self.apart else (sums, bases, small, own):
      if all(self(i).values is not None for i in inputs):
        if np.prod([float(len(self(i).values)) for i in inputs]) <= CELLS:
          return tuple(inputs), self._tabulate(node, inputs)
    wide = max(inputs, key=lambda i: float('inf') if self(i).values is None else len(self(i).values))
    count = self(wide).values
    raise RaspError(node.source, f'{node!r} needs a table over '
                    f"{'an unbounded range' if count is None else f'{len(count)} values'} of {wide!r}; narrow the "
                    'range first (compare with a bound, // or %), or aggregate fewer values')

  def _inputs(self, node: SOp, keep_sums: bool, most: int = 2**12) -> list[SOp]:
    """What a map depends on, through other maps whose tables have at most `most` cells.

    A sum of several s-ops may stay one input: that costs no layer.
    """
    inputs: dict[SOp, None] = {}
    visited = set()
    def visit(part: SOp, top: bool):
      if part in visited:
        return
      visited.add(part)
      if part.kind == 'constant':
        return
      if part.kind != 'map':
        inputs[part] = None
        return
      if not top:
        d = self(part)
        terms = list(d.terms or ())
        if keep_sums and len(terms) > 1 and all(t.kind not in ('map', 'constant') for t in terms):
          inputs[part] = None
          return
        if d.table is not None and d.table.size > most or (d.terms is None and d.table is None):
          inputs[part] = None
          return
      for a in part.args:
        visit(a, False)
    visit(node, True)
    return list(inputs)

  def _tabulate(self, node: SOp, inputs: Sequence[SOp]) -> np.ndarray:
    arrays: dict[SOp, np.ndarray] = {}
    for axis, i in enumerate(inputs):
      values = np.empty(len(self(i).values), object)
      values[:] = self(i).values
      arrays[i] = values.reshape([-1 if a == axis else 1 for a in range(len(inputs))])
    def value(part: SOp) -> np.ndarray:
      if part not in arrays:
        if part.kind == 'constant':
          a = np.empty([1] * len(inputs), object)
          a.fill(language.plain(part.value))
        else:
          parts = [value(p) for p in part.args]
          one = np.frompyfunc(lambda *row: language.plain(interpreter.apply(part, row)), len(parts), 1)
          a = np.asarray(one(*parts), object)
        arrays[part] = a
      return arrays[part]
    return np.broadcast_to(value(node), [len(self(i).values) for i in inputs])


def is_number(value: Value) -> bool:
  """Whether a value is a number or a truth value, not text and not undefined."""
  return value is not None and not isinstance(value, str)
