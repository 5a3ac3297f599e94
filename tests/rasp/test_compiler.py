"""Compiled programs against the interpreter: the table's pairs, random programs, bounds, and mutants that must fail."""

import dataclasses
import warnings

from hypothesis import HealthCheck, given, settings, strategies as st
import jax
import numpy as np
from tests.rasp import programs
import pytest

from benchmarks import rasp as table
import rasp
from rasp import interpreter, lint, verify
from rasp.compiling import bound, circuit, encode, orders, schedule
from rasp.compiling.analysis import Analysis
from rasp.library import PROGRAMS, sequences

# Layers of the table's last column in the notes on Tracr: what each program needs.
LAYERS = {'length': 1, 'reverse': 2, 'hist': 1, 'count_less_freq2': 2, 'sort_unique': 2, 'sort': 2, 'sort_freq': 3,
          'frac_prevs': 1, 'shift1': 1, 'detect_abc': 1, 'pair_balance': 1, 'shuffle_dyck1': 2, 'shuffle_dyck2': 2,
          'shuffle_dyck3': 2, 'nary_x+y-i': 1, 'tok_plus_pos': 1, 'parity': 1}


def holds(sop, vocabulary, longest, exhaustive=3, samples=6, **settings):
  """Right on every input, within the proven bound; sizes are rounded up so that programs share a compilation."""
  compiled = rasp.compile(sop, vocabulary, longest, **settings)
  verdict = verify.verify(programs.padded(compiled), sop, exhaustive, samples)
  assert verdict.right, verdict
  assert verdict.worst <= compiled.report.bound < 1e-3
  return compiled


@pytest.mark.parametrize('name', LAYERS)
def test_pairs_of_the_table(name):
  for n in (5, 10):
    compiled = holds(*table.PROGRAMS[name](n), n)
    assert compiled.report.layers == LAYERS[name]


@pytest.mark.parametrize('name,n', [('reverse', 40), ('sort', 40), ('hist', 40), ('reverse', 20), ('sort', 20)])
def test_long_pairs_of_the_table(name, n):
  compiled = holds(*table.PROGRAMS[name](n), n, exhaustive=2, samples=2)
  assert compiled.report.width <= 253 / 5


@pytest.mark.slow
@pytest.mark.parametrize('name', ['reverse', 'sort', 'hist'])
def test_five_hundred_tokens(name):
  sop, vocabulary = table.PROGRAMS[name](500)
  compiled = rasp.compile(sop, vocabulary, 500)
  rng = np.random.default_rng(0)
  rows = [[vocabulary[i] for i in rng.integers(0, 4, n)] for n in (500, 500, 499, 257)] + [
      list(verify.adversarial(vocabulary, 500))[k] for k in (0, 2, 3, 5)]
  want = [interpreter.run(sop, row) for row in rows]
  assert all(map(verify.equal, want, compiled.batch(rows, 500)))
  assert compiled.errors(rows, want, 500).max() <= compiled.report.bound < 1e-3


@pytest.mark.parametrize('name', PROGRAMS)
def test_library_programs(name):
  program = PROGRAMS[name]
  holds(program.result, program.vocabulary, 9, exhaustive=2, samples=4)


def test_the_decoder_runs_jitted_and_with_its_cache():
  for name in ('induction', 'detect', 'fraction_of_previous', 'prefix_dyck1', 'associative_memory'):
    program = PROGRAMS[name]
    compiled = rasp.compile(program, longest=12)
    assert compiled.report.causal and compiled.model.mask == 'causal'
    sequence = list(program.example)
    got = compiled.cached(sequence)
    assert verify.equal(program(sequence), got)
    assert verify.equal(compiled(sequence), got) or name == 'fraction_of_previous'
  with pytest.raises(rasp.RaspError, match='reads later tokens; only a causal program'):
    rasp.compile(PROGRAMS['reverse'], longest=5).cached('abc')


def agrees(sop):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    compiled = rasp.compile(sop, programs.LETTERS, 6)
  rng = np.random.default_rng(0)
  rows = [[programs.LETTERS[i] for i in rng.integers(0, 3, n)] for n in (1, 2, 3, 4, 5, 6, 6, 6)]
  small = programs.padded(compiled)
  want = [interpreter.run(sop, row) for row in rows]
  got = small.batch(rows, 6)
  assert all(map(verify.equal, want, got)), (sop, rows, want, got)
  assert small.errors(rows, want, 6).max() <= compiled.report.bound


RANDOM = {'deadline': None, 'suppress_health_check': list(HealthCheck), 'database': None, 'derandomize': True}


