"""What programs mean, against results that the RASP paper and the lecture print, and errors that quote the line."""

from fractions import Fraction
import re

import pytest

import rasp
from rasp import interpreter, verify
from rasp.library import PROGRAMS, dyck, sequences

# Weiss, Goldberg and Yahav 2021 (arXiv:2106.06981), sections 2 and 3: results as they are printed there.
PAPER = [
    (lambda: rasp.length, 'hello', [5] * 5),
    (lambda: sequences.reverse(), 'hello', list('olleh')),
    (lambda: sequences.histogram(), 'hello', [1, 1, 2, 2, 1]),
    (lambda: sequences.double_histogram(), 'hello', [3, 3, 1, 1, 3]),
    (lambda: sequences.sort(), 'hello', list('ehllo')),
    (lambda: sequences.most_frequent(), 'abbccddd', ['d', 'b', 'c', 'a', None, None, None, None]),
    (lambda: dyck.prefix_dyck1(), '()())', list('PTPTF')),
    (lambda: rasp.aggregate(rasp.until, rasp.tokens == 'l'), 'hello',
     [0, 0, Fraction(1, 3), Fraction(1, 2), Fraction(2, 5)]),
    (lambda: rasp.tokens == 'l', 'hello', [False, False, True, True, False]),
    (lambda: rasp.indices + rasp.length, 'hi', [2, 3]),
    (lambda: sequences.associative_memory(), 'a1b2c3>b', [None] * 7 + ['2']),
    (lambda: sequences.induction(), 'abcab', [None, None, None, 'b', 'c']),
    (lambda: sequences.find('ll'), 'hello', [2] * 5),
    (lambda: sequences.detect('abc'), 'xabcabc', [False] * 3 + [True] + [False] * 2 + [True]),
    (lambda: dyck.shuffle_dyck(dyck.PAIRS[:2]), '([)]', [True] * 4),
    (lambda: dyck.shuffle_dyck(dyck.PAIRS[:1]), '())(', [False] * 4),
]


@pytest.mark.parametrize('make,text,expected', PAPER)
def test_published_results(make, text, expected):
  got = interpreter.run(make(), list(text))
  assert got == expected and [v is None for v in got] == [v is None for v in expected]


def test_undefined_passes_through_maps_and_selects_nothing():
  none = rasp.aggregate(rasp.select(rasp.indices, rasp.indices - 1, '=='), rasp.tokens)
  assert interpreter.run(none == 'a', list('ab')) == [None, True]
  assert interpreter.run(rasp.default(none, '-'), list('ab')) == ['-', 'a']
  assert interpreter.run(rasp.selector_width(rasp.select(none, none, '==')), list('aab')) == [0, 2, 2]
  assert interpreter.run(rasp.where(rasp.indices > 0, none, 'x'), list('ab')) == ['x', 'a']


def test_selectors_combine_as_sets():
  a, b = rasp.select(rasp.tokens, rasp.tokens, '=='), rasp.before
  text = list('abab')
  trace = interpreter.Trace(text)
  n = range(len(text))
  same = lambda i, j: text[i] == text[j]
  for selector, rule in ((a & b, lambda i, j: same(i, j) and j < i), (a | b, lambda i, j: same(i, j) or j < i),
                         (~a, lambda i, j: not same(i, j))):
    assert trace.matrix(selector) == [[rule(i, j) for j in n] for i in n]
  assert trace.matrix((a & b).last()) == [[j == i - 2 for j in n] for i in n]


# Wrong programs: every message quotes the line that is wrong and says what to do.

def text_plus_number():
  return rasp.tokens + 1


def unbounded():
  mean = rasp.aggregate(rasp.until, rasp.indices * 1000)
  return rasp.selector_width(rasp.select(mean, mean, '<'))


def two_values():
  return rasp.aggregate(rasp.until, rasp.tokens)


def division():
  return 6 / (rasp.indices - 1)


def truth_of_sequence():
  return 1 if rasp.tokens == 'a' else 0


def sum_of_selectors():
  return rasp.selector_width(rasp.tokens)


def mixed_order():
  return rasp.selector_width(rasp.select(rasp.tokens, rasp.indices, '<'))


def reads_ahead():
  return sequences.reverse()


WRONG = [
    (text_plus_number, {}, 'return rasp.tokens + 1',
     "'+' cannot take 'a', 1 (text and a number); compare text with text"),
    (unbounded, {}, 'select(mean, mean', 'takes too many values to select by; compare with a bound, or use //'),
    (two_values, {}, 'return rasp.aggregate(rasp.until, rasp.tokens)',
     "at once, which have no mean; select one key (.last() or .first() takes one of several)"),
    (division, {}, 'return 6 / (rasp.indices - 1)',
     'divides by 0 (at 6, 0); keep 0 out of the divisor, or write rasp.divide'),
    (truth_of_sequence, {}, "return 1 if rasp.tokens == 'a' else 0", 'write & | ~ and rasp.where in place of'),
    (sum_of_selectors, {}, 'return rasp.selector_width(rasp.tokens)',
     'is no selector; expected selector_width(selector)'),
    (mixed_order, {}, "return rasp.selector_width(rasp.select(rasp.tokens, rasp.indices, '<'))",
     'compare values of one type'),
    (reads_ahead, {'causal': True}, 'length - 1 - indices', 'everything reads keys after the query, so this program is '
     'not causal; compile with causal=False'),
]


