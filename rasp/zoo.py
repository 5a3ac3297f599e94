"""Named programs with their truth in plain Python: known circuits, to test methods that look for circuits.

The tasks are those that benchmarks of interpretability and of RASP compilers use, as anyone would state them. Every
entry is right at every length up to LONGEST: `tests/rasp/test_zoo.py` compares decoder and truth.

  entry = zoo.ZOO['is_palindrome']
  compiled = rasp.compile(entry.program, longest=zoo.LONGEST)
  compiled('abca') == entry.truth(list('abca'))

As a file of programs: python -m rasp run --program=rasp/zoo.py:is_palindrome --input=abba
"""

import collections
from collections.abc import Callable
import dataclasses
from fractions import Fraction
import statistics
from typing import Any

from rasp.language import (
    SOp, aggregate, apply, before, default, everything, indices, largest, length, select, selector_width, tokens, total,
    until, where)
from rasp.library import sequences
from rasp.program import Program, program

LONGEST = 12
LETTERS, DIGITS, BITS, ROUND = 'abcd', tuple(range(10)), (0, 1), '()'
t, i, n = tokens, indices, length


@dataclasses.dataclass(frozen=True)
class Entry:
  """A program and what it means: `truth` takes an input as a list and gives a list of its length."""
  program: Program
  truth: Callable[[list], list]


ZOO: dict[str, Entry] = {}


def _add(name: str, vocabulary: Any, sop: SOp, each: Callable[[list, int], Any]) -> None:
  """`each(x, i)`: the value at position i of the input x."""
  example = tuple(vocabulary[k * k % len(vocabulary)] for k in range(5))
  ZOO[name] = Entry(program(lambda: sop, vocabulary=vocabulary, example=example, name=name),
                    lambda x: [each(x, k) for k in range(len(x))])


def _at(place: Any, x: Any = t, otherwise: Any = None) -> SOp:
  return aggregate(select(i, place, '=='), x, default=otherwise)


def _any(truth: SOp, among: Any = everything) -> SOp:
  return selector_width(among & select(truth, True, '==')) > 0


def _counter(x: list) -> collections.Counter:
  return collections.Counter(x)


