"""What a program says: fractions as a number, all else as listed values told apart by whole codes, in several digits
where one is too long to be read without rounding.
"""

from fractions import Fraction
import functools
import itertools
import math
import operator
from typing import Any

import numpy as np

from rasp.compiling.analysis import is_number
from rasp.compiling.circuit import Output, Reading
from rasp.language import SOp


def output(builder: Any, root: SOp) -> Output:  # the encoder's builder, which calls this
  """The readings that say `root`, and the codes of its values."""
  analysis, effort = builder.analysis, builder.effort
  values = analysis(root).values
  if values is not None and (effort.listed or not any(isinstance(v, Fraction) for v in values)):
    return _listed(builder, root, effort.digits)
  others = [v for v in values or () if not is_number(v)]
  if not others:
    return Output(builder.number(root))
  # Which of the others it is, if any, is told by a code; its number counts only where it is none of them.
  place = {v: 1 + k for k, v in enumerate(others)}
  kind = analysis.derived(('kind', root), lambda: SOp(
      'map', (root,), 'default', lambda v: place.get(v, 0), name=f'kind of {root!r}', source=root.source))
  numeric = root.kind == 'aggregate' and not analysis.copies(root) or all(v is None for v in others)
  number = root if numeric else analysis.derived(('number', root), lambda: SOp(
      'map', (root,), 'default', lambda v: v if is_number(v) else 0, name=root.name, source=root.source))
  codes: Any = {v: (float(k),) for v, k in place.items()}
  return Output(builder.number(number), (builder.exact(kind, builder.codes(kind)),), codes, (0.0,))


def _listed(builder: Any, root: SOp, digits: int) -> Output:
  """The output of a program whose values are listed, in so many digits."""
  analysis, codes = builder.analysis, builder.codes(root)
  values = analysis(root).values
  if any(isinstance(v, Fraction) for v in values):
    codes = np.arange(len(values), dtype=np.float64)
  # A copied value is read out as it comes; the rest from a feed-forward layer, where it is exact.
  copied = root.kind == 'aggregate' and analysis.copies(root)
  if digits == 1:
    reading = builder.aggregate(root, codes) if copied else builder.exact(root, codes)
    return Output(None, (reading,), {v: (c,) for v, c in zip(values, codes.tolist())})
  if len(analysis(root).terms or ()) > 1 and analysis(root).whole:
    return _apart(builder, root, digits) or _tens(builder, root)
  upper, lower = np.divmod(np.arange(len(values), dtype=np.float64), math.ceil(math.sqrt(len(values))))
  if copied:
    readings = builder.aggregate(root, upper), builder.aggregate(root, lower)
  else:
    readings = builder.exact(root, upper), builder.exact(root, lower)
  return Output(None, readings, dict(zip(values, zip(upper.tolist(), lower.tolist()))))


def _apart(builder: Any, root: SOp, digits: int) -> Output | None:
  """A sum said as so many sums, of terms with large to small factors; None where values do not tell them apart."""
  analysis, d = builder.analysis, builder.analysis(root)
  terms = sorted(d.terms.items(), key=lambda item: -abs(item[1]))
  best: Any = None
  for cuts in itertools.combinations(range(1, len(terms)), digits - 1):
    groups = [dict(terms[a:b]) for a, b in itertools.pairwise((0, *cuts, len(terms)))]
    values = [analysis.sum_of(group, 0).values for group in groups]
    if any(v is None for v in values) or np.prod([float(len(v)) for v in values]) > 2 * len(d.values):
      continue
    units = [int(np.gcd.reduce([int(k) for k in group.values()])) for group in groups]
    sums = functools.reduce(np.add.outer, [np.array(v, np.int64) for v in values])
    wide = max((v[-1] - v[0]) / unit for v, unit in zip(values, units))
    if len(np.unique(sums)) == sums.size and (best is None or wide < best[0]):
      best = wide, groups, units, values
  if best is None:
    return None
  _, groups, units, values = best
  readings = []
  for group, unit in zip(groups, units):
    readings.append(functools.reduce(operator.add, [builder.number(t) * (float(k) / unit) for t, k in group.items()]))
  return Output(None, tuple(readings), {
      sum(parts) + int(d.const): tuple(float(v // unit) for v, unit in zip(parts, units))
      for parts in itertools.product(*values)})


def _tens(builder: Any, root: SOp) -> Output:
  """A sum said by its quotient and its remainder."""
  analysis, codes = builder.analysis, builder.codes(root)
  low = int(codes.min())
  base = math.ceil(math.sqrt(codes.max() - low + 1))
  tens = analysis.derived(('tens', root), lambda: (root - low) // base)
  upper = (codes - low) // base
  first = builder.exact(tens, builder.codes(tens))
  second = builder.number(root) + Reading(const=-float(low)) + first * -float(base)
  return Output(None, (first, second), dict(zip(analysis(root).values, zip(
      upper.tolist(), (codes - low - base * upper).tolist()))))
