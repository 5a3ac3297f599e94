"""Random programs of many forms against an evaluator that shares nothing with the compiler, nor with its interpreter."""

import collections

import numpy as np
import pytest
from tests.rasp import forms, programs

import rasp
from rasp import interpreter, verify
from rasp.library import PROGRAMS, sequences

t, i, n = rasp.tokens, rasp.indices, rasp.length


def counts(seeds):
  found = collections.Counter()
  for seed in seeds:
    kind, detail = forms.check(seed)
    assert kind not in ('wrong', 'beyond'), (seed, detail)
    found[kind] += 1
  return found


def test_three_hundred_programs():
  found = counts(range(300))
  assert found['refused'] + found['order'] <= 12, found


@pytest.mark.slow
def test_ten_thousand_programs():
  found = counts(range(300, 10_300))
  assert found['refused'] <= 300 and found['order'] <= 30, found


def test_the_evaluator_and_the_interpreter_agree():
  for seed in range(60):
    generator = forms.Generator(seed)
    program = generator.program()
    for row in forms.rows(generator.vocabulary, generator.longest, generator.r):
      try:
        want = forms.Values(row)(program)
      except forms.Wrong:
        continue
      assert forms.same(want, interpreter.run(forms.build(program), row), 0)


def test_the_forward_pass_is_the_decoder():
  for name in ('reverse', 'sort', 'induction', 'fraction_of_previous'):
    program = PROGRAMS[name]
    compiled = rasp.compile(program, longest=8)
    row = list(program.example)
    hidden, _ = forms.forward(compiled, row)
    np.testing.assert_allclose(hidden, compiled.forward(*compiled.tokenize([row]))[0][0, 1:], rtol=1e-5, atol=1e-4)


def test_a_copy_that_is_added_twice_is_seen(monkeypatch):
  """Mutant: every selector is believed to select one key, so that terms of an `or` are added."""
  from rasp.compiling.analysis import Analysis
  program = ('aggregate', ('or', ('select', ('tokens',), ('const', 'a'), '=='), ('before',)), ('const', 7), None, True)
  monkeypatch.setattr(forms.Generator, 'program', lambda self: program)
  seed = next(s for s in range(100) if forms.Generator(s).vocabulary == 'abc' and forms.Generator(s).longest > 4)
  assert forms.check(seed)[0] == 'right'
  monkeypatch.setattr(Analysis, 'unique', lambda *_: True)
  assert forms.check(seed)[0] in ('wrong', 'beyond')


# What was refused, or cost much, without need.

def right(sop, vocabulary, longest):
  compiled = rasp.compile(sop, vocabulary, longest)
  verdict = verify.verify(programs.padded(compiled), sop, 2, 2)
  assert verdict.right and verdict.worst <= compiled.report.bound, verdict
  return compiled


@pytest.mark.parametrize('numbers', [40, 100, 200])
def test_stable_sort_of_many_numbers(numbers):
  compiled = rasp.compile(sequences.sort(), range(numbers), numbers)
  rng = np.random.default_rng(0)
  row = rng.integers(0, numbers, numbers).tolist()
  assert compiled(row) == sorted(row) and compiled.report.layers == 2


def test_majority_is_a_difference():
  count = lambda v: rasp.selector_width(rasp.select(t, v, '=='))
  compiled = right(count('a') > count('b'), 'ab', 40)
  assert compiled.report.feedforward <= 3
  assert rasp.compile(count('a') > count('b'), 'ab', 500).report.feedforward <= 3


def test_sums():
  assert right(rasp.aggregate(rasp.until, t) * (i + 1), range(5), 20).report.heads == 1
  assert right(rasp.total(rasp.until, t), range(-2, 5), 12)([1, -2, 4]) == [1, -1, 3]
  right(n * rasp.aggregate(rasp.everything, t), range(5), 8)
  right(rasp.total(rasp.before, rasp.aggregate(rasp.until, t == 1)), range(3), 8)
  right(rasp.total((rasp.select(t, t, '==') | rasp.before).last(), t), range(3), 8)
  assert interpreter.run(rasp.total(rasp.before, t), [3, 4]) == [0, 3]
  with pytest.raises(rasp.RaspError, match="total adds 'a'; expected numbers"):
    interpreter.run(rasp.total(rasp.until, t), ['a'])
  with pytest.raises(rasp.RaspError, match='total adds tokens, which is not always a number'):
    rasp.compile(rasp.total(rasp.until, t), 'ab', 4)


def test_fractions_from_two_inputs():
  a, b = rasp.aggregate(rasp.until, t == 'a'), rasp.aggregate(rasp.until, t == 'b')
  right(rasp.where(t == 'a', a, b - 0.5), 'abc', 20)
  assert rasp.compile(rasp.where(t == 'a', a, b), 'abc', 200).report.feedforward < 10
  before = rasp.aggregate(rasp.before, t == 'a')
  right(rasp.where(t == 'a', before, rasp.aggregate(rasp.before, t == 'b')), 'abc', 12)


def test_dyck_2_in_its_natural_form():
  width = lambda v: rasp.selector_width(rasp.select(t, v, '==') & rasp.until)
  depth = width('(') + width('[') - width(')') - width(']')
  opening = rasp.select(t, '(', '==') | rasp.select(t, '[', '==')
  last = rasp.aggregate((rasp.select(depth, depth + 1, '==') & rasp.before & opening).last(), t, '-')
  matched = (t == ')') & (last == '(') | (t == ']') & (last == '[')
  bad = ((t == ')') | (t == ']')) & ~matched | (depth < 0)
  good = (rasp.selector_width(rasp.select(bad, True, '==')) == 0) & (
      rasp.aggregate(rasp.select(i, n - 1, '=='), depth) == 0)
  compiled = right(good, '()[]', 12)
  assert compiled.report.parameters < 60_000
  for text, wanted in (('([])[]', True), ('([)]', False), ('(()', False), ('())(', False), ('[([])](())', True)):
    assert compiled(text) == [wanted] * len(text)


def test_a_mean_of_many_numbers_is_compared_with_a_bound():
  right(rasp.aggregate(rasp.until, t) > 500, range(0, 1000, 3), 20)
  right(rasp.where(2 * rasp.aggregate(rasp.until, t, 0) <= 700, 'low', 'high'), range(0, 1000, 50), 12)


def test_the_complement_of_later_keys_is_causal():
  compiled = right(rasp.selector_width(~rasp.select(i, i, '>')), 'ab', 12)
  assert compiled.report.causal
  assert rasp.compile(rasp.selector_width(~(rasp.select(i, i, '>') | rasp.select(t, t, '=='))), 'ab', 12).report.causal


def test_an_or_of_conjunctions_that_never_meet_is_a_head_each():
  """Once 2^k - 1 heads, since each was made disjoint from all before it."""
  union = None
  for back, letter in enumerate('abcdefgh', 1):
    earlier = rasp.aggregate(rasp.select(i, i - back, '=='), t, '-')
    part = rasp.select(earlier, t, '==') & rasp.select(t, letter, '==')
    union = part if union is None else union | part
  assert rasp.compile(rasp.selector_width(union), 'abcdefgh', 10).report.heads == 8


def test_a_mixed_vocabulary_in_a_complement():
  """Once wrong: the columns of a merged predicate in the order of the vocabulary, not of its sorted values."""
  right(rasp.selector_width(~rasp.select(t, 2, '==')), ('a', 'b', 1, 2), 4)
