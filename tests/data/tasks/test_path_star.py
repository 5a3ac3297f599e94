"""Path-star graphs: every block is rebuilt from its edges alone; the formula of rollouts against drawing them."""

import numpy as np
import pytest

from framework.data.tasks.path_star import Task


def way(task, block):
  """The way from the centre to the goal, found backwards among the edges; asserts that the graph is a path-star."""
  edges = [divmod(x - task.names, task.names) for x in block[1:1 + task.edges]]
  equals, goal = block[1 + task.edges:3 + task.edges]
  centre = 0
  assert equals == task.equals and task.alphabet[equals] == '='
  before = {v: u for u, v in edges}
  assert len(before) == task.edges and centre not in before
  leaving = [u for u, _ in edges]
  assert leaving.count(centre) == task.arms and len(set(leaving)) == task.edges - task.arms + 1
  path = [goal]
  while before[path[0]] != centre:
    path.insert(0, before[path[0]])
  return path


@pytest.mark.parametrize('arms,nodes_of_arm,nodes', [(5, 3, 0), (2, 1, 9), (3, 4, 20)])
def test_blocks_are_true(arms, nodes_of_arm, nodes):
  task = Task(arms, nodes_of_arm, nodes)
  rng, goals, firsts = np.random.default_rng(0), [], []
  for _ in range(200):
    block = list(map(int, task.block(rng)))
    assert len(block) == task.length and block[0] == task.end == len(task.alphabet)
    assert task.start == task.edges + 2 and min(block[1:1 + task.edges]) >= task.names
    path = way(task, block)
    assert block[task.start + 1:-1] == path and block[-1] == task.names * (1 + path[-1]) + path[0]
    assert len(path) == nodes_of_arm and block[task.hard] == path[0]
    leaving = [(x - task.names) % task.names for x in block[1:1 + task.edges]
               if (x - task.names) // task.names == 0]
    firsts.append(leaving.index(path[0]))  # which of the centre's edges, in the order told
    goals.append(path[-1])
  assert len(set(goals)) == task.names - 1
  assert np.bincount(firsts, minlength=arms).min() > 200 * task.chance / 2  # no order tells the arm


def test_the_check_sees_a_wrong_path():
  task = Task()
  block = list(map(int, task.block(np.random.default_rng(1))))
  other = block[:-4] + block[-3:-1] + block[-4:-3]
  assert way(task, block) == block[-4:-1] and way(task, other) != other[-3:]


@pytest.mark.parametrize('arms,samples,expected', [(2, 1, 1.0), (5, 1, 0.4), (5, 2, 0.56), (5, 4, 0.79), (5, 8, 0.97),
                                                   (10, 8, 0.67), (5, 0, 0.2)])
def test_with_rollouts_is_what_drawing_them_gives(arms, samples, expected):
  found = Task(arms).with_rollouts(samples)
  rng, n = np.random.default_rng(0), 20000
  walks, goal, guess = rng.integers(arms, size=(n, samples)), rng.integers(arms, size=n), rng.random(n)
  right = 0.0
  for w, g, u in zip(walks, goal, guess):
    left = [a for a in range(arms) if a not in w]
    right += g in w or left[int(u * len(left))] == g
  assert found == pytest.approx(right / n, abs=0.012) and found == pytest.approx(expected, abs=0.006)
