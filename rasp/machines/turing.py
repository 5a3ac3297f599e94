"""A Turing machine, one step a token, in a causal decoder with one layer and one head that runs with the cache.

Perez, Barcelo and Marinkovic 2021, "Attention is Turing complete" (JMLR 22(75)), with finite precision and a bounded
tape: a token says (state, symbol read, cell), so the rule's new state, symbol and cell are features of its embedding.
Attention finds the last write to the new cell: -B (cell - new cell)^2 + recency, and BOS, a blank, at -B/2.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from rasp import decoder
from rasp.machines.weights import Weights

Rules = Mapping[tuple[str, int], tuple[str, int, int]]  # (state, symbol) -> (state, symbol written, move)
HALT = 'H'
RECENT = 20.0  # between two writes to one cell: e^-20 of the older one is read

BUSY_BEAVER: Rules = {  # three states, two symbols: six ones (Rado 1962, "On non-computable functions")
    ('A', 0): ('B', 1, 1), ('A', 1): (HALT, 1, 1), ('B', 0): ('C', 0, 1), ('B', 1): ('B', 1, 1),
    ('C', 0): ('C', 1, -1), ('C', 1): ('A', 1, -1)}
INCREMENT: Rules = {  # a binary number, most significant digit first; 2 is blank
    ('R', 0): ('R', 0, 1), ('R', 1): ('R', 1, 1), ('R', 2): ('C', 2, -1),
    ('C', 1): ('C', 0, -1), ('C', 0): (HALT, 1, 1), ('C', 2): (HALT, 1, 1)}


def reference(rules: Rules, state: str, tape: Sequence[int], blank: int, most: int) -> list[tuple[str, int, int]]:
  """Every (state, symbol, cell) until the machine halts, the halting one included."""
  cells, cell, out = dict(enumerate(tape)), 0, []
  for _ in range(most):
    out.append((state, cells.get(cell, blank), cell))
    if state == HALT:
      break
    state, cells[cell], move = rules[state, cells.get(cell, blank)]
    cell += move
  return out


@dataclasses.dataclass(frozen=True)
class Machine:
  """The decoder of a machine; `tokens` maps what a token says to its id."""
  rules: Rules
  start: str
  blank: int
  weights: Weights
  tokens: Mapping[tuple, int]

  def run(self, tape: Sequence[int], most: int) -> list[tuple[str, int, int]]:
    """The machine's steps, sampled greedily with the cache, until it halts."""
    prompt = [self.tokens['bos',]] + [self.tokens['write', s, c] for c, s in enumerate(tape)] + [self.tokens['start',]]
    says = {i: what for what, i in self.tokens.items()}
    out = []
    for token in decoder.greedy(self.weights.module, self.weights.params, prompt, most):
      out.append(says[token])
      if out[-1][0] == HALT:
        break
    return out


def machine(rules: Rules, start: str, blank: int, cells: int, length: int) -> Machine:
  """A decoder for cells -cells .. cells and at most `length` tokens, the tape's included."""
  states = sorted({q for q, _ in rules} | {q for q, _, _ in rules.values()})
  symbols = sorted({s for _, s in rules} | {blank})
  span = range(-cells, cells + 1)
  whats: list[tuple] = [('bos',), ('start',)] + [('write', s, c) for s in symbols for c in span] + [
      (q, s, c) for q in states for s in symbols for c in span]
  tokens = {what: i for i, what in enumerate(whats)}
  names = ['one', 'bos', 'start', 'real', 'cell', 'cell2', 'new', 'new2', 'write', 'read', 'time'] + [
      f'to_{q}' for q in states]
  w = Weights(names, len(tokens), length, layers=1, heads=1, head_width=4, feedforward=1)
  for what, token in tokens.items():
    if what == ('bos',):
      w.embed(token, {'one': 1, 'bos': 1, 'write': blank})
    elif what == ('start',):
      w.embed(token, {'one': 1, 'start': 1, f'to_{start}': 1})
    else:
      q, s, c = what
      if q == 'write' or q == HALT:
        to, written, new = (HALT, s, c)
      else:
        to, written, move = rules.get((q, s), (HALT, s, 0))
        new = c + move
      w.embed(token, {'one': 1, 'real': 1, 'cell': c, 'cell2': c * c, 'new': new, 'new2': new * new, 'write': written,
                      f'to_{to}': 1})
  for t in range(length):
    w.place(t, {'time': t})
  B = 4 * RECENT * length
  w.head(0, 0, [({'new': 2 * B}, {'cell': 1}), ({'one': -B}, {'cell2': 1}), ({'new2': -B}, {'real': 1}),
                ({'one': 1}, {'time': RECENT, 'bos': -B / 2, 'start': -8 * B})], {'read': {'write': 1}})
  for what, token in tokens.items():
    if len(what) == 3 and what[0] in states:  # 2 x y - x^2 is greatest at the x nearest to y
      q, s, c = what
      w.say(token, {f'to_{q}': 1000, 'read': 100 * 2 * s, 'new': 100 * 2 * c, 'one': -100 * (s * s + c * c)})
    else:
      w.say(token, {'one': -1e6})
  return Machine(rules, start, blank, w, tokens)
