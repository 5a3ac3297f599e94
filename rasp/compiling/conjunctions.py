"""A selector as a sum of heads: disjoint conjunctions of predicates, each a matrix over values."""

import dataclasses
from typing import Any

import numpy as np

from rasp import language
from rasp.compiling.analysis import Analysis
from rasp.language import RaspError, Selector, SOp

TRUE = language.constant(True)  # in place of any constant, so that predicates against two of them meet
MERGED = 2**20  # the largest matrix that several predicates become
CELLS = 2**11  # the most tuples of keys, and of queries, that `product` tabulates


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
  """A predicate as a matrix over the values of its queries and keys; keys and queries None: over indices."""
  keys: SOp | Any
  queries: SOp | Any
  matrix: np.ndarray
  source: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
  """What one head selects: the keys that all its leaves allow, each leaf of another pair of keys and queries."""
  leaves: tuple[Leaf, ...]


def conjunctions(selector: Selector, analysis: Analysis, wanted: bool = True) -> list[Term]:
  """The terms that select what the selector does, or what it does not; no key is selected by two of them."""
  grid = analysis.grid(selector)
  if grid is not None:
    return _tidy([(Leaf(None, None, grid == wanted, selector.source),)])
  if selector.kind != 'leaf' and (selector.kind == 'and') != wanted:
    one = _single(selector, analysis)
    if one is not None:
      return _tidy([(Leaf(TRUE if one.keys is None else one.keys, TRUE if one.queries is None else one.queries,
                          one.matrix == wanted, one.source),)])
  if selector.kind == 'leaf':
    keys, queries = (TRUE if len(analysis(side).values or ()) == 1 else side
                     for side in (selector.keys, selector.queries))
    return _tidy([(Leaf(keys, queries, analysis.matrix(selector) == wanted, selector.source),)])
  if selector.kind == 'not':
    return conjunctions(selector.args[0], analysis, not wanted)
  a, b = selector.args
  if (selector.kind == 'and') == wanted:
    return _both(conjunctions(a, analysis, wanted), conjunctions(b, analysis, wanted))
  terms, more = conjunctions(a, analysis, wanted), conjunctions(b, analysis, wanted)
  if _both(terms, more):  # they may select the same key
    more = _both(conjunctions(a, analysis, not wanted), more)
  return terms + more


def _single(s: Selector, analysis: Analysis) -> Leaf | None:
  """A whole selector as one predicate, where all of it compares the same two s-ops, or constants and functions of the
  token or the index with one of them; None if it does not."""
  if s.kind == 'leaf':
    m = analysis.matrix(s)
    sides = []
    for axis, side in ((1, s.keys), (0, s.queries)):
      d = analysis(side)
      if len(d.values) > 1 and d.token:
        side, m = language.tokens, np.take(m, analysis.at_tokens(side), axis)
      elif len(d.values) > 1 and d.index:
        side, m = language.indices, np.take(m, analysis.at_indices(side), axis)
      sides.append(side if len(d.values) > 1 else None)
    return Leaf(sides[0], sides[1], m, s.source) if m.size <= MERGED else None
  parts: list[Any] = [_single(part, analysis) for part in s.args]
  if any(p is None for p in parts) or s.kind in language.PICKS:
    return None
  keys, queries = ({id(side): side for p in parts for side in (getattr(p, name),) if side is not None}
                   for name in ('keys', 'queries'))
  if len(keys) > 1 or len(queries) > 1:
    return None
  m = parts[0].matrix
  m = ~m if s.kind == 'not' else m & parts[1].matrix if s.kind == 'and' else m | parts[1].matrix
  key, query = (next(iter(side.values()), None) for side in (keys, queries))  # None: a constant
  return Leaf(key, query, m, s.source)


def _both(one: list[Term], two: list[Term]) -> list[Term]:
  return _tidy([a.leaves + b.leaves for a in one for b in two])


def _tidy(conjuncts: list[tuple[Leaf, ...]]) -> list[Term]:
  """One leaf a pair of keys and queries, and neither those that allow everything nor terms that allow nothing."""
  terms = []
  for leaves in conjuncts:
    merged: dict[tuple[SOp | None, SOp | None], Leaf] = {}
    for leaf in leaves:
      pair = (leaf.keys, leaf.queries)
      m = leaf.matrix & merged[pair].matrix if pair in merged else leaf.matrix
      merged[pair] = dataclasses.replace(leaf, matrix=m)
    narrow = [leaf for leaf in merged.values() if not leaf.matrix.all()]
    if all(leaf.matrix.any() for leaf in narrow):
      terms.append(Term(tuple(narrow)))
  return terms


def product(selector: Selector, analysis: Analysis) -> Selector:
  """Any selector as one predicate on tuples: what a mean over an `or` needs. Raises RaspError if that is too large."""
  leaves = language.leaves(selector)
  nodes, places = [], []  # of keys and queries: an s-op of tuples, and the place of each part's value in every tuple
  for side in ('keys', 'queries'):
    parts = list(dict.fromkeys(getattr(leaf, side) for leaf in leaves))
    tuples: dict[str, tuple] = {}
    def pack(*values, tuples=tuples):
      tuples[repr(values)] = values
      return repr(values)
    node = SOp('map', tuple(parts), 'default', pack, source=selector.source, name=f'{side} of {selector!r}')
    size = np.prod([float(len(analysis(part).values or range(10**6))) for part in parts])
    if size > CELLS:
      raise RaspError(selector.source, f'an aggregate over `|` needs a table of {size:.0f} {side}; aggregate each '
                                       'part by itself, or narrow the ranges')
    values = [tuples[name] for name in analysis(node).values]
    nodes.append(node)
    places.append({part: np.array([analysis(part).place[row[k]] for row in values]) for k, part in enumerate(parts)})
  def matrix(s: Selector) -> np.ndarray:
    if s.kind == 'leaf':
      return analysis.matrix(s)[places[1][s.queries]][:, places[0][s.keys]]
    m = [matrix(part) for part in s.args]
    return ~m[0] if s.kind == 'not' else m[0] & m[1] if s.kind == 'and' else m[0] | m[1]
  leaf = Selector('leaf', (), nodes[0], nodes[1], 'apply product', None, selector.source)
  analysis.matrices[leaf] = matrix(selector)
  return leaf
