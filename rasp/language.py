"""What a user writes: s-ops (one value a position) and selectors (which keys a query reads).

RASP is Weiss, Goldberg and Yahav 2021, "Thinking Like Transformers", arXiv:2106.06981. An expression is an immutable
graph; nothing is computed here. Every node keeps the file and line that made it, which errors quote.

  @rasp.program(vocabulary='abcd', example='abca')
  def reverse():
    flip = rasp.select(rasp.indices, rasp.length - rasp.indices - 1, '==')
    return rasp.aggregate(flip, rasp.tokens)

Undefined is a value: an aggregate that selects nothing gives its default, None unless told. Whatever is computed from
None is None (`rasp.default` replaces it), and a predicate on None selects nothing.
"""

from collections.abc import Callable, Iterable
import dataclasses
from fractions import Fraction
import linecache
import math
import numbers
import operator
import sys
from typing import Any

from foundation.errors import ConfigError

Value = Any  # int, bool, str, Fraction, or None: undefined


@dataclasses.dataclass(frozen=True)
class Source:
  """The line of a user's file that made a node."""
  path: str
  line: int

  @property
  def text(self) -> str:
    return linecache.getline(self.path, self.line).strip()

  def __str__(self) -> str:
    where = f"{self.path.rsplit('/', 1)[-1] or 'program'}:{self.line}"
    return f'{where} `{self.text}`' if self.text else where  # python -c and strings keep no lines


class RaspError(ConfigError):
  """A program that cannot be honoured: one line that quotes the user's, and says what to do."""

  def __init__(self, source: Source | None, message: str):
    super().__init__(f'{source}: {message}' if source else message)
    self.source = source


def here() -> Source:
  """The user's line that is being run: not one of this file, nor of the decorator's."""
  frame: Any = sys._getframe(1)
  ours = (__name__, 'rasp.program')
  while frame.f_back is not None and ((name := frame.f_globals.get('__name__') or '') in ours or
                                      name.startswith('rasp.compiling')):
    frame = frame.f_back
  return Source(frame.f_code.co_filename, frame.f_lineno)


def _divide(a, b):
  return Fraction(a) / Fraction(b)


# Element-wise operators by their name, which is what makes two nodes equal.
OPERATORS: dict[str, Callable[..., Value]] = {
    '+': operator.add, '-': operator.sub, '*': operator.mul, '/': _divide, '//': operator.floordiv, '%': operator.mod,
    '==': operator.eq, '!=': operator.ne, '<': operator.lt, '<=': operator.le, '>': operator.gt, '>=': operator.ge,
    '&': lambda a, b: bool(a) and bool(b), '|': lambda a, b: bool(a) or bool(b), '~': operator.not_,
    'abs': abs, 'int': int, 'where': lambda c, a, b: None if c is None else a if c else b}
