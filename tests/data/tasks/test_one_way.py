"""Right-to-left recurrences: every block is checked by big-integer arithmetic and by brute force over groups."""

import numpy as np
import pytest

from framework.data import stream
from framework.data.tasks.one_way import Task


def coefficients(task, row):
  """(a, c, d) such that row = a + c b + d b^2 (or b^3), found by search over all of the kind."""
  b = np.arange(task.p)
  power = {'cube': 3, 'affine': 1, 'quad': 2}[task.kind]
  for a in range(task.p):
    for c in range(task.p):
      for d in range(1, task.p) if task.kind == 'quad' else [0]:
        value = a + c * b + d * b**2 if task.kind == 'quad' else a + c * b**power
        if (value % task.p == row).all() and (c or d):
          return a, c, d
  raise AssertionError(f'{row} is no {task.kind}')


@pytest.mark.parametrize('kind,p,maps', [('cube', 5, 4), ('cube', 11, 0), ('quad', 7, 0), ('affine', 5, 4)])
@pytest.mark.parametrize('form', ['answer', 'derivation'])
def test_blocks_are_true(kind, p, maps, form):
  task = Task(kind, p, 6, form, maps)
  known = {i: coefficients(task, row) for i, row in enumerate(task.table)} if p < 11 else None
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(50):
    block = list(map(int, task.block(rng)))
    assert len(block) == task.length and block[0] == task.end == len(task.alphabet)
    f, b = [x - p for x in block[1:7]], block[7]
    assert task.alphabet[block[8]] == '=' and task.start == 8
    chain = []
    for t in reversed(range(6)):
      if known:
        a, c, d = known[f[t]]
        b = (a + c * b + d * b**2 if kind == 'quad' else a + c * b**(3 if kind == 'cube' else 1)) % p
      else:
        b = int(task.table[f[t]][b])
      chain.append(b)
    if form == 'answer':
      assert block[9] == chain[-1] and task.alphabet[block[10]] == ';' and block[11:] == chain
    else:
      assert block[9:] == chain
    assert block[task.hard] == chain[-1]
    seen.add(chain[-1])
  assert len(seen) > 2


def closure(maps):
  """All compositions of the maps."""
  found, new = {tuple(m) for m in maps}, {tuple(m) for m in maps}
  while new:
    new = {tuple(np.array(a)[list(b)]) for a in new for b in maps} - found
    found |= new
  return found


def test_four_cubes_of_five_generate_all_permutations():
  assert len(closure(Task().table)) == 120
  assert len(closure(Task('affine', 5, 8, 'answer', 0).table)) == 20  # solvable: a group of order p (p - 1)


def test_the_answer_is_uniform_for_permutations():
  task = Task(steps=5)
  rng = np.random.default_rng(1)
  counts = np.bincount([task.block(rng)[task.hard] for _ in range(5000)], minlength=5) / 5000
  np.testing.assert_allclose(counts, task.chance, atol=0.025)


def test_rounding_does_not_lead_beyond_the_last_map():
  task = Task()
  top = np.full(task.draws, np.float32(1) - np.float32(2)**-24)
  assert max(task.spell(top, np)[1:task.start]) == 8


def test_it_is_a_task_of_the_command_line():
  assert stream.task_of('one_way:kind=quad,p=29,steps=12') == Task('quad', 29, 12)
