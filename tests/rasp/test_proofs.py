"""What is not proven is refused: programs whose compiled result was once wrong without a word, with the right value."""

from fractions import Fraction

import numpy as np
import pytest

import rasp
from rasp import interpreter, verify
from rasp.compiling import bound, readout

t, i, n = rasp.tokens, rasp.indices, rasp.length


def right(sop, vocabulary, longest, rows=(), **settings):
  """Compiles, and compares with the interpreter on `rows` and on short, random and hard inputs."""
  compiled = rasp.compile(sop, vocabulary, longest, **settings)
  for row in rows:
    assert verify.equal(interpreter.run(sop, list(row)), compiled(row)), (row, compiled(row))
  if len(vocabulary) > 100:  # a row a token is enough
    return compiled
  verdict = verify.verify(compiled, sop, 2, 4)
  assert verdict.right and verdict.worst <= compiled.report.bound, verdict
  return compiled


def test_large_whole_outputs_are_said_in_digits():
  compiled = right(t, range(10000), 4, [[2, 9998, 5, 7000]])
  assert compiled([2, 9998, 5, 7000]) == [2, 9998, 5, 7000]
  right(t, range(0, 20_000_000, 4000), 3, [[16_000_000, 19_996_000, 4000]])  # squares beyond 2^24
  word = [f'w{k}' for k in range(7000)]
  assert right(t, word, 3)(['w6999', 'w3', 'w5001']) == ['w6999', 'w3', 'w5001']
  assert right(rasp.aggregate(rasp.select(i, i - 1, '=='), t), range(9000), 3)([8999, 4501, 0]) == [None, 8999, 4501]


@pytest.mark.parametrize('digits', [4, pytest.param(5, marks=pytest.mark.slow)])
def test_numbers_made_of_digits(digits):
  number = 0
  for back in range(digits):
    number = number + rasp.aggregate(rasp.select(i, i - back, '=='), t, 0) * 10**back
  compiled = right(number, range(10), 5, [[9] * 5, [9, 8, 7, 6, 5], [4, 9, 9, 9, 9]])
  assert compiled([9, 8, 7, 6, 5])[-1] == int('98765'[-digits:])


def test_the_readout_is_proven(monkeypatch):
  """The mutant that believes every margin says 9997 for 9998."""
  monkeypatch.setattr(readout, 'prove', lambda *_: None)
  assert rasp.compile(t, range(10000), 4)([2, 9998, 5, 7000]) != [2, 9998, 5, 7000]


def test_undefined_and_text_beside_fractions():
  before = rasp.aggregate(rasp.before, t == 'a')
  out = right(before, 'ab', 12, ['abba'])('abba')
  assert out[0] is None and out[1:] == pytest.approx([1, 1 / 2, 1 / 3], abs=1e-3)
  sop = rasp.where(i == 0, 'first', rasp.aggregate(rasp.until, t == 'a'))
  out = right(sop, 'ab', 4, ['abba'])('abba')
  assert out[0] == 'first' and out[1:] == pytest.approx([1 / 2, 1 / 3, 1 / 2], abs=1e-3)
  never = rasp.aggregate(rasp.select(t, 'c', '=='), t == 'c', 'none')
  assert right(never, 'abc', 5)('ab') == ['none', 'none']
  right(rasp.aggregate(rasp.before, t, 'none'), (1, 2, 4), 6)
  right(rasp.aggregate(rasp.before, t == 'a', 'none') == 'none', 'ab', 6)  # a mean's text default, as an input


@pytest.mark.parametrize('sop,vocabulary,longest', [
    (i, 'ab', 40), (t, 'abcdefghijklmnopqrstuvwxyz', 4), (rasp.where(t == 'a', 'x', 'y'), 'ab', 8), (t, range(300), 3),
    (i % 3, 'ab', 9), (rasp.where(i > 4, 1, 0), 'ab', 9), (t * Fraction(1, 2), range(9), 3), (t * 0.1, range(9), 3)])