@settings(max_examples=30, **RANDOM)
@given(programs.programs(3))
def test_random_programs(sop):
  agrees(sop)


@pytest.mark.slow
@settings(max_examples=300, **RANDOM)
@given(st.integers(1, 5).flatmap(programs.programs))
def test_three_hundred_random_programs_of_depth_five(sop):
  agrees(sop)


# Mutants: each is a compiler with one fault, which the checks above must see.

def broken(sop, vocabulary, longest):
  """Whether the checks see the fault."""
  try:
    holds(sop, vocabulary, longest)
  except (AssertionError, rasp.RaspError):
    return True
  return False


def test_a_smaller_sharpness_is_seen(monkeypatch):
  sops = [(sequences.shift(1), 'abcd', 8), (sequences.reverse(), 'abcd', 8)]
  assert not any(broken(*s) for s in sops)
  monkeypatch.setattr(encode, 'RAW_ERROR', 0.05)
  assert all(broken(*s) for s in sops)  # by the bound, which refuses
  monkeypatch.setattr(bound, 'WANTED', 1.0)
  monkeypatch.setattr(bound, '_slot_error', lambda *_: 0.0)
  assert all(broken(*s) for s in sops)  # and without the bound by the outputs


def test_a_count_that_is_not_proportional_enough_is_seen(monkeypatch):
  monkeypatch.setattr(bound, '_check_step', lambda *_: None)
  assert not broken(rasp.length, 'ab', 12)
  original = encode.encode
  monkeypatch.setattr(encode, 'encode', lambda *args: original(*args[:-1], encode.Effort(sharpness=-5)))
  assert broken(rasp.length, 'ab', 12)


def test_a_direction_that_is_reused_too_early_is_seen(monkeypatch):
  sop = sequences.sort_by_frequency()
  assert not broken(sop, '1234', 6)
  original = schedule.allocate
  def early(columns, last, layers):
    return original(columns, {c: t - 2 if t < 2 * layers else t for c, t in last.items()}, layers)
  monkeypatch.setattr(schedule, 'allocate', early)
  assert broken(sop, '1234', 6)


def test_a_direction_that_is_not_cleared_is_seen(monkeypatch):
  sop = sequences.sort_by_frequency()
  original = schedule.allocate
  def dirty(columns, last, layers):
    dims, width, cleared = original(columns, last, layers)
    assert cleared
    return dims, width, {}
  monkeypatch.setattr(schedule, 'allocate', dirty)
  assert broken(sop, '1234', 6)


def test_a_ramp_at_the_midpoint_of_a_gap_is_seen(monkeypatch):
  """One slope for all gaps, starting at the midpoint: what makes Tracr's length wrong from 7 tokens on."""
  original = bound.ramps
  late = lambda step: [dataclasses.replace(r, low=r.low + r.gap / 2) for r in original(step)]
  monkeypatch.setattr(bound, 'ramps', late)
  assert broken(rasp.length, 'ab', 8)


def test_bos_that_is_pushed_away_by_a_bias_is_seen(monkeypatch):
  sop = rasp.default(sequences.shift(-1), 'd')
  assert not broken(sop, 'abcd', 6)
  original = circuit.Head
  monkeypatch.setattr(encode, 'Head', lambda *args: dataclasses.replace(original(*args), at_bos=circuit.Reading()))
  assert broken(sop, 'abcd', 6)


def test_bfloat16_is_certified_or_refused():
  with pytest.raises(rasp.RaspError, match='in bfloat16: .*expected a shorter length or float32'):
    rasp.compile(sequences.reverse(), 'abcd', 5, dtype='bfloat16')
  with pytest.raises(rasp.RaspError, match='in bfloat16: the output is known to'):
    rasp.compile(sequences.fraction_of_previous('a'), 'abcd', 5, dtype='bfloat16')
  compiled = rasp.compile(rasp.where(rasp.tokens == 'a', 'x', 'y'), 'ab', 8, dtype='bfloat16')
  assert compiled.model.dtype == 'bfloat16'
  assert verify.verify(compiled, compiled.program, 4, 4).right


def test_domains_are_exact_on_every_short_input():
  """The values that an s-op takes over all inputs are within its domain, and all of it for single maps."""
  for sop in (sequences.histogram(), sequences.pair_balance('a', 'b'), rasp.tokens == 'a', rasp.length - rasp.indices,
              sequences.shift(2), sequences.rank(rasp.tokens)):
    seen = {language_value for row in verify.inputs('ab', 5, 5, 0, 0) for language_value in interpreter.run(sop, row)}
    assert seen <= set(Analysis('ab', 5)(sop).values)
  assert set(Analysis('ab', 5)(sequences.histogram()).values) >= {1, 2, 3, 4, 5}


