"""Counting, moving and ordering: the programs of the RASP paper and of Tracr, each with its idea.

Sources: Weiss, Goldberg and Yahav 2021 (arXiv:2106.06981), section 4 and appendix B; Lindner et al. 2023, "Tracr"
(arXiv:2301.05062), whose library has the same functions. Every function returns an s-op.
"""

from rasp.language import SOp, aggregate, before, default, indices, length, select, selector_width, tokens, until, where
from rasp.program import program

LETTERS = 'abcd'


def shift(by: int, x: SOp = tokens, otherwise=None) -> SOp:
  """The value `by` positions to the left: each query selects the key at its own index minus `by`."""
  return aggregate(select(indices, indices - by, '=='), x, default=otherwise).named(f'shift_{by}')


def count(value) -> SOp:
  """How often `value` occurs, at every position: a selector that asks the key alone."""
  return selector_width(select(tokens, value, '==')).named(f'count_{value}')


def histogram(x: SOp = tokens) -> SOp:
  """How often each position's own value occurs: the width of "same value"."""
  return selector_width(select(x, x, '==')).named('histogram')


def reverse(x: SOp = tokens) -> SOp:
  """The sequence backwards: index i reads index length - 1 - i."""
  return aggregate(select(indices, length - 1 - indices, '=='), x).named('reverse')


def rank(keys: SOp) -> SOp:
  """A position's place in the stable ascending order: how many are smaller, or equal and before."""
  smaller = select(keys, keys, '<') | (select(keys, keys, '==') & before)
  return selector_width(smaller).named('rank')


def sort(values: SOp = tokens, keys: SOp | None = None) -> SOp:
  """Values in the ascending order of their keys, stable: index i reads the position of rank i."""
  return aggregate(select(rank(values if keys is None else keys), indices, '=='), values).named('sort')


def sort_unique(values: SOp = tokens, keys: SOp | None = None) -> SOp:
  """As sort, for distinct keys only: the rank is the number of smaller keys. A repeated key leaves gaps undefined."""
  keys = values if keys is None else keys
  place = selector_width(select(keys, keys, '<')).named('place')
  return aggregate(select(place, indices, '=='), values).named('sort_unique')


def sort_by_frequency(x: SOp = tokens) -> SOp:
  """The sequence with the most frequent values first; values of one frequency keep their order."""
  return sort(x, -histogram(x)).named('sort_by_frequency')


def most_frequent(x: SOp = tokens) -> SOp:
  """The distinct values by falling frequency, then undefined. Weiss et al., appendix B: first occurrences, sorted."""
  again = selector_width(select(x, x, '==') & before) > 0
  frequency = where(again, 0, histogram(x))
  place = rank(-frequency)
  distinct = selector_width(select(again, False, '=='))
  there = select(place, indices, '==')
  return where(indices < distinct, aggregate(there, x), None).named('most_frequent')


def most_common(x: SOp = tokens) -> SOp:
  """The most frequent value at every position; of several the one that comes first."""
  return aggregate(select(rank(-histogram(x)), 0, '=='), x).named('most_common')


def double_histogram() -> SOp:
  """How many distinct values occur as often as this position's value (Weiss et al., section 4)."""
  frequency = histogram()
  first = selector_width(select(tokens, tokens, '==') & before) == 0
  return selector_width(select(frequency, frequency, '==') & select(first, True, '==')).named('double_histogram')


def count_less_frequent(n: int) -> SOp:
  """How many positions hold a value that occurs at most n times."""
  return selector_width(select(histogram(), n, '<=')).named(f'count_less_frequent_{n}')


def fraction_of_previous(value) -> SOp:
  """The share of `value` among the tokens so far, a causal mean of truth values."""
  return aggregate(until, tokens == value).named(f'fraction_of_{value}')


def pair_balance(opening, closing) -> SOp:
  """Share of opening minus share of closing tokens so far: one head, since the two means share their selector."""
  return (fraction_of_previous(opening) - fraction_of_previous(closing)).named('balance')


