"""Spares layers and heads before any is laid out: the same program with fewer and shallower steps.

Common sub-expressions become one node. Means over one selector that are only added become one mean. An aggregate of
`a & b` that takes one certain key becomes `&` of aggregates, and a mean of `a | b` that is only compared with zero
becomes a mean of `a + b`, where the operator would otherwise cost a layer of its own.
"""

import dataclasses
import functools
import operator
from typing import Any

from rasp import interpreter, language
from rasp.compiling.analysis import Analysis
from rasp.language import RaspError, Selector, SOp

ZERO_TESTS = ('&', '|', '~')  # they ask only whether an argument is 0


class _Merger:
  """Computes nothing twice: rebuilds expressions so that equal ones are one object."""

  def __init__(self):
    self.sops: dict[Any, SOp] = {}
    self.selectors: dict[Any, Selector] = {}

  def rebuild(self, root: SOp, changes: dict[SOp, SOp]) -> SOp:
    """`root` with nodes exchanged, also inside selectors."""
    new: dict[SOp, SOp] = {}
    def sop(node: SOp) -> SOp:
      for part in language.nodes(node):
        if part not in new:
          new[part] = sop(changes[part]) if part in changes else self._sop(dataclasses.replace(
              part, args=tuple(new[a] for a in part.args),
              selector=None if part.selector is None else self._selector(part.selector, new)))
      return new[node]
    return sop(root)

  def _sop(self, node: SOp) -> SOp:
    if node.kind == 'map' and all(a.kind == 'constant' for a in node.args):
      node = SOp('constant', value=interpreter.apply(node, tuple(a.value for a in node.args)), name=node.name,
                 source=node.source)
    fn = None if node.op in language.OPERATORS else node.fn
    return self.sops.setdefault(
        (node.kind, node.args, node.op, fn, node.selector, type(node.value), node.value, node.one), node)

  def _selector(self, s: Selector, new: dict[SOp, SOp]) -> Selector:
    s = dataclasses.replace(s, args=tuple(self._selector(part, new) for part in s.args), keys=new.get(s.keys),
                            queries=new.get(s.queries))
    fn = None if s.op in language.PREDICATES else s.fn
    return self.selectors.setdefault((s.kind, s.args, s.keys, s.queries, s.op, fn), s)


def rewrite(root: SOp, analysis: Analysis) -> SOp:
  """The program after every rule, until nothing changes; `analysis` is of the same vocabulary and length."""
  merger = _Merger()
  root = merger.rebuild(root, {})
  for rule in (totals, differences, merge_means, split_and, sum_or):
    while changes := rule(root, analysis):
      root = merger.rebuild(root, changes)
  return root


def totals(root: SOp, analysis: Analysis) -> dict[SOp, SOp]:
  """mean(S, x) * (how many S selects) -> total(S, x), a sum of one head, in place of a table of both."""
  changes: dict[SOp, SOp] = {}
  for node in language.nodes(root):
    if node.kind != 'map' or node.op != '*':
      continue
    for mean, count in (node.args, node.args[::-1]):
      try:
        terms, const = analysis(mean).terms, analysis(mean).const
        if terms and all(_mean(t, analysis) and _counts(count, t.selector, analysis) for t in terms):
          out: Any = count * const if const else None
          for t, k in terms.items():
            out = _plus(out, k, dataclasses.replace(t, kind='total', value=None, one=False, name=''))
          changes[node] = dataclasses.replace(out, name=node.name, source=node.source)
          break
      except RaspError:  # an input that is itself such a product: the next round
        continue
  return changes


def _counts(x: SOp, selector: Selector, analysis: Analysis) -> bool:
  """Whether x is the width of the selector, also where only the index says how many keys there are."""
  if x.kind == 'width':
    return x.selector is selector
  grid = analysis.grid(selector)
  if grid is None or not analysis(x).index or not analysis.causal(selector):
    return False
  values = analysis(x).values
  return [values[place] for place in analysis.at_indices(x)] == grid.sum(1).tolist()


def differences(root: SOp, analysis: Analysis) -> dict[SOp, SOp]:
  """a < b -> a - b < 0 for whole numbers: one input in place of two, so two ramps in place of a table."""
  changes = {}
  for node in language.nodes(root):
    if node.kind != 'map' or node.op not in language.PREDICATES or any(a.kind == 'constant' for a in node.args):
      continue
    a, b = (analysis(x) for x in node.args)
    if a.terms and b.terms and a.whole and b.whole and not (a.token and b.token or a.index and b.index):
      difference = dataclasses.replace(node.args[0] - node.args[1], source=node.source)
      if analysis(difference).values is not None:
        changes[node] = dataclasses.replace(node, args=(difference, language.constant(0)))
  return changes


