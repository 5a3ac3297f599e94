"""Conditions on the rows of a table: comparisons joined by comma or `and`, `or`, `not` and brackets.

  role=train,N<2e9        mult=1|2|5 or not (schedule=cosine)        "summary/loss" < 3

A column is any header, in quotes if it holds a space or one of ()<>=!,; so is a value. A value may list several: 1|2|5.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from foundation.errors import ConfigError, nearest

TOKEN = re.compile(r"""\s*(?:(?P<mark><=|>=|!=|=|<|>|\(|\)|,)|"(?P<double>[^"]*)"|'(?P<single>[^']*)'"""
                   r"""|(?P<word>[^\s()<>=!,"']+))""")
TRUE = {'true': 1.0, 'false': 0.0}


def where(expression: str, numbers: Mapping[str, np.ndarray], texts: Mapping[str, Sequence[str]], source: str
          ) -> np.ndarray:
  """Which rows of the columns fulfil the expression. Raises ConfigError that names what it could not read."""
  tokens, at = [], 0
  while expression[at:].strip():
    match = TOKEN.match(expression, at)
    if not match:
      raise ConfigError(f'condition {expression!r}: {expression[at:].strip()[:20]!r} is not read; expected COLUMN=VALUE, '
                        'such as role=train')
    tokens.append((match.lastgroup, match[match.lastgroup or 0]))
    at = match.end()
  parser = _Parser(expression, tokens, numbers, texts, source)
  keep = parser.either()
  if parser.at < len(tokens):
    raise parser.error(f'{tokens[parser.at][1]!r} was not expected there')
  return keep


class _Parser:
  """Recursive descent; `at` is the next token."""

  def __init__(self, expression, tokens, numbers, texts, source):
    self.expression, self.tokens, self.numbers, self.texts = expression, tokens, numbers, texts
    self.source, self.at = source, 0

  def error(self, what: str) -> ConfigError:
    return ConfigError(f'condition {self.expression!r}: {what}; expected COLUMN=VALUE with one of = != < <= > >=, such '
                       'as role=train')

  def _next(self, *wanted: str) -> bool:
    """Takes the next token if it is an unquoted one of these."""
    if self.at < len(self.tokens):
      kind, word = self.tokens[self.at]
      if kind in ('mark', 'word') and word.lower() in wanted:
        self.at += 1
        return True
    return False

  def either(self) -> np.ndarray:
    keep = self._both()
    while self._next('or'):
      keep = self._both() | keep
    return keep

  def _both(self) -> np.ndarray:
    keep = self._one()
    while self._next(',', 'and'):
      if self.at == len(self.tokens):  # a comma at the end
        break
      keep = self._one() & keep
    return keep

  def _one(self) -> np.ndarray:
    if self._next('not'):
      return ~self._one()
    if self._next('('):
      keep = self.either()
      if not self._next(')'):
        raise self.error("a bracket is not closed")
      return keep
    return self._comparison()

  def _words(self) -> str:
    """The words up to a mark, or to `and` and `or`."""
    words: list[str] = []
    while self.at < len(self.tokens):
      kind, word = self.tokens[self.at]
      if kind == 'mark' or kind == 'word' and word.lower() in ('and', 'or') and words:
        break
      words.append(word)
      self.at += 1
    return ' '.join(words)

  def _comparison(self) -> np.ndarray:
    column = self._words()
    operator = self.tokens[self.at][1] if self.at < len(self.tokens) else ''
    if not column or operator not in OPERATORS:
      raise self.error(f'{column!r} is no comparison' if column else 'a comparison is missing')
    self.at += 1
    value = self._words()
    if not value:
      raise self.error(f'{column}{operator} has no value')
    if column in self.texts and operator in ('=', '!='):
      hit = np.isin(np.array(self.texts[column], object), value.split('|'))
      return ~hit if operator == '!=' else hit
    if column not in self.numbers:
      names = (*self.numbers, *self.texts)
      what = 'holds texts; expected = or !=' if column in self.texts else \
          f'it has {", ".join(names)}{nearest(column, names)}'
      raise ConfigError(f'{self.source}: ' + (f'column {column!r} {what}' if column in self.texts else
                                              f'no column {column!r}; {what}'))
    try:
      values = [TRUE[v.lower()] if v.lower() in TRUE else float(v) for v in value.split('|')]
    except ValueError:
      raise ConfigError(f'condition {self.expression!r}: expected a number for the column {column}, got {value!r}'
                        ) from None
    return OPERATORS[operator](self.numbers[column], values)


OPERATORS: dict[str, Callable] = {
    '=': np.isin, '!=': lambda a, b: ~np.isin(a, b), '<': lambda a, b: a < b[0], '<=': lambda a, b: a <= b[0],
    '>': lambda a, b: a > b[0], '>=': lambda a, b: a >= b[0]}
