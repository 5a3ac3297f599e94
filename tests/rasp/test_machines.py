"""Constructions by direct weights, run by the decoder, jitted, and with its cache where they are causal."""

import itertools
import math

import numpy as np
import pytest

from rasp.machines import parallel, parity, subleq, turing


def parity_logits(n, rows):
  tokens = np.concatenate([rows, np.full((len(rows), 1), parity.CLS)], axis=1)
  return np.asarray(parity.parity(n).run(tokens)[1][:, -1])


@pytest.mark.parametrize('n', [1, 2, 5, 10])
def test_parity_of_every_short_string(n):
  rows = np.array(list(itertools.product([0, 1], repeat=n)))
  assert parity.bits_lost(parity_logits(n, rows), rows.sum(1) % 2).max() < 1e-6


@pytest.mark.parametrize('n', [100, 1000])
def test_parity_of_long_strings(n):
  rows = (np.random.default_rng(0).random((8, n)) < 0.5).astype(int)
  rows[0], rows[1, :] = 0, 1
  rows[2] = np.eye(1, n, n - 1, dtype=int)
  assert parity.bits_lost(parity_logits(n, rows), rows.sum(1) % 2).max() < 1e-6


def test_parity_without_its_bump_fails(monkeypatch):
  original = parity.Weights.unit
  monkeypatch.setattr(parity.Weights, 'unit', lambda self, l, n, r, w: original(self, l, n, r, w) if n != 1 else None)
  rows = np.array(list(itertools.product([0, 1], repeat=6)))
  assert parity.bits_lost(parity_logits(6, rows), rows.sum(1) % 2).max() > 1


def first_logits(n, rows, scale):
  """The last logits, read with the cache in pieces of at most 500 tokens."""
  w = parity.first(n, scale)
  tokens = np.concatenate([rows, np.full((len(rows), 1), parity.CLS)], axis=1)
  cache = w.module.empty_cache(len(rows), n + 1)
  for at in range(0, n + 1, 500):
    _, logits, cache = w.extend(tokens[:, at:at + 500], at, cache)
  return np.asarray(logits[:, -1])


@pytest.mark.parametrize('n', [1, 7, 1000, pytest.param(10000, marks=pytest.mark.slow)])
def test_first_with_log_length_logits(n):
  rows = (np.random.default_rng(0).random((2, n)) < 0.5).astype(int)
  rows[0, 0], rows[1, 0] = 0, 1
  assert parity.bits_lost(first_logits(n, rows, 'log'), rows[:, 0]).max() < 1e-6
  if n >= 1000:  # a fixed logit is drowned (section 5.3)
    assert parity.bits_lost(first_logits(n, rows, 'one'), rows[:, 0]).max() > 0.1


def test_first_of_every_short_string():
  rows = np.array(list(itertools.product([0, 1], repeat=8)))
  assert parity.bits_lost(first_logits(8, rows, 'log'), rows[:, 0]).max() < 1e-6


def test_busy_beaver_leaves_six_ones():
  """Rado 1962: the three-state busy beaver for ones writes six of them."""
  machine = turing.machine(turing.BUSY_BEAVER, 'A', 0, 8, 64)
  steps = machine.run([0], 40)
  assert steps == turing.reference(turing.BUSY_BEAVER, 'A', [0], 0, 60)
  tape = {}
  for state, symbol, cell in steps[:-1]:
    tape[cell] = turing.BUSY_BEAVER[state, symbol][1]
  assert sum(tape.values()) == 6 and steps[-1][0] == turing.HALT


def test_a_turing_machine_increments():
  machine = turing.machine(turing.INCREMENT, 'R', 2, 14, 64)
  for number in (0, 1, 2, 7, 11, 255, 682, 1023):
    tape = [int(c) for c in f'{number:b}']
    steps = machine.run(tape, 60)
    assert steps == turing.reference(turing.INCREMENT, 'R', tape, 2, 60)
    cells = dict(enumerate(tape))
    for state, symbol, cell in steps[:-1]:
      cells[cell] = turing.INCREMENT[state, symbol][1]
    digits = ''.join(str(cells[c]) for c in sorted(cells) if cells[c] != 2)
    assert int(digits, 2) == number + 1


@pytest.mark.parametrize('program,name,expected,most', [
    (subleq.factorial(5), 'acc', math.factorial(5), 200), (subleq.factorial(7), 'acc', math.factorial(7), 5100),
    (subleq.array_sum([5, -3, 11, 40, 2]), 'result', 55, 100)])
