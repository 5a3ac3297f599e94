"""What is known of selectors before they are compiled: what they select, how many keys, and what is causal."""

from typing import Any

import numpy as np

from rasp import interpreter, language
from rasp.compiling import orders
from rasp.language import RaspError, Selector, SOp


class Selections:
  """The half of an Analysis that answers questions about selectors; calling it gives the domain of an s-op."""
  longest: int
  matrices: dict[Selector, np.ndarray]
  grids: dict[Selector, np.ndarray | None]

  def __call__(self, node: SOp) -> Any:
    raise NotImplementedError

  def matrix(self, leaf: Selector) -> np.ndarray:
    """The predicate over the values of queries and keys, bool [queries, keys]."""
    if leaf not in self.matrices:
      keys, queries = self(leaf.keys), self(leaf.queries)
      for side, d in ((leaf.keys, keys), (leaf.queries, queries)):
        if d.values is None or len(keys.values or ()) * len(queries.values or ()) > 2**22:
          raise RaspError(leaf.source, f'{side!r} takes too many values to select by; compare with a bound, or use // '
                                       'to narrow its range')
      if leaf.op in language.PREDICATES and keys.whole and queries.whole:
        m = leaf.fn(np.array(keys.values, np.int64)[None, :], np.array(queries.values, np.int64)[:, None])
      else:
        try:
          m = np.array([[interpreter.truth(leaf, k, q) for k in keys.values] for q in queries.values], bool)
        except Exception as error:
          raise RaspError(leaf.source, f"the predicate '{leaf.op}' fails on keys {_examples(keys)} and queries "
                                       f'{_examples(queries)} ({error}); compare values of one type') from None
      self.matrices[leaf] = m.reshape(len(queries.values), len(keys.values))
    return self.matrices[leaf]

  def at_indices(self, node: SOp) -> np.ndarray:
    """Place of an index-only s-op's value at every index, int [N]."""
    d = self(node)
    if node.kind == 'indices':
      return np.arange(self.longest)
    if d.values is not None and len(d.values) == 1:
      return np.zeros(self.longest, int)
    place = d.place
    trace = interpreter.Trace([None] * self.longest)
    return np.array([place[language.plain(v)] for v in trace(node)])

  def at_tokens(self, node: SOp) -> np.ndarray:
    """Place of a token-only s-op's value at every value of tokens, in their order, int [V]."""
    place = self(node).place
    return np.array([place[language.plain(v)] for v in interpreter.Trace(self(language.tokens).values)(node)])

  def grid(self, selector: Selector) -> np.ndarray | None:
    """A selector of indices by indices as bool [query index, key index]; None if it depends on more."""
    if selector not in self.grids:
      self.grids[selector] = self._grid(selector)
    return self.grids[selector]

  def _grid(self, s: Selector) -> np.ndarray | None:
    if s.kind in language.PICKS:
      return None
    if s.kind == 'leaf':
      if not (self(s.keys).index and self(s.queries).index):
        return None
      return self.matrix(s)[self.at_indices(s.queries)][:, self.at_indices(s.keys)]
    parts: list[Any] = [self.grid(part) for part in s.args]
    if any(part is None for part in parts):
      return None
    return ~parts[0] if s.kind == 'not' else parts[0] & parts[1] if s.kind == 'and' else parts[0] | parts[1]

  def _counts(self, selector: Selector) -> tuple[int, int] | None:
    """(fewest, most) keys that a query selects, over every length up to N, where lengths and indices decide it."""
    parts = [selector] if selector.kind == 'leaf' else []
    N, grid = self.longest, self.grid(selector)
    if grid is not None:
      selected = grid.cumsum(1)  # [i, n - 1]: among the first n keys
      valid = np.tri(N, dtype=bool).T
    elif parts and self(parts[0].keys).index and self(parts[0].queries).shape and N <= 2000:
      m = self.matrix(parts[0])[:, self.at_indices(parts[0].keys)].cumsum(1)  # [query value, n - 1]
      q = self._by_shape(parts[0].queries)
      if q is None:
        return None
      selected, valid = m[q, np.arange(N)[None, :]], np.tri(N, dtype=bool).T
    else:
      return None
    return int(selected[valid].min()), int(selected[valid].max())

  def _by_shape(self, node: SOp) -> np.ndarray | None:
    """Place of the value of a linear map of index and length, int [i, n - 1]; impossible pairs hold 0."""
    d, N = self(node), self.longest
    if d.terms is None or not d.whole:
      return None
    out = np.full((N, N), int(d.const))
    for t, k in d.terms.items():
      if t.kind == 'indices':
        out += int(k) * np.arange(N)[:, None]
      elif t.kind == 'width' and is_everything(t.selector):
        out += int(k) * np.arange(1, N + 1)[None, :]
      else:
        return None
    return np.clip(np.searchsorted(np.array(d.values, np.int64), out), 0, len(d.values) - 1)

  def total(self, selector: Selector) -> bool:
    """Whether every query provably selects a key."""
    if selector.kind in language.PICKS:
      selector = selector.args[0]
    counts = self._counts(selector)
    return counts is not None and counts[0] >= 1 or self._by_rank(selector) and (
        selector.queries.kind == 'indices' or selector.queries.kind == 'constant' and selector.queries.value == 0)

  def _by_rank(self, selector: Selector) -> bool:
    """Whether it selects by the rank in a strict total order, 0 .. n - 1, of which every key has another."""
    return selector.kind == 'leaf' and selector.op == '==' and selector.keys.kind == 'width' and (
        orders.is_strict_order(selector.keys.selector, self))

  def unique(self, selector: Selector) -> bool:
    """Whether no query can select two keys."""
    if selector.kind in language.PICKS or self.longest == 1:
      return True
    if selector.kind == 'and':
      return any(map(self.unique, selector.args))
    counts = self._counts(selector)
    if counts is not None:
      return counts[1] <= 1
    if self._by_rank(selector):
      return True
    if selector.kind == 'leaf' and self(selector.keys).index:
      return bool((self.matrix(selector)[:, self.at_indices(selector.keys)].sum(1) <= 1).all())
    return False

  def two_values(self, node: SOp) -> tuple[int, int, int] | None:
    """A query index and two keys that it selects whose values are not always equal, where indices decide it."""
    grid, x = self.grid(node.selector), self(node.args[0])
    if grid is None or not (x.token or x.index):
      return None
    values = self.at_indices(node.args[0]) if x.index else np.arange(self.longest)  # a token may be any
    for query in np.flatnonzero(grid.sum(1) > 1):
      keys = np.flatnonzero(grid[query])
      other = keys[values[keys] != values[keys[0]]]
      if len(other):
        return int(query), int(keys[0]), int(other[0])
    return None

  def causal(self, selector: Selector) -> bool:
    """Whether no query can select a key after itself."""
    if selector.kind in language.PICKS:
      return self.causal(selector.args[0])
    if selector.kind == 'and':
      return any(map(self.causal, selector.args))
    if selector.kind == 'or':
      return all(map(self.causal, selector.args))
    if selector.kind == 'not':
      return self._selects_all_later(selector.args[0])
    grid = self.grid(selector)
    return grid is not None and not np.triu(grid, 1).any()

  def _selects_all_later(self, selector: Selector) -> bool:
    """Whether every query selects all keys after itself."""
    if selector.kind in ('and', 'or'):
      return (all if selector.kind == 'and' else any)(map(self._selects_all_later, selector.args))
    if selector.kind == 'not':
      return self.causal(selector.args[0])
    grid = self.grid(selector)
    return grid is not None and bool(grid[np.triu_indices(len(grid), 1)].all())

  def first_not_causal(self, node: SOp) -> tuple[Any, Selector] | None:
    """The line and the selector of the first aggregate or width that may read a later position."""
    order = language.nodes(node)
    for part in order:
      if part.selector is not None and not self.causal(part.selector):
        users = [n for n in order if any(i is part for i in language.inputs(n))]
        return part.source or next((u.source for u in users if u.source), None), part.selector
    return None


def is_everything(selector: Selector) -> bool:
  """Whether it is written as a selector of all keys, whose width is the length."""
  return selector.kind == 'leaf' and selector.keys.kind == 'constant' and selector.queries.kind == 'constant' and (
      interpreter.truth(selector, selector.keys.value, selector.queries.value))


def _examples(d: Any) -> str:
  return ', '.join(map(repr, d.values[:3])) + (', ..' if len(d.values) > 3 else '')
