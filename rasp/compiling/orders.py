"""Proof that a selector is a strict total order of the positions, so that its widths are the ranks 0 .. n - 1.

A sort then reads exactly one key at every index: nothing about its uniqueness has to be assumed.
"""

import itertools
from typing import Any

import numpy as np

from rasp import language
from rasp.language import Selector

MOST = 256  # values whose triples are looked at
BEFORE, SAME, AFTER = 0, 1, 2  # where the key stands, seen from the query


def is_strict_order(selector: Selector, analysis: Any) -> bool:  # an Analysis, which asks this
  """Whether for any values and any two positions exactly one selects the other, and never itself, transitively.

  Shown for selectors that compare one s-op with itself, and which of two positions is first.
  """
  valued = [leaf for leaf in language.leaves(selector) if analysis.grid(leaf) is None]
  if len({id(side) for leaf in valued for side in (leaf.keys, leaf.queries)}) > 1:
    return False
  values = analysis(valued[0].keys).values if valued else (None,)
  if values is None or len(values) > MOST or selector.kind in language.PICKS:
    return False
  relation = _relation(selector, analysis, len(values))  # [where the key stands, key value, query value]
  if relation is None or relation[SAME].diagonal().any() or (relation[BEFORE] == relation[AFTER].T).any():
    return False
  for place in itertools.permutations(range(3)):
    sign = lambda a, b: BEFORE if place[a] < place[b] else AFTER
    chain = relation[sign(0, 1)].astype(np.int64) @ relation[sign(1, 2)].astype(np.int64) > 0
    if (chain & ~relation[sign(0, 2)]).any():
      return False
  return True


def _relation(s: Selector, analysis: Any, count: int) -> np.ndarray | None:
  if s.kind == 'leaf':
    grid = analysis.grid(s)  # [query, key]
    if grid is None:
      return np.broadcast_to(analysis.matrix(s).T, (3, count, count))
    below, above = grid[np.tril_indices(len(grid), -1)], grid[np.triu_indices(len(grid), 1)]
    sides = [below, grid.diagonal(), above]
    if any(side.size and side.any() != side.all() for side in sides):
      return None
    return np.broadcast_to(np.array([bool(side.any()) for side in sides])[:, None, None], (3, count, count))
  parts: list[Any] = [_relation(part, analysis, count) for part in s.args]
  if any(p is None for p in parts):
    return None
  return ~parts[0] if s.kind == 'not' else parts[0] & parts[1] if s.kind == 'and' else parts[0] | parts[1]
