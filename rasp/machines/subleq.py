"""A computer of one instruction in a looped transformer: two exact layers an instruction, programs may edit themselves.

Giannou et al. 2023, "Looped Transformers as Programmable Computers" (arXiv:2301.13196), whose construction takes nine
to thirteen layers. SUBLEQ a b c: mem[b] -= mem[a]; go to c if mem[b] <= 0, else to the next. Program and data share
one memory. Token 0 is the processor, token 1 + i is cell i. Layer 1 fetches the three words at pc, and every cell
learns of the write that the instruction before left pending; layer 2 fetches mem[a] and mem[b], and decides the jump.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rasp.machines.weights import Weights

SHARP = 40.0  # score between neighbouring addresses
NAMES = ('isproc', 'addr', 'addr2', 'val', 'pc', 'a', 'b', 'c', 'ma', 'mb', 'wptr', 'wval', 'rptr', 'rval', 'one')


def computer(cells: int, lowest: int, highest: int, instructions: int) -> Weights:
  """The decoder that runs so many instructions on memories of `cells` words between `lowest` and `highest`.

  Raises:
    ValueError: numbers that float32 would round.
  """
  gate = 2.0 ** np.ceil(np.log2(2 * (highest - lowest) + 2))  # wider than twice any difference of two words
  jump = 2.0 ** np.ceil(np.log2(4 * (cells + 4)))
  if max(gate * (cells + 16), jump * (highest - lowest)) > 2**22:
    raise ValueError(f'{cells} cells of {lowest} .. {highest}; expected cells x range below {2**21}, nearest is '
                     f'{int(2**21 / (highest - lowest + 1))} cells')
  far = 2.0**23  # turns a unit off
  w = Weights(NAMES, highest - lowest + 2, cells + 1, layers=2, heads=4, head_width=3, feedforward=26,
              mask='bidirectional', loops=instructions)
  w.embed(0, {'isproc': 1, 'wptr': -9, 'one': 1})
  for v in range(lowest, highest + 1):
    w.embed(1 + v - lowest, {'val': v, 'one': 1})
  for i in range(cells):
    w.place(1 + i, {'addr': i, 'addr2': i * i})
  def fetch(layer, head, pointer, target):
    doubled = {name: 2 * SHARP * k for name, k in pointer.items()}
    w.head(layer, head, [(doubled, {'addr': 1}), ({'one': -SHARP}, {'addr2': 1}), ({'one': -2.0**21}, {'isproc': 1})],
           {target: {'val': 1}})
  units = [0, 0]
  def unit(layer, reads, writes, only=''):
    off = {'proc': {'one': -far, 'isproc': far}, 'cell': {'isproc': -far}, '': {}}[only]
    w.unit(layer, units[layer], _add(reads, off), writes)
    units[layer] += 1
  def assign(layer, target, value, only=''):  # target += value, of either sign
    unit(layer, value, {target: 1}, only)
    unit(layer, _times(value, -1), {target: -1}, only)
  def where_zero(layer, target, x, y, only):  # target += y where the whole number x is 0
    for shift, sign in ((0, 1), (0.5, -1)):
      bent = _add(_times(x, gate), {'one': -shift * gate})
      unit(layer, _add(bent, y), {target: sign}, only)
      unit(layer, _add(bent, _times(y, -1)), {target: -sign}, only)

  for d, word in enumerate('abc'):
    fetch(0, d, {'pc': 1, 'one': d}, word)
  w.head(0, 3, [({'one': 1}, {'isproc': 1000})], {'rptr': {'wptr': 1}, 'rval': {'wval': 1}})
  where_zero(0, 'val', {'addr': 1, 'rptr': -1}, {'rval': 1, 'val': -1}, 'cell')
  for d, word in enumerate('abc'):  # the instruction before may have written into this one
    where_zero(0, word, {'pc': 1, 'one': d, 'wptr': -1}, {'wval': 1, word: -1}, 'proc')
    assign(0, word, {word: -1}, 'cell')
  for name in ('rptr', 'rval'):
    assign(0, name, {name: -1})

  fetch(1, 0, {'a': 1}, 'ma')
  fetch(1, 1, {'b': 1}, 'mb')
  unit(1, {'isproc': 1}, {'pc': 3})
  bent, way = {'one': jump / 2, 'mb': -jump, 'ma': jump}, {'c': 1, 'pc': -1, 'one': -3}
  unit(1, _add(bent, way), {'pc': 0.5}, 'proc')
  unit(1, _add(bent, _times(way, -1)), {'pc': -0.5}, 'proc')
  assign(1, 'wptr', {'b': 1, 'wptr': -1}, 'proc')
  assign(1, 'wval', {'mb': 1, 'ma': -1, 'wval': -1}, 'proc')
  for name in ('a', 'b', 'c', 'ma', 'mb'):
    assign(1, name, {name: -1})
  return w


def _times(v: Mapping[str, float], k: float) -> dict[str, float]:
  return {name: k * a for name, a in v.items()}


def _add(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
  return {name: a.get(name, 0) + b.get(name, 0) for name in dict.fromkeys((*a, *b))}


def run(memory: Sequence[int], instructions: int, lowest: int, highest: int) -> tuple[list[int], int]:
  """(memory, program counter) after so many instructions, by the decoder; one more loop writes the last result.

  The program must have halted by then: an instruction that subtracts 0 from 0 and jumps to itself.
  """
  w = computer(len(memory), lowest, highest, instructions + 1)
  tokens = np.array([[0] + [1 + v - lowest for v in memory]])
  x = np.asarray(w.run(tokens)[0][0])
  return [int(round(float(v))) for v in x[1:, w.at['val']]], int(round(float(x[0, w.at['pc']])))


def reference(memory: Sequence[int], instructions: int) -> tuple[list[int], int, int]:
  """(memory, program counter, instructions until it halts)."""
  memory, pc = list(memory), 0
  for done in range(instructions):
    a, b, c = memory[pc:pc + 3]
    memory[b] -= memory[a]
    new = c if memory[b] <= 0 else pc + 3
    if new == pc and a == b:
      return memory, pc, done + 1
    pc = new
  return memory, pc, instructions


def assemble(lines: Sequence[tuple], data: Mapping[str, int]) -> tuple[list[int], dict[str, int]]:
  """(memory, address of every name) of lines (label or None, a, b, c), where c None is the next line."""
  at = {label: 3 * i for i, (label, *_) in enumerate(lines) if label}
  at |= {name: 3 * len(lines) + i for i, name in enumerate(data)}
  memory = []
  for i, (_, a, b, c) in enumerate(lines):
    memory += [at[a], at[b], 3 * i + 3 if c is None else at[c]]
  return memory + list(data.values()), at


def factorial(n: int) -> tuple[list[int], dict[str, int]]:
  """acc = n!, by repeated addition."""
  return assemble([
      ('outer', 'sum', 'sum', None), (None, 'left', 'left', None), (None, 'm', 'zero', None),
      (None, 'zero', 'left', None), (None, 'zero', 'zero', None),  # left = m
      ('inner', 'acc', 'sum', None), (None, 'one', 'left', 'done'), (None, 'zero', 'zero', 'inner'),  # sum -= acc
      ('done', 'acc', 'acc', None), (None, 'sum', 'acc', None),  # acc = -sum
      (None, 'one', 'm', 'halt'), (None, 'zero', 'zero', 'outer'), ('halt', 'zero', 'zero', 'halt')],
      {'acc': 1, 'm': n, 'left': 0, 'sum': 0, 'one': 1, 'zero': 0})


def array_sum(values: Sequence[int]) -> tuple[list[int], dict[str, int]]:
  """result = the sum of an array, by a loop that adds 1 to an operand of its own first instruction."""
  return assemble([
      ('loop', 'item0', 'sum', None), (None, 'minus', 'loop', None), (None, 'one', 'left', 'end'),
      (None, 'zero', 'zero', 'loop'), ('end', 'sum', 'result', None), ('halt', 'zero', 'zero', 'halt')],
      {'sum': 0, 'result': 0, 'left': len(values), 'one': 1, 'minus': -1, 'zero': 0} |
      {f'item{i}': v for i, v in enumerate(values)})
