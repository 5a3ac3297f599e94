"""k-hop induction against its definition on lists."""

import numpy as np
import pytest

from framework.data.tasks.k_hop import Task


def hops_of(x, hops, none):
  """The definition, by searching from the right."""
  place, out = len(x) - 1, []
  for _ in range(hops):
    if place is not None:
      place = next((j + 1 for j in reversed(range(place)) if x[j] == x[place]), None)
    out.append(none if place is None else x[place])
  return out


@pytest.mark.parametrize('text,symbols,hops', [(40, 4, 5), (12, 5, 3), (2, 2, 1)])
def test_blocks_are_true(text, symbols, hops):
  task, rng, answers = Task(text, symbols, hops), np.random.default_rng(0), []
  for _ in range(500):
    block = list(map(int, task.block(rng)))
    assert len(block) == task.length and block[0] == task.end == len(task.alphabet)
    x = block[1:1 + text]
    assert max(x) < symbols and block[task.start] == task.equals and task.alphabet[task.equals] == '='
    expected = hops_of(x, hops, task.none)
    assert block[task.start + 3:] == expected and block[task.hard] == expected[-1]
    assert task.alphabet[block[task.start + 2]] == ';' and task.alphabet[task.none] == '-'
    answers.append(expected[-1])
  counts = np.bincount(answers, minlength=symbols)[:symbols]
  assert counts.max() / 500 < task.chance + 0.07 and counts.min() > 0


def test_the_check_sees_a_hop_too_few():
  assert hops_of([0, 1, 2, 0, 2, 1, 0], 3, 9) == [2, 0, 1]  # 0 -> 2 at 4 -> 0 at 3 -> 1 at 1
  assert hops_of([0, 1, 2, 0, 2, 1, 0], 4, 9)[-1] == 9
