"""Path-star graphs: from a centre d arms of m nodes each; told the end of one arm, say the way there.

  end uv uv .. = g v_1 v_2 .. v_m s

Each edge uv is one symbol, so that who knows u needs one look to find v. The edges come in random order, then the goal
g and the path to it from the centre, which is always node 0; the last symbol s is the pair of v_m and v_1, the walk in
short.

Each next node after the first is one look among the edges, but the first takes the whole arm backwards, from the goal:
a decoder trained with the right path before its eyes learns to look, and guesses the first node for ever (Bachmann and
Nagarajan 2024, arXiv:2403.06963). A reader of walks may see which of them ends at the goal, and finds its first node by
the very look that finds the next one, in s: with K walks its accuracy is `with_rollouts(K)` at best.
"""

import dataclasses

import numpy as np

from framework.config import ConfigError
from framework.data import tasks


@dataclasses.dataclass(frozen=True)
class Task(tasks.Question):
  """arms: d; nodes_of_arm: m; nodes: names to draw from, 0 for as many as a graph has."""
  arms: int = 5
  nodes_of_arm: int = 3
  nodes: int = 0

  def __post_init__(self):
    tasks.check_range(self, arms=(2, 1000), nodes_of_arm=(1, 1000))
    if self.nodes and not self.nodes_of_graph <= self.nodes <= 128:
      raise ConfigError(f'data.task has nodes={self.nodes}; expected {self.nodes_of_graph}, the nodes of a graph, to '
                        '128, or 0')
    if self.nodes_of_graph > 128:
      raise ConfigError(f'data.task has arms={self.arms} of {self.nodes_of_arm} nodes; expected at most 128 nodes')

  @property
  def nodes_of_graph(self) -> int:
    return 1 + self.arms * self.nodes_of_arm

  @property
  def names(self) -> int:
    return self.nodes or self.nodes_of_graph

  @property
  def alphabet(self) -> str:
    return tasks.characters(self.names * (1 + self.names)) + '='

  def pair(self, u, v):
    """The symbol of the pair u, v."""
    return self.names * (1 + u) + v

  @property
  def equals(self) -> int:
    """The token '='."""
    return self.end - 1

  @property
  def edges(self) -> int:
    return self.arms * self.nodes_of_arm

  @property
  def start(self) -> int:
    """The place of the goal, after '='."""
    return self.edges + 2

  @property
  def length(self) -> int:
    return self.start + 2 + self.nodes_of_arm

  @property
  def chance(self) -> float:
    """Accuracy on the first node of who knows the neighbours of the centre and no more."""
    return 1 / self.arms

  def with_rollouts(self, samples: int) -> float:
    """Accuracy on the first node of who sees K walks from the centre, each along an arm drawn at random.

    A walk that ends at the goal gives the answer; else the arms seen are ruled out. With D distinct arms seen in K
    draws, E[D/d + (1 - D/d) / (d - D)] = E[D]/d + P(D < d)/d, since each arm is as likely to be the goal's.
    """
    d = self.arms
    chance_of = np.zeros(d + 1)  # of D arms seen
    chance_of[0] = 1
    for _ in range(samples):
      seen = np.arange(d + 1)
      chance_of = chance_of * seen / d + np.concatenate([[0], chance_of[:-1] * (d - seen[:-1]) / d])
    return float((chance_of * np.arange(d + 1)).sum() / d + chance_of[:-1].sum() / d)

  @property
  def draws(self) -> int:
    return self.names + self.edges

  def spell(self, u_n, xp):
    d, m = self.arms, self.nodes_of_arm
    names = 1 + xp.argsort(u_n[:self.names - 1])[:d * m]
    goal = tasks.pick(u_n[-1], d, xp)
    arms_DxM = names.reshape(d, m)
    from_DxM = xp.concatenate([xp.zeros_like(arms_DxM[:, :1]), arms_DxM[:, :-1]], axis=1)
    edges_E = self.pair(from_DxM, arms_DxM).reshape(-1)[xp.argsort(u_n[self.names - 1:-1])]
    path = arms_DxM[goal]
    return xp.concatenate([xp.asarray([self.end]), edges_E, xp.asarray([self.equals]), path[-1:], path,
                           self.pair(path[-1:], path[0])])