def test_subleq_programs_at_two_layers_an_instruction(program, name, expected, most):
  memory, at = program
  want, pc, instructions = subleq.reference(memory, 1000)
  got, got_pc = subleq.run(memory, instructions, -most, most)
  assert got == want and got_pc == pc and got[at[name]] == expected
  assert subleq.computer(len(memory), -most, most, 1).model.layers == 2


def random_subleq(rng, cells=24):
  """A memory whose first 12 instructions stay inside it, or None; they often write into each other."""
  memory = [int(v) for v in rng.integers(0, cells - 3, cells)]
  state, pc = list(memory), 0
  for _ in range(12):
    if not 0 <= pc <= cells - 3 or not all(0 <= v < cells for v in state[pc:pc + 2]):
      return None
    a, b, c = state[pc:pc + 3]
    state[b] -= state[a]
    pc = c if state[b] <= 0 else pc + 3
  return (memory, state, pc) if 0 <= pc <= cells - 3 and min(state) >= -100 else None


def test_random_subleq_programs():
  rng = np.random.default_rng(0)
  cases = [case for case in (random_subleq(rng) for _ in range(1500)) if case][:100]
  assert len(cases) == 100
  w = subleq.computer(24, -100, 100, 12)
  x = np.asarray(w.run(np.array([[0] + [101 + v for v in memory] for memory, _, _ in cases]))[0])
  flushed = np.round(x[:, 1:, w.at['val']]).astype(int)
  for row, (_, state, pc) in enumerate(cases):  # the last write is still pending
    mine = flushed[row].tolist()
    mine[int(round(float(x[row, 0, w.at['wptr']])))] = int(round(float(x[row, 0, w.at['wval']])))
    assert mine == state and round(float(x[row, 0, w.at['pc']])) == pc
  assert np.abs(x - np.round(x)).max() == 0  # nothing drifts


def test_subleq_without_forwarding_fails_on_programs_that_edit_the_next_instruction():
  rng = np.random.default_rng(0)
  cases = [case for case in (random_subleq(rng) for _ in range(1500)) if case][:100]
  w = subleq.computer(24, -100, 100, 12)
  down = w.params['blocks']['down']['weight']
  for word in 'abc':
    forward = [u for u in range(down.shape[1]) if down[0, u, w.at[word]] and w.params['blocks']['up']['weight'][
        0, w.at['pc'], u]]
    assert len(forward) == 4
    down[0, forward] = 0
  x = np.asarray(w.run(np.array([[0] + [101 + v for v in memory] for memory, _, _ in cases]))[0])
  assert any(round(float(x[row, 0, w.at['pc']])) != pc for row, (_, _, pc) in enumerate(cases))


@pytest.mark.parametrize('n', [4, 7, 40, 100])
def test_one_cycle_or_two(n):
  rows = [parallel.cycles([n], s) for s in range(10)] + [parallel.cycles([n // 2, n - n // 2], s) for s in range(5)] + [
      parallel.cycles([2, n - 2], s) for s in range(5)]
  w = parallel.one_cycle(n)
  logits = np.asarray(w.run(np.array(rows))[1][:, -1])
  assert (logits[:, 1] > logits[:, 0]).tolist() == [True] * 10 + [False] * 10
  assert w.model.layers == math.ceil(math.log2(n)) + 1


def test_one_doubling_less_cannot_tell_one_cycle_from_two():
  rows = [parallel.cycles([64], s) for s in range(10)]
  w = parallel.one_cycle(64)
  for name in ('out', 'down'):
    w.params['blocks'][name]['weight'][5] = 0
  logits = np.asarray(w.run(np.array(rows))[1][:, -1])
  assert (logits[:, 1] < logits[:, 0]).all()


@pytest.mark.parametrize('machines,s', [(16, 2), (48, 3)])
def test_a_shuffle_round_is_one_layer(machines, s):
  rng = np.random.default_rng(1)
  words, destination = rng.integers(0, 1000, (machines, s)), rng.permutation(machines * s).reshape(machines, s)
  w = parallel.shuffle(words, destination)
  assert w.model.layers == 1 and w.model.heads == s
  x = np.asarray(w.run(np.arange(machines)[None])[0][0])
  want = np.zeros(machines * s)
  want[destination.ravel()] = words.ravel()
  got = np.stack([x[:, w.at[f'got{r}']] for r in range(s)], axis=1)
  assert np.abs(got.ravel() - want).max() < 1e-2