def detect(pattern) -> SOp:
  """True where the tokens up to here end with `pattern`: one head a token, all in one layer."""
  out = tokens == pattern[-1]
  for back in range(1, len(pattern)):
    out = out & default(shift(back, tokens == pattern[-1 - back]), False)
  return out.named(f"detect_{''.join(map(str, pattern))}")


def parity(one='1') -> SOp:
  """Whether the number of ones is odd: a count, and its remainder in the same feed-forward layer."""
  return (count(one) % 2 == 1).named('parity')


def find(pattern) -> SOp:
  """The index where `pattern` first occurs, undefined if it never does, at every position."""
  ends = select(detect(pattern), True, '==').first()
  return (aggregate(ends, indices) - (len(pattern) - 1)).named('find')


def associative_memory(recall: str = '>') -> SOp:
  """At `recall` the value stored with the key that follows it earlier: keys and values alternate, "a1b2>a" gives 1.

  The task of Rush's RASP lecture: the position after `recall` is the key that is asked for; it reads the token that
  comes after the last earlier occurrence of the same key. Undefined everywhere else, and for a key never stored.
  """
  asked = default(shift(1), '') == recall
  same = select(shift(1), tokens, '==') & before
  return where(asked, aggregate(same.last(), tokens), None).named('associative_memory')


def induction() -> SOp:
  """An induction head (Olsson et al. 2022, arXiv:2209.11895): the token after the last earlier copy of this token.

  Layer 1 brings the previous token; layer 2 matches it with the own token and copies. Causal.
  """
  return aggregate((select(shift(1), tokens, '==') & until).last(), tokens).named('induction')


def add_position() -> SOp:
  """Token (a number) plus index: a linear map, which costs nothing."""
  return (tokens + indices).named('add_position')


def three_ary() -> SOp:
  """x + y - i of two number tokens (here the token itself, twice) and the index: linear as well."""
  return (tokens + tokens - indices).named('three_ary')


PROGRAMS = {p.name: p for p in (
    program(lambda: length, vocabulary=LETTERS, example='abca', name='length'),
    program(lambda: shift(1), vocabulary=LETTERS, example='abca', name='shift'),
    program(lambda: count('a'), vocabulary=LETTERS, example='abca', name='count_a'),
    program(lambda: histogram(), vocabulary=LETTERS, example='abca', name='histogram'),
    program(lambda: reverse(), vocabulary=LETTERS, example='abca', name='reverse'),
    program(lambda: sort(), vocabulary=LETTERS, example='dacab', name='sort'),
    program(lambda: sort_unique(), vocabulary=LETTERS, example='dacb', name='sort_unique'),
    program(lambda: sort_by_frequency(), vocabulary=LETTERS, example='abbcbc', name='sort_by_frequency'),
    program(lambda: most_frequent(), vocabulary=LETTERS, example='abbcbc', name='most_frequent'),
    program(lambda: most_common(), vocabulary=LETTERS, example='abbcbc', name='most_common'),
    program(lambda: double_histogram(), vocabulary=LETTERS, example='abbcdc', name='double_histogram'),
    program(lambda: count_less_frequent(2), vocabulary=LETTERS, example='abbcbc', name='count_less_frequent'),
    program(lambda: fraction_of_previous('a'), vocabulary=LETTERS, example='abca', name='fraction_of_previous'),
    program(lambda: pair_balance('(', ')'), vocabulary='()', example='(()', name='pair_balance'),
    program(lambda: detect('abc'), vocabulary='abc', example='cabcab', name='detect'),
    program(lambda: parity(), vocabulary='01', example='10110', name='parity'),
    program(lambda: find('abc'), vocabulary='abc', example='cababc', name='find'),
    program(lambda: associative_memory(), vocabulary='abc123>', example='a1b2c3>b', name='associative_memory'),
    program(lambda: induction(), vocabulary=LETTERS, example='abcab', name='induction'),
)}
