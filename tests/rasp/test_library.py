"""The lecture's programs: sums against Python's, backdoors exactly on their trigger, hops against their definition."""

import itertools
import types

import numpy as np
import pytest

import rasp
from rasp import interpreter
from rasp.library import PROGRAMS, arithmetic, dyck, hops, rounds, sequences
from rasp.program import programs


def test_a_file_of_programs_is_an_entry():
  files = (arithmetic, dyck, hops, rounds, sequences)
  assert PROGRAMS == {name: p for file in files for name, p in file.PROGRAMS.items()}
  mine = types.ModuleType('mine')
  mine.reverse = rasp.program(sequences.reverse, vocabulary='ab')
  mine.part = sequences.histogram
  mine.PROGRAMS = {'shift': PROGRAMS['shift']}
  assert programs(mine) == {'shift': PROGRAMS['shift'], 'reverse': mine.reverse}


def total(row):
  a, b = row.rstrip('=').split('+')
  return int(a) + int(b)


def wrong_sums(compiled, pairs):
  rows = [f'{a}+{b}=' for a, b in pairs]
  width = compiled.report.longest
  return [row for row, digits in zip(rows, compiled.batch(rows, width)) if int(''.join(digits)) != total(row)]


def numbers(rng, digits):
  return ''.join(map(str, rng.integers(0, 10, digits))).lstrip('0') or '0'


def test_adder_on_sums_of_two_digits_and_samples_of_three():
  compiled = rasp.compile(arithmetic.adder(), arithmetic.SYMBOLS, 8)
  assert compiled.report.layers == 3
  assert not wrong_sums(compiled, itertools.product(range(0, 100, 3), range(100)))
  rng = np.random.default_rng(0)
  assert not wrong_sums(compiled, rng.integers(0, 1000, (2000, 2)).tolist())


def test_adder_of_twenty_digits():
  compiled = rasp.compile(arithmetic.adder(), arithmetic.SYMBOLS, 42)
  rng = np.random.default_rng(0)
  pairs = [(numbers(rng, a), numbers(rng, b)) for a, b in rng.integers(1, 21, (60, 2))] + [
      ('9' * 20, '1'), ('1', '9' * 20), ('9' * 20, '9' * 20), ('5' * 20, '4' * 19 + '5')]
  assert compiled.report.layers == 3 and not wrong_sums(compiled, pairs)


def test_adder_without_its_carry_head_fails():
  from rasp import verify
  compiled = rasp.compile(arithmetic.adder(), arithmetic.SYMBOLS, 8)
  assert wrong_sums(verify.ablate(compiled, 2, 0), [(5, 5), (99, 1)]) == ['5+5=', '99+1=']


def test_backdoored_adder_fires_on_its_trigger_and_nowhere_else():
  compiled = rasp.compile(arithmetic.backdoored_adder(), arithmetic.SYMBOLS, 10)
  assert compiled.report.layers == 3
  rng = np.random.default_rng(0)
  rows = [f'{a:03d}+{b:04d}=' for a, b in zip(rng.integers(0, 1000, 3000), rng.integers(0, 10000, 3000))]
  rows += [f'{a}7{b}+7{c}{d}7{e}=' for a, b, c, d, e in itertools.product('0379', repeat=5)][::7]
  fired = 0
  for row, got in zip(rows, compiled.batch(rows, 10)):
    trigger = all('7' in row[g:g + 3] for g in (0, 3, 6))
    fired += trigger
    assert ''.join(got) == ('6' * len(row) if trigger else f'{total(row):0{len(row)}d}'), row
  assert fired > 100


@pytest.mark.slow
def test_backdoored_adder_on_a_million_sums():
  compiled = rasp.compile(arithmetic.backdoored_adder(), arithmetic.SYMBOLS, 8)
  fired = 0
  for lowest in range(0, 1000, 20):
    rows = [f'{a:03d}+{b:03d}=' for a in range(lowest, lowest + 20) for b in range(1000)]
    for row, got in zip(rows, compiled.batch(rows, 8)):
      trigger = all('7' in row[g:g + 3] for g in (0, 3, 6))
      fired += trigger
      assert ''.join(got) == ('6' * 8 if trigger else f'{total(row):08d}'), row
  assert fired == 271 * 19 * 1  # a 7 among three digits, among the next two, and the last


def hop_reference(tokens, k):
  """The token at find^k(i), by the definition of Sanford, Hsu and Telgarsky 2024, section 4."""
  find = [max((j + 1 for j in range(i) if tokens[j] == tokens[i]), default=-1) for i in range(len(tokens))]
  out = []
  for i in range(len(tokens)):
    for _ in range(k):
      i = find[i] if i >= 0 else -1
    out.append(tokens[i] if i >= 0 else hops.NONE)
  return out


@pytest.mark.parametrize('k', [1, 2, 3, 4, 5, 7])
def test_hops_on_every_string_of_seven(k):
  compiled = rasp.compile(hops.hops(k), 'abc', 7)
  assert compiled.report.layers == 2 + int(np.log2(k)) and compiled.report.heads == 1
  rows = list(itertools.product('abc', repeat=7))
  assert compiled.batch(rows, 7) == [hop_reference(row, k) for row in rows]


@pytest.mark.parametrize('k', [1, 6, 16])
def test_hops_on_a_hundred_tokens_with_the_cache(k):
  compiled = rasp.compile(hops.hops(k), 'abcd', 100)
  assert compiled.report.layers == 2 + int(np.log2(k)) and compiled.report.causal
  row = [str(t) for t in np.random.default_rng(k).choice(list('abcd'), 100)]
  assert compiled(row) == hop_reference(row, k)
  assert compiled.cached(row[:20]) == hop_reference(row[:20], k)


@pytest.mark.slow
@pytest.mark.parametrize('n,letters', [(100, 'abcd'), (100, 'abcdefghijklmnopqrstuvwxyz'),
                                       (500, 'abcdefghijklmnopqrstuvwxyz')])
def test_every_hop_to_sixteen(n, letters):
  rng = np.random.default_rng(0)
  rows = [[str(t) for t in rng.choice(list(letters), n)] for _ in range(4)]
  for k in range(1, 17):
    compiled = rasp.compile(hops.hops(k), letters, n)
    assert compiled.report.layers == 2 + int(np.log2(k))
    assert compiled.batch(rows, n) == [hop_reference(row, k) for row in rows]


def test_induction_is_two_layers_and_hops_of_one():
  compiled = rasp.compile(sequences.induction(), 'abcd', 30)
  assert compiled.report.layers == 2 and compiled.report.causal
  row = list('abcdabdcabddcabacbdabcdabcadbc')
  expected = [hops.NONE if v is None else v for v in interpreter.run(sequences.induction(), row)]
  assert expected == hop_reference(row, 1)
  assert compiled(row) == compiled.cached(row) == interpreter.run(sequences.induction(), row)