def _mean(node: SOp, analysis: Analysis) -> bool:
  return node.kind == 'aggregate' and not analysis.copies(node) and (
      node.value is not None and not isinstance(node.value, str) or analysis.total(node.selector))


def merge_means(root: SOp, analysis: Analysis) -> dict[SOp, SOp]:
  """a * mean(S, x) + b * mean(S, y) -> mean(S, a * x + b * y): one head, and sharper knowledge of the values."""
  changes: dict[SOp, SOp] = {}
  for node in language.nodes(root):
    if node.kind != 'map' or node.op not in ('+', '-'):
      continue
    try:
      d = analysis(node)
    except RaspError:
      if changes:  # what a sum of unmerged means cannot be, the merged one may
        return changes
      raise
    if not d.terms or len(d.terms) < 2 or node in d.terms:
      continue
    groups: dict[Selector, list[SOp]] = {}
    for term in d.terms:
      if _mean(term, analysis):
        groups.setdefault(term.selector, []).append(term)
    if not any(len(g) > 1 for g in groups.values()):
      continue
    total: Any = None
    merged = {t for g in groups.values() if len(g) > 1 for t in g}
    rest = [(k, t) for t, k in d.terms.items() if t not in merged]
    for selector, group in groups.items():
      if len(group) > 1:
        x: Any = None
        default = 0
        for term in group:
          x = _plus(x, d.terms[term], term.args[0])
          default += d.terms[term] * (term.value or 0)
        rest.append((1, dataclasses.replace(group[0], args=(x,), value=default, name='', source=node.source)))
    for k, t in rest:
      total = _plus(total, k, t)
    changes[node] = dataclasses.replace(total + d.const if d.const else total, name=node.name)
  return changes


def _plus(total: SOp | None, k: Any, x: SOp) -> SOp:
  term = x if k == 1 else x * language.constant(k)
  return term if total is None else total + term


def _costly(x: SOp, analysis: Analysis) -> bool:
  """Whether an operator of truth values needs a layer after its arguments' own."""
  inputs = analysis(x).inputs
  return x.kind == 'map' and len(inputs) > 1 and (analysis(x).table.size > 256 or any(i.kind == 'map' for i in inputs))


def _truths(x: SOp, op: str, analysis: Analysis) -> list[SOp]:
  """The arguments of nested `op`s, if all are truth values."""
  if x.kind == 'map' and x.op == op:
    parts = [_truths(a, op, analysis) for a in x.args]
    return [p for part in parts for p in part] if all(parts) else []
  values = analysis(x).values
  return [x] if values is not None and all(v in (0, 1) and v is not None for v in values) else []


def split_and(root: SOp, analysis: Analysis) -> dict[SOp, SOp]:
  """aggregate(S, a & b) -> aggregate(S, a) & aggregate(S, b), where S always selects exactly one key."""
  changes = {}
  for node in language.nodes(root):
    if node.kind == 'aggregate' and analysis.unique(node.selector) and analysis.total(node.selector):
      parts = _truths(node.args[0], '&', analysis)
      if len(parts) > 1 and _costly(node.args[0], analysis):
        aggregates = [dataclasses.replace(node, args=(part,), name='') for part in parts]
        changes[node] = dataclasses.replace(functools.reduce(operator.and_, aggregates), name=node.name)
  return changes


def sum_or(root: SOp, analysis: Analysis) -> dict[SOp, SOp]:
  """mean(S, a | b) -> mean(S, a + b), where every consumer asks only whether it is zero."""
  changes = {}
  order = language.nodes(root)
  for node in order:
    if node is root or node.kind != 'aggregate' or not _mean(node, analysis):
      continue
    parts = _truths(node.args[0], '|', analysis)
    if len(parts) < 2 or not _costly(node.args[0], analysis):
      continue
    consumers = [n for n in order if any(i is node for i in language.inputs(n))]
    if all(n.kind == 'map' and (n.op in ZERO_TESTS or n.op in ('==', '!=') and any(
        a.kind == 'constant' and a.value == 0 for a in n.args)) for n in consumers):
      x: Any = None
      for part in parts:
        x = _plus(x, 1, part)
      changes[node] = dataclasses.replace(node, args=(x,))
  return changes