def _element_wise() -> None:
  _add('double', DIGITS, t * 2, lambda x, k: 2 * x[k])
  _add('negate', DIGITS, -t, lambda x, k: -x[k])
  _add('square', DIGITS, t * t, lambda x, k: x[k]**2)
  _add('remainder_of_3', DIGITS, t % 3, lambda x, k: x[k] % 3)
  _add('halve', DIGITS, t // 2, lambda x, k: x[k] // 2)
  _add('distance_from_5', DIGITS, abs(t - 5), lambda x, k: abs(x[k] - 5))
  _add('is_even', DIGITS, t % 2 == 0, lambda x, k: x[k] % 2 == 0)
  _add('above_4', DIGITS, t > 4, lambda x, k: x[k] > 4)
  _add('clip_2_to_6', DIGITS, apply(lambda v: min(6, max(2, v)), t), lambda x, k: min(6, max(2, x[k])))
  _add('is_vowel', 'abcde', (t == 'a') | (t == 'e'), lambda x, k: x[k] in 'ae')
  _add('swap_a_and_b', LETTERS, where(t == 'a', 'b', where(t == 'b', 'a', t)),
       lambda x, k: {'a': 'b', 'b': 'a'}.get(x[k], x[k]))
  _add('next_letter', LETTERS, apply(lambda v: LETTERS[(LETTERS.index(v) + 1) % 4], t),
       lambda x, k: LETTERS[(LETTERS.index(x[k]) + 1) % 4])
  _add('add_index', DIGITS, t + i, lambda x, k: x[k] + k)
  _add('shift_cipher_by_index', DIGITS, (t + i) % 10, lambda x, k: (x[k] + k) % 10)


def _positions() -> None:
  _add('index', LETTERS, i + 0, lambda x, k: k)
  _add('even_index', LETTERS, i % 2 == 0, lambda x, k: k % 2 == 0)
  _add('length', LETTERS, n, lambda x, k: len(x))
  _add('from_the_end', LETTERS, n - 1 - i, lambda x, k: len(x) - 1 - k)
  _add('is_first', LETTERS, i == 0, lambda x, k: k == 0)
  _add('is_last', LETTERS, i == n - 1, lambda x, k: k == len(x) - 1)
  _add('is_middle', LETTERS, i == n // 2, lambda x, k: k == len(x) // 2)
  _add('second_half', LETTERS, 2 * i >= n, lambda x, k: 2 * k >= len(x))
  _add('tokens_at_even_index', LETTERS, where(i % 2 == 0, t, '-'), lambda x, k: '-' if k % 2 else x[k])
  _add('counting_game', LETTERS,
       where(i % 15 == 0, 'both', where(i % 5 == 0, 'five', where(i % 3 == 0, 'three', 'no'))),
       lambda x, k: 'both' if k % 15 == 0 else 'five' if k % 5 == 0 else 'three' if k % 3 == 0 else 'no')


def _moves() -> None:
  get = lambda x, k, otherwise=None: x[k] if 0 <= k < len(x) else otherwise
  _add('shift_right', LETTERS, _at(i - 1), lambda x, k: get(x, k - 1))
  _add('shift_left', LETTERS, _at(i + 1), lambda x, k: get(x, k + 1))
  _add('shift_right_2', LETTERS, _at(i - 2, t, '-'), lambda x, k: get(x, k - 2, '-'))
  _add('rotate_left', LETTERS, _at(where(i == n - 1, 0, i + 1)), lambda x, k: x[(k + 1) % len(x)])
  _add('rotate_right', LETTERS, _at(where(i == 0, n - 1, i - 1)), lambda x, k: x[k - 1])
  _add('reverse', LETTERS, _at(n - 1 - i), lambda x, k: x[-1 - k])
  _add('swap_neighbours', LETTERS, _at(where(i % 2 == 0, i + 1, i - 1)), lambda x, k: get(x, k ^ 1))
  _add('first_token', LETTERS, _at(0), lambda x, k: x[0])
  _add('last_token', LETTERS, _at(n - 1), lambda x, k: x[-1])
  _add('middle_token', LETTERS, _at(n // 2), lambda x, k: x[len(x) // 2])
  _add('double_each', LETTERS, _at(i // 2), lambda x, k: x[k // 2])
  _add('every_other', LETTERS, _at(i * 2), lambda x, k: get(x, 2 * k))
  _add('mirror', LETTERS, _at(where(2 * i < n, i, n - 1 - i)), lambda x, k: x[min(k, len(x) - 1 - k)])
  _add('even_indices_first', LETTERS, _at(where(2 * i < n, 2 * i, 2 * i - n + (n + 1) % 2)),
       lambda x, k: (x[::2] + x[1::2])[k])


def _counts() -> None:
  again = selector_width(select(t, t, '==') & before)
  width = lambda v: selector_width(select(t, v, '=='))
  _add('count_a', LETTERS, width('a'), lambda x, k: x.count('a'))
  _add('histogram', LETTERS, sequences.histogram(), lambda x, k: x.count(x[k]))
  _add('earlier_copies', LETTERS, again, lambda x, k: x[:k].count(x[k]))
  _add('distinct', LETTERS, selector_width(select(again, 0, '==')), lambda x, k: len(set(x)))
  _add('distinct_so_far', LETTERS, selector_width(select(again, 0, '==') & until), lambda x, k: len(set(x[:k + 1])))
  _add('more_a_than_b', LETTERS, width('a') > width('b'), lambda x, k: x.count('a') > x.count('b'))
  _add('a_minus_b', LETTERS, width('a') - width('b'), lambda x, k: x.count('a') - x.count('b'))
  _add('parity', BITS, width(1) % 2, lambda x, k: sum(x) % 2)
  _add('running_parity', BITS, total(until, t) % 2, lambda x, k: sum(x[:k + 1]) % 2)
  _add('count_modulo_3', LETTERS, width('a') % 3, lambda x, k: x.count('a') % 3)
  _add('share_of_a', LETTERS, aggregate(everything, t == 'a'), lambda x, k: Fraction(x.count('a'), len(x)))
  _add('share_of_a_so_far', LETTERS, aggregate(until, t == 'a'), lambda x, k: Fraction(x[:k + 1].count('a'), k + 1))
  _add('majority_so_far', BITS, aggregate(until, t) > 0.5, lambda x, k: 2 * sum(x[:k + 1]) > k + 1)
  _add('occurs_again', LETTERS, sequences.histogram() > 1, lambda x, k: x.count(x[k]) > 1)
  _add('first_occurrence', LETTERS, again == 0, lambda x, k: x[k] not in x[:k])
  _add('last_occurrence', LETTERS, selector_width(select(t, t, '==') & ~until) == 0, lambda x, k: x[k] not in x[k + 1:])
  _add('twice_or_more_dropped', LETTERS, where(sequences.histogram() > 1, '-', t),
       lambda x, k: '-' if x.count(x[k]) > 1 else x[k])
  _add('most_common', LETTERS, sequences.most_common(), lambda x, k: max(x, key=lambda v: (x.count(v), -x.index(v))))


def _orders() -> None:
  rank = sequences.rank(t)
  _add('sort', DIGITS, sequences.sort(), lambda x, k: sorted(x)[k])
  _add('sort_descending', DIGITS, sequences.sort(t, -t), lambda x, k: sorted(x, reverse=True)[k])
  _add('sort_by_frequency', LETTERS, sequences.sort_by_frequency(),
       lambda x, k: sorted(x, key=lambda v: -x.count(v))[k])
  _add('stable_rank', DIGITS, rank, lambda x, k: sum(v < x[k] for v in x) + x[:k].count(x[k]))
  _add('count_smaller', DIGITS, selector_width(select(t, t, '<')), lambda x, k: sum(v < x[k] for v in x))
  _add('larger_before', DIGITS, selector_width(select(t, t, '>') & before), lambda x, k: sum(v > x[k] for v in x[:k]))
  _add('minimum', DIGITS, aggregate(select(rank, 0, '=='), t), lambda x, k: min(x))
  _add('maximum', DIGITS, aggregate(select(rank, n - 1, '=='), t), lambda x, k: max(x))
  _add('lower_median', DIGITS, aggregate(select(rank, (n - 1) // 2, '=='), t), lambda x, k: statistics.median_low(x))
  _add('running_maximum', DIGITS, aggregate(largest(until, t), t), lambda x, k: max(x[:k + 1]))
  _add('index_of_maximum', DIGITS, aggregate(largest(everything, t), i), lambda x, k: x.index(max(x)))
  _add('largest_other_letter', LETTERS, aggregate(largest(select(t, t, '!='), apply(LETTERS.index, t)), t, '-'),
       lambda x, k: max((v for v in x if v != x[k]), default='-'))
  _add('is_maximum', DIGITS, selector_width(select(t, t, '>')) == 0, lambda x, k: x[k] == max(x))
  _add('index_of_minimum', DIGITS, aggregate(select(rank, 0, '=='), i), lambda x, k: x.index(min(x)))
  _add('is_sorted', DIGITS, ~_any(default(_at(i - 1) > t, False)), lambda x, k: x == sorted(x))
  _add('is_record', DIGITS, selector_width(select(t, t, '>=') & before) == 0, lambda x, k: all(v < x[k] for v in x[:k]))


def _patterns() -> None:
  same = _at(i - 1) == t
  position = lambda end: aggregate(getattr(select(t, 'a', '=='), end)(), i, -1)
  last_a = aggregate((select(t, 'a', '==') & until).last(), i)
  change = default(_at(i - 1) != t, True)
  _add('is_palindrome', LETTERS, ~_any(_at(n - 1 - i) != t), lambda x, k: x == x[::-1])
  _add('ends_in_ab_here', LETTERS, sequences.detect('ab'), lambda x, k: ''.join(x[:k + 1]).endswith('ab'))
  _add('contains_ab', LETTERS, _any(sequences.detect('ab')), lambda x, k: 'ab' in ''.join(x))
  _add('equals_previous', LETTERS, default(same, False), lambda x, k: k > 0 and x[k] == x[k - 1])
  _add('equals_next', LETTERS, default(_at(i + 1) == t, False), lambda x, k: k + 1 < len(x) and x[k] == x[k + 1])
  _add('all_equal', LETTERS, ~_any(_at(0) != t), lambda x, k: len(set(x)) == 1)
  _add('alternates', LETTERS, ~_any(default(same, False)), lambda x, k: all(a != b for a, b in zip(x, x[1:])))
  _add('starts_and_ends_alike', LETTERS, _at(0) == _at(n - 1), lambda x, k: x[0] == x[-1])
  _add('index_of_first_a', LETTERS, position('first'), lambda x, k: x.index('a') if 'a' in x else -1)
  _add('index_of_last_a', LETTERS, position('last'), lambda x, k: len(x) - 1 - x[::-1].index('a') if 'a' in x else -1)
  _add('steps_since_a', LETTERS, i - last_a, lambda x, k: x[k::-1].index('a') if 'a' in x[:k + 1] else None)
  _add('induction', LETTERS, sequences.induction(), lambda x, k: next(
      (x[j] for j in range(k, 0, -1) if x[j - 1] == x[k]), None))
  _add('run_length_so_far', LETTERS, i - aggregate((select(change, True, '==') & until).last(), i) + 1,
       lambda x, k: next((d for d in range(1, k + 1) if x[k - d] != x[k]), k + 1))
  _add('runs_so_far', LETTERS, selector_width(select(change, True, '==') & until),
       lambda x, k: 1 + sum(a != b for a, b in zip(x[:k + 1], x[1:k + 1])))
  _add('cut_after_stop', 'ab.', where(_any(t == '.', before), '-', t), lambda x, k: '-' if '.' in x[:k] else x[k])
  _add('word_number', 'ab ', selector_width(select(t, ' ', '==') & until), lambda x, k: x[:k + 1].count(' '))
  _add('first_letters', 'ab ', where((t != ' ') & (default(_at(i - 1), ' ') == ' '), t, '-'),
       lambda x, k: x[k] if x[k] != ' ' and (k == 0 or x[k - 1] == ' ') else '-')


def _sums() -> None:
  depth = total(until, where(t == '(', 1, -1))
  _add('prefix_sum', DIGITS, total(until, t), lambda x, k: sum(x[:k + 1]))
  _add('sum', DIGITS, total(everything, t), lambda x, k: sum(x))
  _add('mean', DIGITS, aggregate(everything, t), lambda x, k: Fraction(sum(x), len(x)))
  _add('running_mean', DIGITS, aggregate(until, t), lambda x, k: Fraction(sum(x[:k + 1]), k + 1))
  _add('sum_with_previous', DIGITS, t + _at(i - 1, t, 0), lambda x, k: x[k] + (x[k - 1] if k else 0))
  _add('difference_to_previous', DIGITS, t - _at(i - 1, t, 0), lambda x, k: x[k] - (x[k - 1] if k else 0))
  _add('sum_of_smaller', DIGITS, total(select(t, t, '<'), t), lambda x, k: sum(v for v in x if v < x[k]))
  _add('sum_of_window', DIGITS, total(select(i, i - 3, '>') & until, t), lambda x, k: sum(x[max(0, k - 2):k + 1]))
  _add('last_digit_of_sum', DIGITS, total(everything, t) % 10, lambda x, k: sum(x) % 10)
  _add('above_mean', DIGITS, t * n > total(everything, t), lambda x, k: x[k] * len(x) > sum(x))
  _add('depth', ROUND, depth, lambda x, k: x[:k + 1].count('(') - x[:k + 1].count(')'))
  _add('never_negative', ROUND, ~_any(depth < 0, until),
       lambda x, k: all(x[:j].count('(') >= x[:j].count(')') for j in range(k + 2)))
  _add('is_balanced', ROUND, ~_any(depth < 0) & (_at(n - 1, depth) == 0),
       lambda x, k: x.count('(') == x.count(')') and all(x[:j].count('(') >= x[:j].count(')') for j in range(len(x))))
  _add('xor_with_previous', BITS, (t + _at(i - 1, t, 0)) % 2, lambda x, k: x[k] ^ (x[k - 1] if k else 0))


for _make in (_element_wise, _positions, _moves, _counts, _orders, _patterns, _sums):
  _make()
PROGRAMS = {name: entry.program for name, entry in ZOO.items()}