SEE_UNDEFINED = ('default', 'where')  # every other map of undefined is undefined
PICKS = ('first', 'last', 'largest', 'smallest')  # one key of those that are selected
PREDICATES = ('==', '!=', '<', '<=', '>', '>=')


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SOp:
  """A sequence operator: a value for every position of any input.

  kind is tokens, indices, constant, map, aggregate, total or width; `op` names a map's function, `fn` is that function.
  A field is None where the kind has none, which `| Any` says here: who asks for it has asked for the kind.
  """
  kind: str
  args: tuple['SOp', ...] = ()
  op: str = ''
  fn: Callable[..., Value] | Any = None
  selector: 'Selector | Any' = None
  value: Value = None  # of a constant; the default of an aggregate
  one: bool = False  # an aggregate of the one selected value, not a mean
  name: str = ''
  source: Source | None = None

  def named(self, name: str) -> 'SOp':
    """The same s-op under a name, which reports and drawings show."""
    return dataclasses.replace(self, name=name)

  def __repr__(self) -> str:
    return _shown(self, SHOWN)

  def __bool__(self):
    raise RaspError(here(), f"'{self!r}' has one value a position, not one in all; "
                             'write & | ~ and rasp.where in place of and, or, not and if')

  def __getitem__(self, place):
    raise RaspError(here(), f"'{self!r}' has no place {place!r}; rasp.aggregate(rasp.select(rasp.indices, "
                            "place, '=='), x) reads the value at one")

  def __len__(self):
    raise RaspError(here(), f"the length of '{self!r}' is rasp.length, an s-op")

  def __round__(self, digits=None):
    return apply(round, self) if digits is None else apply(round, self, digits)

  def __pow__(self, power):
    raise RaspError(here(), f"'{self!r}' ** {power!r}; write a product, or rasp.apply(lambda v: v ** {power!r}, x)")

  def __int__(self):
    raise RaspError(here(), f"int('{self!r}') is not one number; rasp.apply(int, x) calls it at every position")

  def __float__(self):
    raise RaspError(here(), f"float('{self!r}') is not one number; s-ops calculate with exact fractions")

  def __contains__(self, value):
    raise RaspError(here(), f"{value!r} in '{self!r}' is no truth value; expected "
                            f"rasp.selector_width(rasp.select(x, {value!r}, '==')) > 0")

  def __iter__(self):
    raise RaspError(here(), f"'{self!r}' cannot be looped over; a selector and an aggregate move values")

  __hash__ = object.__hash__
  __add__ = lambda a, b: _map('+', a, b)
  __radd__ = lambda a, b: _map('+', b, a)
  __sub__ = lambda a, b: _map('-', a, b)
  __rsub__ = lambda a, b: _map('-', b, a)
  __mul__ = lambda a, b: _map('*', a, b)
  __rmul__ = lambda a, b: _map('*', b, a)
  __truediv__ = lambda a, b: _map('/', a, b)
  __rtruediv__ = lambda a, b: _map('/', b, a)
  __floordiv__ = lambda a, b: _map('//', a, b)
  __rfloordiv__ = lambda a, b: _map('//', b, a)
  __mod__ = lambda a, b: _map('%', a, b)
  __rmod__ = lambda a, b: _map('%', b, a)
  __divmod__ = lambda a, b: (a // b, a % b)
  __neg__ = lambda a: _map('*', -1, a)
  __abs__ = lambda a: _map('abs', a)
  __eq__ = lambda a, b: _map('==', a, b)  # type: ignore[assignment, return-value]  # an s-op, as numpy's an array
  __ne__ = lambda a, b: _map('!=', a, b)  # type: ignore[assignment, return-value]
  __lt__ = lambda a, b: _map('<', a, b)
  __le__ = lambda a, b: _map('<=', a, b)
  __gt__ = lambda a, b: _map('>', a, b)
  __ge__ = lambda a, b: _map('>=', a, b)
  __and__ = lambda a, b: _map('&', a, b)
  __rand__ = lambda a, b: _map('&', b, a)
  __or__ = lambda a, b: _map('|', a, b)
  __ror__ = lambda a, b: _map('|', b, a)
  __invert__ = lambda a: _map('~', a)


SHOWN = 6  # levels of an expression that are printed


def _shown(node: SOp, levels: int) -> str:
  """An expression as text; what lies deeper is two dots, since shared parts are as often as there are ways to them."""
  if node.name or node.kind != 'map':
    return node.name or (repr(node.value) if node.kind == 'constant' else node.kind)
  return f'{node.op}({", ".join(_shown(a, levels - 1) for a in node.args)})' if levels else '..'


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Selector:
  """For every query position, the key positions that it reads.

  kind is leaf (`op` or `fn` on a key's and a query's value), and, or, not, or one of PICKS, of which largest and
  smallest compare `keys`.
  """
  kind: str
  args: tuple['Selector', ...] = ()
  keys: SOp | Any = None  # as a field of SOp
  queries: SOp | Any = None
  op: str = ''
  fn: Callable[[Value, Value], Any] | Any = None  # a truth value, of arrays an array
  source: Source | None = None
  name: str = ''

  def named(self, name: str) -> 'Selector':
    return dataclasses.replace(self, name=name)

  def __and__(self, other: 'Selector') -> 'Selector':
    return _combine('and', self, other)

  def __or__(self, other: 'Selector') -> 'Selector':
    return _combine('or', self, other)

  def __invert__(self) -> 'Selector':
    return _combine('not', self)

  def __getitem__(self, place):
    raise RaspError(here(), f'{self!r} is a selector, which has no place {place!r}; combine it with & | ~')

  def __add__(self, other):
    raise RaspError(here(), f'{self!r} is a selector, which has no sum; combine it with & | ~')

  def __bool__(self):
    raise RaspError(here(), 'a selector is no truth value; write & | ~ in place of and, or and not')

  def __repr__(self) -> str:
    if self.name or self.kind != 'leaf':
      return self.name or f"{self.kind}({', '.join(map(repr, self.args))})"
    return f'select({self.keys!r}, {self.queries!r}, {self.op!r})'

  def first(self) -> 'Selector':
    """Of the selected keys only the leftmost."""
    return _combine('first', self)

  def last(self) -> 'Selector':
    """Of the selected keys only the rightmost."""
    return _combine('last', self)


def _combine(kind: str, *parts: Selector) -> Selector:
  for part in parts:
    if not isinstance(part, Selector):
      raise RaspError(here(), f'{part!r} is no selector; expected rasp.select(keys, queries, predicate)')
    if part.kind in PICKS:
      raise RaspError(here(), f'{part.kind} must be the last step of a selector; combine first, then call it')
  return Selector(kind, parts, source=here())


def plain(value: Value) -> Value:
  """The one form of equal values, so that they can be compared: a whole Fraction and a float become exact.

  A float is the fraction of a denominator up to 10^6 that it is nearest to, 1/3 for one, or the decimal that it prints.
  """
  if value is None or type(value) in (int, bool, str):
    return value
  if isinstance(value, float):
    value = float(value)
    if not math.isfinite(value):
      raise RaspError(here(), f'the number {value}; expected a finite one')
    simple = Fraction(value).limit_denominator(10**6)
    value = simple if float(simple) == value else Fraction(repr(value))
  elif isinstance(value, numbers.Integral) and not isinstance(value, (bool, int)):
    value = int(value)
  return int(value) if type(value) is Fraction and value.denominator == 1 else value


def constant(value: Value) -> SOp:
  """The same value at every position. Raises RaspError on what is no number, string, bool or None."""
  if isinstance(value, numbers.Number):
    value = plain(value)
  if value is not None and not isinstance(value, (int, str, Fraction)):
    raise RaspError(here(), f'{value!r} is {type(value).__name__}; expected an s-op, a number, a string, a '
                            'bool or None')
  return SOp('constant', value=value, source=here())


def lift(x: Any) -> SOp:
  """An s-op as it is, and a value as the same at every position. Raises RaspError on anything else."""
  if isinstance(x, SOp):
    return x
  if isinstance(x, Selector):
    raise RaspError(here(), f'{x!r} is a selector; expected an s-op (aggregate or selector_width makes one)')
  return constant(x)


def _map(op: str, *args: Any) -> SOp:
  return SOp('map', tuple(map(lift, args)), op, OPERATORS[op], source=here())


def _called(fn: Callable) -> str:
  name = getattr(fn, '__name__', 'function')
  return 'function' if name == '<lambda>' else name


def apply(fn: Callable[..., Value], *args: Any, name: str = '') -> SOp:
  """Any Python function of the values at one position. It is tabulated, so it must depend on nothing else."""
  return SOp('map', tuple(map(lift, args)), f'apply {_called(fn)}', fn, name=name, source=here())


def where(condition: Any, yes: Any, no: Any) -> SOp:
  """`yes` where the condition holds, else `no`."""
  return _map('where', condition, yes, no)


def default(x: Any, value: Value) -> SOp:
  """x, with `value` in place of undefined."""
  return SOp('map', (lift(x), lift(value)), 'default', lambda a, b: b if a is None else a, source=here())


def divide(a: Any, b: Any, otherwise: Value = 0) -> SOp:
  """a / b, and `otherwise` where b is 0."""
  return SOp('map', (lift(a), lift(b), lift(otherwise)), 'divide', lambda x, y, z: _divide(x, y) if y else z,
             source=here())


def select(keys: Any, queries: Any, predicate: str | Callable[[Value, Value], bool]) -> Selector:
  """Query position i reads key position j where predicate(keys[j], queries[i]); '<' means key < query."""
  if not isinstance(predicate, str) and not callable(predicate):
    raise RaspError(here(), f"predicate {predicate!r}; expected one of {' '.join(PREDICATES)} or a function")
  if isinstance(predicate, str):
    if predicate not in PREDICATES:
      raise RaspError(here(), f"predicate '{predicate}'; expected one of {' '.join(PREDICATES)} or a function")
    return Selector('leaf', (), lift(keys), lift(queries), predicate, OPERATORS[predicate], here())
  return Selector('leaf', (), lift(keys), lift(queries), f'apply {_called(predicate)}', predicate, here())


def aggregate(selector: Selector, values: Any, default: Value = None, one: bool = False) -> SOp:
  """The mean of the selected values; `default` where none is selected.

  Strings have no mean: all that are selected must be equal, and that value is the result. `one` asks the same of
  numbers and truth values.
  """
  if not isinstance(selector, Selector):
    raise RaspError(here(), f'{selector!r} is no selector; expected aggregate(selector, values)')
  return SOp('aggregate', (lift(values),), selector=selector, value=default, one=one, source=here())


def selector_width(selector: Selector) -> SOp:
  """How many keys each query selects."""
  if not isinstance(selector, Selector):
    raise RaspError(here(), f'{selector!r} is no selector; expected selector_width(selector)')
  return SOp('width', selector=selector, source=here())


def largest(selector: Selector, key: Any) -> Selector:
  """Of the selected keys the one where `key` is largest, of several the leftmost; undefined is never the largest."""
  return dataclasses.replace(_combine('largest', selector), keys=lift(key))


def smallest(selector: Selector, key: Any) -> Selector:
  """Of the selected keys the one where `key` is smallest, of several the leftmost; undefined is never the smallest."""
  return dataclasses.replace(_combine('smallest', selector), keys=lift(key))


def total(selector: Selector, values: Any) -> SOp:
  """The sum of the selected numbers: 0 where none is selected, undefined where one of them is."""
  if not isinstance(selector, Selector):
    raise RaspError(here(), f'{selector!r} is no selector; expected total(selector, values)')
  return SOp('total', (lift(values),), selector=selector, source=here())


tokens = SOp('tokens', name='tokens')
indices = SOp('indices', name='indices')
everything = Selector('leaf', (), constant(True), constant(True), '==', operator.eq).named('everything')
before = Selector('leaf', (), indices, indices, '<', operator.lt).named('before')
until = Selector('leaf', (), indices, indices, '<=', operator.le).named('until')
length = SOp('width', selector=everything, name='length')


def evaluate(fn: Callable[..., Value], op: str, values: Iterable[Value]) -> Value:
  """A map's value on values: undefined in, undefined out, unless the map is made for it."""
  values = tuple(values)
  if op not in SEE_UNDEFINED and any(v is None for v in values):
    return None
  return plain(fn(*values))


def order(value: Value) -> tuple:
  """Sorts numbers before strings before undefined."""
  if value is None:
    return (2, 0, '')
  return (1, 0, value) if isinstance(value, str) else (0, value, '')


def nodes(root: SOp) -> list[SOp]:
  """Every s-op that `root` needs, inputs first."""
  out, seen = [], set()
  stack = [(root, False)]
  while stack:
    node, done = stack.pop()
    if done:
      out.append(node)
    elif id(node) not in seen:
      seen.add(id(node))
      stack.append((node, True))
      stack += [(n, False) for n in reversed(inputs(node))]
  return out


def leaves(selector: Selector) -> list[Selector]:
  """The predicates that a selector combines."""
  return [selector] if selector.kind == 'leaf' else [leaf for part in selector.args for leaf in leaves(part)]


def inputs(node: SOp) -> list[SOp]:
  """The s-ops that a node reads directly, those of its selector included."""
  out = list(node.args)
  if node.selector is not None:
    if node.selector.keys is not None and node.selector.kind != 'leaf':
      out.append(node.selector.keys)
    for leaf in leaves(node.selector):
      out += [leaf.keys, leaf.queries]
  return out
