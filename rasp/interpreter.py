"""The exact meaning of a program: Python values, fractions for means. Everything compiled is held to this."""

from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction

from rasp import language
from rasp.language import RaspError, Selector, SOp, Value


def truth(selector: Selector, key: Value, query: Value) -> bool:
  """A leaf's predicate; undefined is never selected."""
  return key is not None and query is not None and bool(selector.fn(key, query))


class Trace:
  """Values of every s-op and matrices of every selector on one input."""

  def __init__(self, sequence: Sequence[Value]):
    self.sequence = list(sequence)
    self.values: dict[SOp, list[Value]] = {}
    self.matrices: dict[Selector, list[list[bool]]] = {}

  def matrix(self, selector: Selector) -> list[list[bool]]:
    """Which keys every query selects: [query][key]."""
    if selector not in self.matrices:
      self.matrices[selector] = self._matrix(selector)
    return self.matrices[selector]

  def _matrix(self, s: Selector) -> list[list[bool]]:
    n = range(len(self.sequence))
    if s.kind == 'leaf':
      keys, queries = self(s.keys), self(s.queries)
      try:
        return [[truth(s, k, q) for k in keys] for q in queries]
      except Exception as error:
        raise RaspError(s.source, f'the predicate failed ({error}); expected a truth value for every key and query'
                        ) from None
    parts = [self.matrix(part) for part in s.args]
    if s.kind == 'and':
      return [[parts[0][i][j] and parts[1][i][j] for j in n] for i in n]
    if s.kind == 'or':
      return [[parts[0][i][j] or parts[1][i][j] for j in n] for i in n]
    if s.kind == 'not':
      return [[not parts[0][i][j] for j in n] for i in n]
    if s.kind in ('largest', 'smallest'):
      return [self._best(s, row) for row in parts[0]]
    keep = min if s.kind == 'first' else max
    return [[row[j] and j == keep(k for k in n if row[k]) for j in n] for row in parts[0]]

  def _best(self, s: Selector, row: list[bool]) -> list[bool]:
    """Of the keys of a row the one whose value is largest or smallest, and leftmost."""
    values = self(s.keys)
    keys = [j for j, chosen in enumerate(row) if chosen and values[j] is not None]
    try:
      best = (max if s.kind == 'largest' else min)(keys, key=lambda j: values[j], default=None)
    except TypeError:
      raise RaspError(s.source, f'{s.kind} compares text with numbers; expected keys of one type') from None
    return [j == best for j in range(len(row))]

  def __call__(self, node: SOp) -> list[Value]:
    for part in language.nodes(node) if node not in self.values else ():
      if part not in self.values:
        self.values[part] = self._values(part)
    return self.values[node]

  def _values(self, node: SOp) -> list[Value]:
    n = len(self.sequence)
    if node.kind == 'tokens':
      return [language.plain(v) for v in self.sequence]
    if node.kind == 'indices':
      return list(range(n))
    if node.kind == 'constant':
      return [language.plain(node.value)] * n
    if node.kind == 'width':
      return [sum(row) for row in self.matrix(node.selector)]
    if node.kind == 'total':
      values = self(node.args[0])
      return [total(node, [v for v, chosen in zip(values, row) if chosen]) for row in self.matrix(node.selector)]
    if node.kind == 'aggregate':
      values = self(node.args[0])
      return [aggregate(node, [v for v, chosen in zip(values, row) if chosen]) for row in self.matrix(node.selector)]
    columns = [self(a) for a in node.args]
    return [apply(node, row) for row in zip(*columns)]


def apply(node: SOp, row: tuple[Value, ...]) -> Value:
  """A map on the values of one position."""
  try:
    value = language.evaluate(node.fn, node.op, row)
  except ZeroDivisionError:
    raise RaspError(node.source, f'{node!r} divides by 0 (at {_show(row)}); keep 0 out of the divisor, or write '
                                 'rasp.divide(a, b, otherwise)') from None
  except TypeError:
    kinds = ' and '.join(dict.fromkeys('text' if isinstance(v, str) else 'a number' for v in row))
    raise RaspError(node.source, f"'{node.op}' cannot take {_show(row)} ({kinds}); compare text with text and "
                                 'calculate with numbers, rasp.apply(int, tokens) reads digits') from None
  except Exception as error:
    raise RaspError(node.source, f"'{node.op}' failed at {_show(row)} ({type(error).__name__}: {error}); expected a "
                                 'function that is defined for every value of its arguments') from None
  if value is not None and not isinstance(value, (int, str, Fraction)):
    raise RaspError(node.source, f"'{node.op}' gives {value!r} of type {type(value).__name__}; expected a number, a "
                                 'string, a bool or None')
  return value


def _show(row: tuple[Value, ...]) -> str:
  return ', '.join(map(repr, row))


def aggregate(node: SOp, chosen: list[Value]) -> Value:
  """An aggregate of the values selected by one query."""
  if not chosen:
    return language.plain(node.value)
  if node.one or any(isinstance(v, str) or v is None for v in chosen):
    if any(v != chosen[0] or (v is None) != (chosen[0] is None) for v in chosen):
      two = ' and '.join(map(repr, sorted(set(chosen), key=language.order)[:2]))
      raise RaspError(node.source, f'aggregate selects {two} at once, which have no mean; select one key (.last() or '
                                   '.first() takes one of several), or aggregate numbers')
    return chosen[0]
  return language.plain(Fraction(sum(map(Fraction, chosen)), len(chosen)))


def total(node: SOp, chosen: list[Value]) -> Value:
  """The sum of the values selected by one query."""
  if any(isinstance(v, str) for v in chosen):
    raise RaspError(node.source, f'total adds {next(v for v in chosen if isinstance(v, str))!r}; expected numbers')
  return None if None in chosen else language.plain(sum(chosen, Fraction(0)))


def run(node: SOp, sequence: list[Value], vocabulary: tuple[Value, ...] = ()) -> list[Value]:
  """The program's value at every position of `sequence`. Raises RaspError on a token outside the vocabulary."""
  check_tokens(sequence, vocabulary)
  return Trace(sequence)(node)


def check_tokens(sequence: Iterable[Value], vocabulary: Collection[Value], subject: str = '',
                 source: language.Source | None = None) -> None:
  """Raises RaspError on a token outside the vocabulary, or one twice in it; an empty vocabulary allows every token.

  subject, source: whose tokens they are, for the message.
  """
  seen = set()
  for value in vocabulary:
    if value in seen:
      raise RaspError(source, f'{subject}the vocabulary has {value!r} twice; expected each token once')
    seen.add(value)
  for token in sequence if vocabulary else ():
    if token not in seen:
      raise RaspError(source, f'{subject}token {token!r} is not in the vocabulary; expected one of '
                              f"{' '.join(map(str, vocabulary))}")
