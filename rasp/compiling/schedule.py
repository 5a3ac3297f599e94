"""The narrowest residual stream for a circuit: columns for what is read, and when a direction may be used again.

Every head and every step already stands at its earliest half-layer, which is the longest path to it: heads and units of
one layer are unlimited, so no schedule is shallower. What is left is the width. A column lives from the half-layer that
writes it to the last one that reads it; then a feed-forward layer may overwrite it (two units hold the old value and
subtract it), so that the width is the largest number of columns alive at once, not their sum.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from rasp.compiling.circuit import Circuit, Feature, Gate, Reading, Slot, Step, Table


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """A direction of the residual stream for a time, from the half-layer `born` that writes it.

  vector: its value for every value of its table; None for a slot and for the two constants. at_bos: its value at the
  first token. lost: how far the vector is from what was asked for, at most: of fractions, which are put on a grid.
  """
  source: Slot | Step | str  # a table's source, a slot, 'one' or 'bos'
  vector: np.ndarray | Any
  born: int
  at_bos: float = 0.0
  lost: float = 0.0

  @property
  def exact(self) -> bool:
    """Whether it holds its vector without error: everything but what a head brings."""
    return not isinstance(self.source, Slot)

  @functools.cached_property
  def values(self) -> np.ndarray:
    """What it may hold, BOS included."""
    if isinstance(self.source, Gate):
      return np.array([0.0, self.source.high - self.source.low])
    return np.array([self.at_bos, *(self.vector if self.vector is not None else
                                    [self.source.low, self.source.high] if isinstance(self.source, Slot) else [1, 0])])

  @functools.cached_property
  def largest(self) -> float:
    return float(np.abs(self.values).max())

  @functools.cached_property
  def whole(self) -> bool:
    """Whether all that it may hold are whole numbers."""
    return bool((self.values == np.round(self.values)).all())


FINEST = 18.0  # log2 of the largest sum of a step's units, in steps of the grid for its fractions
Parts = dict[Feature | Slot, tuple[dict[Column, float], float]]  # each as coefficients of columns and a constant


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Where everything in a circuit stands: a dimension for every column, and per half-layer the columns it clears."""
  circuit: Circuit
  parts: Parts
  columns: tuple[Column, ...]
  one: int  # the dimension that is 1 everywhere
  bos: int | None  # that is 1 at BOS alone, if anything reads it
  layers: int
  width: int
  dims: dict[Column, int]
  cleared: dict[int, list[Column]]

  def expand(self, r: Reading) -> tuple[dict[Column, float], float]:
    """A reading as coefficients of columns and a constant."""
    return _expand(self.parts, r)

  def at_bos(self, r: Reading) -> float:
    """A reading's value at the first token."""
    columns, const = self.expand(r)
    return const + sum(a * c.at_bos for c, a in columns.items())

  def range(self, r: Reading) -> tuple[float, float]:
    """Least and greatest value of a reading, BOS included."""
    columns, low = self.expand(r)
    high = low
    together: dict[Any, list[np.ndarray]] = {}  # columns of one table hold features of one value
    for c, a in columns.items():
      together.setdefault(c if c.vector is None else c.source, []).append(a * c.values)
    for group in together.values():
      values = np.sum(group, axis=0)
      low, high = low + float(values.min()), high + float(values.max())
    return low, high

  def written_by(self, step: Step) -> list[Column]:
    """The columns that hold what is asked of a step's value."""
    return [c for c in self.columns if c.source is step]


def _expand(parts: Parts, r: Reading) -> tuple[dict[Column, float], float]:
  out: dict[Column, float] = {}
  const = r.const
  for part, k in r.parts:
    columns, constant = parts[part]
    const += k * constant
    for column, a in columns.items():
      out[column] = out.get(column, 0.0) + k * a
  return {c: a for c, a in out.items() if a}, const


def primitive(vector: np.ndarray) -> tuple[np.ndarray, float, float]:
  """(column, a, b) with vector = a * column + b; equal columns for vectors that differ by scale and constant."""
  b = float(vector[0])
  column = vector - b
  a = float(column[np.flatnonzero(column)[0]]) if column.any() else 1.0
  if column.any() and (column == column.round()).all():
    a = float(np.gcd.reduce(column.astype(np.int64))) * (1 if a > 0 else -1)  # type: ignore[call-overload]  # NumPy 2.5
  return column / a, a, b


def _on_grid(step: Step, vector: np.ndarray) -> tuple[np.ndarray, float, float, float]:
  """(column, a, b, lost): a column of whole numbers with vector = a * column + b up to `lost` of its units, as fine as
  the step's units can hold without rounding."""
  at = np.flatnonzero(np.diff(step.places))
  jumps = np.abs(np.diff(vector[step.places])[at])
  reach = 3.0 / np.diff(step.levels)[at] * (step.levels[-1] - step.levels[at]) + 2
  a, b = 2.0 ** -math.floor(FINEST - math.log2(2 * float(jumps @ reach))), float(vector[0])
  column = np.round((vector - b) / a)
  return column, a, b, float(np.abs(column - (vector - b) / a).max())


