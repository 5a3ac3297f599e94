"""FLEQ: a computer whose words are matrices and whose instructions are functions, in a looped transformer.

Giannou et al. 2023, "Looped Transformers as Programmable Computers" (arXiv:2301.13196), section 5: mem[c] becomes
f(mem[a], mem[b]), then a conditional jump. Power iteration, Newton's inverse and gradient descent on in-context
regression are programs. Three layers an instruction: fetch it (while the result before it is written), fetch its
operands, multiply. A pair of gated units silu(x) y - silu(-x) y is x y, so that a product costs two units.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rasp.machines.weights import Vector, Weights

SHARP = 40.0
STEEP = 128.0  # silu(STEEP x) / STEEP is relu(x) in float32 where |x| is at least 1/4
OPERATIONS = {  # f(a, b)
    'multiply': lambda a, b: a @ b, 'transposed': lambda a, b: a.T @ b, 'add': lambda a, b: a + b,
    'subtract': lambda a, b: a - b}
FIELDS = [*(f'do_{f}' for f in OPERATIONS), 'a', 'b', 'c', 'c2', 'jump']  # of an instruction
Instruction = tuple[str, int, int, int, int]  # operation, a, b, c, where to go if mem[a][0, 0] < 1/2


def reference(program: Sequence[Instruction], memory: np.ndarray, instructions: int) -> tuple[np.ndarray, int]:
  """(memory, program counter) in float64. mem[a][0, 0] is looked at before the write, and must not be near 1/2."""
  memory, pc = np.array(memory, float), 0
  for _ in range(instructions):
    operation, a, b, c, jump = program[pc]
    small = memory[a][0, 0] < 0.5
    memory[c] = OPERATIONS[operation](memory[a], memory[b])
    pc = jump if small else pc + 1
  return memory, pc


def computer(program: Sequence[Instruction], memory: np.ndarray, instructions: int) -> Weights:
  """The decoder: token 0 is the processor, then the cells [M, n, n], then the program, then an empty instruction.

  The processor's own address is where its word is to be written: a cell of that address reads it, others themselves.
  """
  M, n, _ = np.shape(memory)
  names = ['one', 'isproc', 'iscell', 'isline', 'addr', 'addr2', 'line', 'line2', 'pc', *FIELDS,
           *(f'line_{f}' for f in FIELDS),
           *(e for kind in ('v', 'read', 'x', 'y', 'left', 'turned') for e in _entries(kind, n))]
  tokens = 1 + M + len(program) + 1
  w = Weights(names, tokens, 1, layers=3, heads=2, head_width=max(len(FIELDS), n * n, 4),
              feedforward=4 * n**3 + 2 * len(FIELDS) + 20 * n * n + 20, activation='swiglu', position='none',
              mask='bidirectional', loops=instructions)
  nowhere = {'one': 1, 'pc': -100}  # fetches the empty instruction
  w.embed(0, {'one': 1, 'isproc': 1, 'addr': -9, 'addr2': 81})
  for m, word in enumerate(memory):
    w.embed(1 + m, nowhere | {'iscell': 1, 'addr': m, 'addr2': m * m} | dict(zip(_entries('v', n), np.ravel(word))))
  for i, (operation, a, b, c, jump) in enumerate(program):
    w.embed(1 + M + i, nowhere | {'isline': 1, 'line': i, 'line2': i * i, f'line_do_{operation}': 1, 'line_a': a,
                                  'line_b': b, 'line_c': c, 'line_c2': c * c, 'line_jump': jump})
  w.embed(tokens - 1, nowhere | {'isline': 1, 'line': -100, 'line2': 100**2})
  _fetch(w, n)
  _calculate(_Units(w), n)
  return w


def _entries(kind: str, n: int) -> list[str]:
  """The directions of one matrix, row by row."""
  return [f'{kind}{i}{j}' for i in range(n) for j in range(n)]


def _fetch(w: Weights, n: int) -> None:
  """The heads: the instruction at pc and the word of the processor's address, then the two operands."""
  far = -2.0**20
  def lookup(pointer: str, key: str, *closed: str) -> list[tuple[Vector, Vector]]:
    return [({pointer: 2 * SHARP}, {key: 1}), ({'one': 1}, {f'{key}2': -SHARP} | {name: far for name in closed})]
  brings = lambda kind: {target: {v: 1} for target, v in zip(_entries(kind, n), _entries('v', n))}
  w.head(0, 0, lookup('pc', 'line', 'isproc', 'iscell'), {f: {f'line_{f}': 1} for f in FIELDS})
  w.head(0, 1, [({'addr': 2 * SHARP}, {'addr': 1}),
                ({'one': 1}, {'addr2': -SHARP, 'isproc': SHARP / 2, 'isline': far})], brings('read'))
  for number, (pointer, kind) in enumerate((('a', 'x'), ('b', 'y'))):
    w.head(1, number, lookup(pointer, 'addr', 'isproc', 'isline'), brings(kind))