def test_a_bidirectional_program_as_causal_names_its_first_selector():
  with pytest.raises(rasp.RaspError, match=r"sequences.py:\d+ `.*`: everything reads keys after the query"):
    rasp.compile(sequences.reverse(), 'ab', 5, causal=True)


def test_ablating_a_head_and_swapping_a_layer():
  compiled = rasp.compile(sequences.reverse(), 'abcd', 5)
  assert compiled('abcd') == list('dcba')
  assert verify.ablate(compiled, 1, 0)('abcd') != list('dcba')
  zeros = jax.tree.map(np.zeros_like, compiled.params)
  assert verify.swap_layer(compiled, 0, zeros)('abcd') != list('dcba')
  assert verify.swap_layer(compiled, 0, compiled.params)('abcd') == list('dcba')


def test_the_circuit_names_what_ablation_breaks():
  compiled = rasp.compile(sequences.reverse(), 'abcd', 5)
  (head, what), (second, other), (units, step) = compiled.circuit()
  assert (head, what, second, other, step) == ('layer 1 head 1', 'length', 'layer 2 head 1', 'reverse', 'length')
  assert units == f'layer 1 units {compiled.model.feedforward - 7}-{compiled.model.feedforward}'  # four ramps


def test_what_a_pass_hands_on_cannot_be_changed():
  plan = rasp.compile(sequences.reverse(), 'abcd', 5).plan
  circuit = plan.circuit
  for value in (plan, plan.columns[0], circuit, circuit.output, circuit.output.digits[0], circuit.heads[0], circuit.heads[0].slots[0],
                circuit.steps[0], circuit.tables[0], circuit.tables[0].features[0]):
    with pytest.raises(dataclasses.FrozenInstanceError):
      value.time = 0


def test_a_split_map_keeps_codes_and_values_together():
  """A map of too many inputs becomes several steps; its values are then those that the last one lists."""
  parts = [rasp.selector_width(rasp.select(rasp.tokens, t, '==') & rasp.before) for t in 'abcd']
  sop = rasp.where((parts[0] > parts[1]) & (parts[2] > parts[3]), parts[0], parts[3])
  compiled = holds(sop, 'abcd', 7, exhaustive=4)
  assert compiled.report.layers > 1


def test_rasp_l_asks_for_causal_selectors_and_plain_indices():
  assert not lint.lint(sequences.shift(1)) or 'reads later' not in ' '.join(lint.lint(sequences.shift(1)))
  assert not lint.lint(sequences.fraction_of_previous('a')) and not lint.lint(sequences.induction())
  doubts = lint.lint(sequences.reverse())
  assert any('length is known only at the end' in d for d in doubts)
  assert any('calculates with indices' in d for d in doubts) and any('reads later keys' in d for d in doubts)
  assert all('sequences.py' in d for d in doubts if 'length is known' not in d)


def test_sorting_is_proven_to_read_one_key():
  assert rasp.compile(sequences.sort(), 'abcd', 8).report.assumed == ()
  assert rasp.compile(sequences.sort_by_frequency(), 'abcd', 8).report.assumed == ()
  assert rasp.compile(sequences.sort_unique(), 'abcd', 8).report.assumed != ()  # equal keys leave ranks out
  analysis = Analysis('abc', 6)
  order = lambda s: orders.is_strict_order(s, analysis)
  smaller, same = rasp.select(rasp.tokens, rasp.tokens, '<'), rasp.select(rasp.tokens, rasp.tokens, '==')
  assert order(rasp.before) and order(smaller | same & rasp.before)
  assert order(smaller & rasp.everything | same & ~rasp.until)
  for wrong in (smaller, same & rasp.before, rasp.until, smaller | same & rasp.until, smaller | rasp.before,
                smaller | rasp.select(rasp.indices, rasp.indices - 1, '==')):
    assert not order(wrong)


def test_a_rock_paper_scissors_order_is_no_ranking():
  """Of any two exactly one wins, but not transitively."""
  beats = rasp.select(rasp.tokens, rasp.tokens, lambda k, q: (k, q) in {('a', 'b'), ('b', 'c'), ('c', 'a')})
  tied = rasp.select(rasp.tokens, rasp.tokens, '==') & rasp.before
  assert not orders.is_strict_order(beats | tied, Analysis('abc', 6))
  assert orders.is_strict_order(beats | tied, Analysis('ab', 6))
