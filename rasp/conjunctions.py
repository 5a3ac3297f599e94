"""A selector as a sum of heads: disjoint conjunctions of predicates, each a matrix over values."""

import dataclasses
from typing import Any

import numpy as np

from rasp.domains import Analysis
from rasp.language import Selector, SOp


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
  """A predicate as a matrix over the values of its queries and keys; keys and queries None: over indices."""
  keys: SOp | None
  queries: SOp | None
  matrix: np.ndarray
  source: Any = None


def conjunctions(selector: Selector, analysis: Analysis, wanted: bool = True) -> list[list[Leaf]]:
  """A selector as disjoint conjunctions, each with one leaf a pair of keys and queries."""
  if selector.kind == 'leaf':
    grid = analysis.grid(selector)
    if grid is not None:
      return _tidy([[Leaf(None, None, grid == wanted, selector.source)]])
    return _tidy([[Leaf(selector.keys, selector.queries, analysis.matrix(selector) == wanted, selector.source)]])
  if selector.kind == 'not':
    return conjunctions(selector.args[0], analysis, not wanted)
  a, b = selector.args
  if (selector.kind == 'and') == wanted:
    return _both(conjunctions(a, analysis, wanted), conjunctions(b, analysis, wanted))
  rest = _both(conjunctions(a, analysis, not wanted), conjunctions(b, analysis, wanted))
  return _tidy(conjunctions(a, analysis, wanted) + rest)


def _both(one: list[list[Leaf]], two: list[list[Leaf]]) -> list[list[Leaf]]:
  return _tidy([a + b for a in one for b in two])


def _tidy(terms: list[list[Leaf]]) -> list[list[Leaf]]:
  out = []
  for term in terms:
    merged: dict[tuple[int, int], Leaf] = {}
    for leaf in term:
      at = (id(leaf.keys), id(leaf.queries))
      m = leaf.matrix & merged[at].matrix if at in merged else leaf.matrix
      merged[at] = dataclasses.replace(leaf, matrix=m)
    leaves = [leaf for leaf in merged.values() if not leaf.matrix.all()]
    if all(leaf.matrix.any() for leaf in leaves):
      out.append(leaves)
  return out