class _Units:
  """Gated units of three layers: silu(gate) up, each number after the last one of its layer."""

  def __init__(self, w: Weights):
    self.w, self.used = w, [0, 0, 0]

  def unit(self, layer: int, gate: Vector, up: Vector, writes: Vector) -> None:
    self.w.params['blocks']['gate']['weight'][layer, :, self.used[layer]] = self.w.row(gate)
    self.w.unit(layer, self.used[layer], up, writes)
    self.used[layer] += 1

  def product(self, layer: int, x: Vector, y: Vector, target: str) -> None:
    """target += x y."""
    self.unit(layer, x, y, {target: 1})
    self.unit(layer, {name: -k for name, k in x.items()}, y, {target: -1})

  def clear(self, layer: int, name: str) -> None:
    self.unit(layer, {'one': 32}, {name: 1}, {name: -1 / 32})


def _calculate(u: _Units, n: int) -> None:
  """The units: cells take what they read, the processor multiplies its operands and goes to the next instruction."""
  for v, read in zip(_entries('v', n), _entries('read', n)):
    u.product(0, {'iscell': 1}, {read: 1, v: -1}, v)
    u.clear(0, read)
  for v, x, y, left, turned in zip(*(_entries(k, n) for k in ('v', 'x', 'y', 'left', 'turned'))):
    u.product(1, {'isproc': 1}, {v: -1}, v)
    u.product(1, {'do_add': 1}, {x: 1, y: 1}, v)
    u.product(1, {'do_subtract': 1}, {x: 1, y: -1}, v)
    u.product(1, {'do_multiply': 1}, {x: 1}, left)
    u.product(1, {'do_transposed': 1}, {x: 1}, turned)
  u.product(1, {'isproc': 1}, {'c': 1, 'addr': -1}, 'addr')
  u.product(1, {'isproc': 1}, {'c2': 1, 'addr2': -1}, 'addr2')
  u.product(1, {'isproc': 1}, {'one': 1}, 'pc')
  for edge, sign in ((0.75, 2), (0.25, -2)):  # a ramp from 1 to 0 between 1/4 and 3/4, times the way to go
    u.unit(1, {'x00': -STEEP, 'one': STEEP * edge - 2.0**20, 'isproc': 2.0**20}, {'jump': 1, 'pc': -1, 'one': -1},
           {'pc': sign / STEEP})
  for i in range(n):
    for j in range(n):
      for k in range(n):
        u.product(2, {f'left{i}{k}': 1}, {f'y{k}{j}': 1}, f'v{i}{j}')
        u.product(2, {f'turned{k}{i}': 1}, {f'y{k}{j}': 1}, f'v{i}{j}')
  for name in [*FIELDS, *(e for k in ('x', 'y', 'left', 'turned') for e in _entries(k, n))]:
    u.clear(2, name)


def run(program: Sequence[Instruction], memory: np.ndarray, instructions: int) -> tuple[np.ndarray, int]:
  """(memory, program counter) after so many instructions, by the decoder; the last result is still the processor's."""
  memory = np.asarray(memory, float)
  w = computer(program, memory, instructions)
  x = np.asarray(w.run(np.arange(w.module.vocabulary)[None])[0][0])
  n = memory.shape[1]
  words = x[:, [w.at[v] for v in _entries('v', n)]].reshape(-1, n, n)
  out = words[1:1 + len(memory)].copy()
  out[int(round(float(x[0, w.at['addr']])))] = words[0]
  return out, int(round(float(x[0, w.at['pc']])))