@pytest.mark.parametrize('make,settings,line,advice', WRONG, ids=[w[0].__name__ for w in WRONG])
def test_errors_quote_the_line_and_say_what_to_do(make, settings, line, advice):
  with pytest.raises(rasp.RaspError) as error:
    rasp.compile(make(), 'abc', 40, **settings)
  message = str(error.value)
  assert advice in message and '\n' not in message
  where, quoted = re.match(r'(.*?) `(.*?)`', message).groups()
  assert re.fullmatch(r'\w+\.py:\d+', where) and line in quoted


def test_an_input_over_the_maximum_names_it_and_the_program():
  compiled = rasp.compile(rasp.tokens == 'a', 'ab', 4)
  with pytest.raises(rasp.RaspError, match='`compiled = .*an input of 5 tokens; .* was compiled for 1 to 4, compile '
                                           'with longest=5'):
    compiled('aaaaa')
  with pytest.raises(rasp.RaspError, match="token 'c' is not in the vocabulary; expected one of a b"):
    compiled('abc')


def test_a_length_that_float32_cannot_hold_is_refused_with_the_reason():
  with pytest.raises(rasp.RaspError, match='cannot be proven right to length 5000 in float32: .*expected a shorter'):
    rasp.compile(rasp.selector_width(rasp.select(rasp.tokens, rasp.tokens, '==')), 'ab', 5000)


def test_settings_that_make_no_decoder_are_refused():
  with pytest.raises(rasp.RaspError, match='longest is 1000000; expected at most 5000'):
    rasp.compile(rasp.length, 'ab', 10**6)
  for settings in ({'vocabulary': ''}, {'vocabulary': 'a', 'longest': 0}, {'vocabulary': 'a', 'dtype': 'float16'}):
    with pytest.raises(rasp.RaspError, match='at least one token, a length of at least 1 and float32 or bfloat16'):
      rasp.compile(rasp.tokens, **settings)


def test_every_library_program_says_its_idea_and_has_an_example():
  for program in PROGRAMS.values():
    assert set(program.example) <= set(program.vocabulary)
    assert len(program(program.example)) == len(program.example)


def test_what_python_would_answer_by_a_traceback_is_one_line():
  x = rasp.indices
  for wrong, message in ((lambda: x[0], "'indices' has no place 0"), (lambda: x ** 2, 'write a product'),
                         (lambda: int(x), 'is not one number'), (lambda: len(x), 'rasp.length'),
                         (lambda: 1 in x, 'selector_width'), (lambda: rasp.until[1], 'is a selector'),
                         (lambda: rasp.until + 1, 'is a selector'), (lambda: rasp.select(x, x, 3), 'predicate 3'),
                         (lambda: rasp.compile(x, 'ab', '5'), "longest is '5'; expected a whole number from 1 to 5000"),
                         (lambda: rasp.compile(x, 5), 'vocabulary is 5'), (lambda: rasp.compile([], 'ab'), r'\[\] is list'),
                         (lambda: rasp.compile(10 // x, 'ab', 4), 'divides by 0')):
    with pytest.raises(rasp.RaspError, match=message) as error:
      wrong()
    assert '\n' not in str(error.value)
  assert interpreter.run(10 // (x + 3) + 7 % (x + 2), list('ab')) == [4, 3]
  assert interpreter.run(round(rasp.aggregate(rasp.everything, x * x)), list('abc')) == [2] * 3
  assert [interpreter.run(part, list('abc')) for part in divmod(x, 2)] == [[0, 0, 1], [0, 1, 0]]


def test_expressions_of_strings_keep_no_line():
  """As in python -c, in exec and in notebooks: an error names what it can."""
  scope = {'rasp': rasp}
  exec('x = rasp.tokens + 1', scope)
  with pytest.raises(rasp.RaspError, match=r"^<string>:1: '\+' cannot take 'a', 1"):
    rasp.compile(scope['x'], 'ab', 4)
  with pytest.raises(rasp.RaspError):
    eval('1 if rasp.tokens else 2', {'rasp': rasp, '__name__': None})


def test_a_map_of_shared_parts_is_printed_at_once():
  x = rasp.tokens
  for _ in range(200):
    x = x + x
  assert len(repr(x)) < 2000


def test_largest_and_smallest_pick_one_key():
  t, i = rasp.tokens, rasp.indices
  programs = [rasp.aggregate(rasp.largest(rasp.until, t), i), rasp.aggregate(rasp.smallest(rasp.before, t), t, -1),
              rasp.aggregate(rasp.largest(rasp.select(t, t, '!='), t), t), rasp.selector_width(rasp.smallest(rasp.until, t)),
              rasp.aggregate(rasp.largest(rasp.everything, rasp.selector_width(rasp.select(t, t, '=='))), t),
              rasp.aggregate(rasp.smallest(rasp.before, -t + i), t, one=True), rasp.total(rasp.largest(rasp.before, t), t)]
  row = [3, 1, 4, 1, 4, 0]
  assert interpreter.run(programs[0], row) == [0, 0, 2, 2, 2, 2]  # the leftmost of two
  assert interpreter.run(programs[1], row) == [-1, 3, 1, 1, 1, 1]
  assert interpreter.run(programs[4], row) == [1] * 6
  for sop in programs:
    compiled = rasp.compile(sop, range(5), 8)
    verdict = verify.verify(compiled, sop, 3, 3)
    assert verdict.right and verdict.worst <= compiled.report.bound and not compiled.report.assumed, verdict
  with pytest.raises(rasp.RaspError, match='which has too many values or may be undefined'):
    rasp.compile(rasp.aggregate(rasp.largest(rasp.until, programs[5]), t), range(5), 4)