def _columns(table: Table) -> tuple[list[Column], Parts]:
  """(columns, features by columns) of a table: a column for all that differ by scale and constant, or a one-hot."""
  step = table.source if isinstance(table.source, Step) else None
  columns: dict[bytes, Column] = {}
  lost: dict[bytes, float] = {}
  def column(vector: np.ndarray) -> Column:
    return columns.setdefault(vector.tobytes(), Column(
        table.source, vector, step.time if step else -1, float(vector[step.places[0]]) if step else 0.0,
        lost.get(vector.tobytes(), 0.0)))
  split = []
  for f in table.features:
    c, a, b = primitive(f.vector)
    if step and (c != c.round()).any():
      c, a, b, far = _on_grid(step, f.vector)
      lost[c.tobytes()] = far
    split.append((f, c, a, b))
  if len({c.tobytes() for _, c, _, _ in split}) < table.size:
    parts: Parts = {f: ({column(c): a} if c.any() or c.tobytes() in lost else {}, b) for f, c, a, b in split}
  else:
    onehot = np.eye(table.size)
    hot = {i: column(onehot[i]) for i in np.unique([i for f, _, _, b in split for i in np.flatnonzero(f.vector != b)])}
    parts = {f: ({hot[i]: float(f.vector[i] - b) for i in np.flatnonzero(f.vector != b)}, b) for f, _, _, b in split}
  return list(columns.values()), parts


def schedule(circuit: Circuit) -> Plan:
  """The plan of a circuit: columns for every feature that is read, and a dimension for each."""
  columns: list[Column] = []
  parts: Parts = {}
  for table in circuit.tables:
    own, expanded = _columns(table)
    columns += own
    parts |= expanded
  for head in circuit.heads:
    for slot in head.slots:
      columns.append(Column(slot, None, head.time, slot.sink))
      parts[slot] = {columns[-1]: 1.0}, 0.0
  for gate in sorted(circuit.gates, key=lambda gate: gate.time):  # the unit holds what is above the lowest value
    columns.append(Column(gate, None, gate.time))
    on, const = _expand(parts, gate.on * gate.low)
    parts[gate] = {columns[-1]: 1.0} | on, const
  items: list[Any] = [*circuit.heads, *circuit.steps, *circuit.gates]
  layers = max([item.time for item in items] + [0]) // 2 + 1
  one, bos = Column('one', None, -1, 1.0), Column('bos', None, -1, 1.0)
  last = {one: 2 * layers, bos: 2 * layers}  # the half-layer that reads a column last
  def read(r: Reading, time: int) -> None:
    for c in _expand(parts, r)[0]:
      last[c] = max(last.get(c, -1), time)
  for head in circuit.heads:
    for r in [head.at_bos, *(x for pair in head.scores for x in pair), *(s.value for s in head.slots)]:
      read(r, head.time)
  for step in circuit.steps:
    read(step.z, step.time)
  for gate in circuit.gates:
    read(gate.value, gate.time)
    read(gate.on, gate.time)
  for said in (circuit.output.number, *circuit.output.digits):
    if said is not None:
      read(said, 2 * layers)
  kept = (one, *([bos] if circuit.heads or circuit.steps or circuit.gates else []), *(c for c in columns if c in last))
  dims, width, cleared = allocate(kept, last, layers)
  return Plan(circuit, parts, kept, dims[one], dims.get(bos), layers, width, dims, cleared)


def allocate(columns: Sequence[Column], last: Mapping[Column, int], layers: int
             ) -> tuple[dict[Column, int], int, dict[int, list[Column]]]:
  """(dimension of every column, how many there are, columns that each feed-forward half-layer clears)."""
  dims: dict[Column, int] = {}
  cleared: dict[int, list[Column]] = {}
  clean: list[int] = []
  unused = itertools.count()
  fresh = lambda: clean.pop(0) if clean else next(unused)
  alive: list[Column] = []
  for t in range(-1, 2 * layers):
    born = [c for c in columns if c.born == t]
    if t % 2 == 0 or t == -1:  # the embedding and attention add to their columns, so they must be 0
      dims |= {c: fresh() for c in born}
      alive += born
      continue
    dead = [c for c in alive if last[c] <= t]
    # Exact columns are overwritten in place; a clean direction is kept for attention, which cannot clear one.
    removed: list[Column] = []
    later = sum(c.born > t for c in columns)
    for c in born:
      old = next((d for d in dead if d.exact and d not in removed), None)
      if clean or old is None:
        dims[c] = fresh()
      else:
        removed.append(old)
        dims[c] = dims[old]
    for old in dead:
      if old not in removed and len(clean) < later:
        removed.append(old)
        clean.append(dims[old])
    alive = [c for c in alive if c not in removed] + born
    if removed:
      cleared[t] = removed
  return dims, next(unused), cleared