def assemble(lines: Sequence[tuple], data: Mapping[str, np.ndarray]) -> tuple[list[Instruction], np.ndarray]:
  """Lines (label or None, operation, a, b, c, jump or None) and named words; the program ends in a loop on itself."""
  at = {name: i for i, name in enumerate(data)}
  labels = {label: i for i, (label, *_) in enumerate(lines) if label}
  program = [(operation, at[a], at[b], at[c], i + 1 if jump is None else labels[jump])
             for i, (_, operation, a, b, c, jump) in enumerate(lines)]
  return program, np.stack([np.asarray(word, float) for word in data.values()])


def _scalar(value: float, n: int) -> np.ndarray:
  out = np.zeros((n, n))
  out[0, 0] = value
  return out


def _loop(body: Sequence[tuple], rounds: int, n: int, data: Mapping[str, np.ndarray]):
  """(program, memory, instructions) of a body that is run so many times, counted down in a word of its own."""
  lines = [('top', *body[0]), *((None, *line) for line in body[1:]),
           (None, 'subtract', 'count', 'unit', 'count', None),  # one round less
           (None, 'add', 'count', 'nil', 'nothing', 'end'),  # at 0: the end
           (None, 'add', 'nil', 'nil', 'nothing', 'top'), ('end', 'add', 'nil', 'nil', 'nothing', 'end')]
  data = dict(data) | {'count': _scalar(rounds, n), 'unit': _scalar(1, n), 'nil': np.zeros((n, n)),
                       'nothing': np.zeros((n, n))}
  return *assemble(lines, data), rounds * (len(body) + 3)


def newton_inverse(A: np.ndarray, rounds: int):
  """X <- X (2 I - A X), from A^T / (|A|_1 |A|_inf) (Ben-Israel and Cohen 1966); X is word 0."""
  n = len(A)
  start = A.T / (np.abs(A).sum(0).max() * np.abs(A).sum(1).max())
  return _loop([('multiply', 'A', 'X', 'T', None), ('subtract', 'two', 'T', 'T', None),
                ('multiply', 'X', 'T', 'X', None)],
               rounds, n, {'X': start, 'A': A, 'T': np.zeros((n, n)), 'two': 2 * np.eye(n)})


def power_iteration(A: np.ndarray, start: np.ndarray, rounds: int):
  """x <- A x / |A x|, as the first column of word 0; 1/|x| by Newton's y <- y (3 - |x|^2 y^2) / 2, three times a round.

  The first guess of 1/|x| is 1, so A must be scaled to an eigenvalue of 0.5 to 1.5.
  """
  n = len(A)
  x = np.zeros((n, n))
  x[:, 0] = start / np.linalg.norm(start)
  norm = [('multiply', 'Y', 'Y', 'T', None), ('multiply', 'T', 'S', 'T', None), ('subtract', 'three', 'T', 'T', None),
          ('multiply', 'Y', 'T', 'Y', None), ('multiply', 'Y', 'half', 'Y', None)]
  return _loop([('multiply', 'A', 'X', 'X', None), ('transposed', 'X', 'X', 'S', None),
                ('add', 'guess', 'nil', 'Y', None), *(3 * norm), ('multiply', 'X', 'Y', 'X', None)], rounds, n,
               {'X': x, 'A': A, 'S': np.zeros((n, n)), 'T': np.zeros((n, n)), 'Y': np.zeros((n, n)),
                'guess': _scalar(1, n), 'three': _scalar(3, n), 'half': _scalar(0.5, n)})


def gradient_descent(inputs: np.ndarray, targets: np.ndarray, rate: float, rounds: int):
  """w <- w - rate F^T (F w - y) on n examples of n features given in the memory; w is the first column of word 0."""
  n = len(inputs)
  y = np.zeros((n, n))
  y[:, 0] = targets
  return _loop([('multiply', 'F', 'W', 'E', None), ('subtract', 'E', 'Y', 'E', None),
                ('transposed', 'F', 'E', 'G', None),
                ('multiply', 'rate', 'G', 'G', None), ('subtract', 'W', 'G', 'W', None)], rounds, n,
               {'W': np.zeros((n, n)), 'F': inputs, 'Y': y, 'E': np.zeros((n, n)), 'G': np.zeros((n, n)),
                'rate': rate * np.eye(n)})