def test_bfloat16_is_right_or_refused(sop, vocabulary, longest):
  try:
    right(sop, vocabulary, longest, dtype='bfloat16')
  except rasp.RaspError as error:
    assert 'bfloat16' in str(error)


def test_a_copy_over_or_adds_nothing_twice():
  sop = rasp.aggregate(rasp.select(t, 'a', '==') | rasp.select(t, 'b', '=='), rasp.where(t == 'c', 'n', 'y'))
  assert right(sop, 'abc', 6, ['abcc'])('abcc') == ['y'] * 4
  one = rasp.aggregate(rasp.select(t, 'a', '==') | rasp.select(i, 0, '=='), rasp.constant(3), 0, one=True)
  assert right(one, 'abc', 6)('aba') == [3] * 3
  right(rasp.aggregate(~(rasp.select(t, 'a', '==') & rasp.select(i, i, '<')), 'z'), 'abc', 5)


def test_a_mean_of_what_may_be_undefined_elsewhere_is_a_mean():
  """Undefined at index 0 alone, which is never selected."""
  half = rasp.aggregate(rasp.select(i, i - 1, '=='), rasp.apply(int, t))
  mean = rasp.aggregate(rasp.select(i, 0, '>') & rasp.until, half, 0)
  assert interpreter.run(mean, list('1204')) == [0, 1, Fraction(3, 2), 1]
  right(mean, '012345', 5, ['1204', '43210'])
  right(rasp.aggregate(rasp.select(i, 0, '>') & rasp.until, half, 9), '0123', 5)
  right(rasp.aggregate(rasp.select(i, 0, '>') & rasp.until, half), '0123', 5)


def test_a_mean_or_a_copy_that_the_selection_decides_is_refused():
  with pytest.raises(rasp.RaspError, match='numbers and text'):
    rasp.compile(rasp.aggregate(rasp.select(t, 'a', '!='), t), ('a', 1, 2), 5)
  right(rasp.aggregate(rasp.select(i, 0, '=='), t), ('a', 1, 2), 5)


def test_selecting_one_value_is_tried_at_every_length_and_refused_where_indices_disprove_it():
  with pytest.raises(rasp.RaspError, match='at once'):
    rasp.compile(rasp.aggregate(rasp.select(i % 10, i, '=='), t), 'ab', 16)
  with pytest.raises(rasp.RaspError, match='at once'):
    rasp.compile(rasp.aggregate(rasp.select(i % 300, i, '=='), t), 'ab', 400)
  late = rasp.select(i, 12, '>=') & rasp.select(i, i, '<=')
  with pytest.raises(rasp.RaspError, match='at once'):
    rasp.compile(rasp.aggregate(late, t), 'ab', 14)
  right(rasp.aggregate(rasp.select(i % 10, i, '=='), t), 'ab', 10)


@pytest.mark.parametrize('value', [1e-7, 0.1, 1 / 3, 2.5, 1e-9, 123456.789, 0.1 + 0.2, 1e16 / 3])
def test_floats_are_exact_decimals(value):
  assert float(interpreter.run(rasp.constant(value), ['a'])[0]) == value
  assert float(interpreter.run(rasp.apply(lambda v: v * value, t), [1])[0]) == value


def test_small_numbers_are_told_apart():
  assert interpreter.run(t * 1e-7, [1, 2]) == [Fraction(1, 10**7), Fraction(2, 10**7)]
  assert interpreter.run(rasp.aggregate(rasp.until, t == 1) == 1 / 3, [1, 2, 2]) == [False, False, True]
  out = rasp.compile(t * 1e-7, [1, 2], 4)([1, 2])
  assert np.allclose(out, [1e-7, 2e-7], rtol=1e-3, atol=0)
  for wrong in (float('nan'), float('inf')):
    with pytest.raises(rasp.RaspError, match='finite'):
      rasp.constant(wrong) + t
  assert bound.WANTED == 1e-3
