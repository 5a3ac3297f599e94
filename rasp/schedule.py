"""Layers, columns of the residual stream, and when a column's direction may be used again.

Every head and every step already stands at its earliest half-layer, which is the longest path to it: heads and units of
one layer are unlimited, so no schedule is shallower. What is left is the width. A column lives from the half-layer that
writes it to the last one that reads it; then a feed-forward layer may overwrite it (two units hold the old value and
subtract it), so that the width is the largest number of columns alive at once, not their sum.
"""

import dataclasses
from typing import Any

import numpy as np

from rasp.encode import Encoder
from rasp.parts import Head, Reading, Slot, Step


@dataclasses.dataclass(eq=False)
class Column:
  """A direction of the residual stream for a time.

  vector: its value for every value of its table; None for a slot and for the two constants. at_bos: its value at the
  first token. A column is exact if it holds whole numbers without error.
  """
  source: Any  # Table, Slot, 'one' or 'bos'
  vector: np.ndarray | None
  born: int
  at_bos: float = 0.0
  last: int = -1
  dim: int = -1

  @property
  def exact(self) -> bool:
    return not isinstance(self.source, Slot)


@dataclasses.dataclass(eq=False)
class Plan:
  """Columns with their dimensions, and per layer what is cleared: {half-layer: columns whose old value is removed}."""
  heads: list[Head]
  steps: list[Step]
  columns: list[Column]
  one: Column
  bos: Column
  layers: int
  width: int
  cleared: dict[int, list[Column]]
  output: Reading
  _map: dict[Any, list[tuple[Column, float]]]
  _const: dict[Any, float]

  def expand(self, r: Reading) -> tuple[dict[Column, float], float]:
    """A reading as coefficients of columns and a constant."""
    out: dict[Column, float] = {}
    const = r.const
    for part, k in r.parts.items():
      const += k * self._const[part]
      for column, a in self._map[part]:
        out[column] = out.get(column, 0.0) + k * a
    return {c: a for c, a in out.items() if a}, const

  def at_bos(self, r: Reading) -> float:
    """A reading's value at the first token."""
    parts, const = self.expand(r)
    return const + sum(a * c.at_bos for c, a in parts.items())

  def range(self, r: Reading) -> tuple[float, float]:
    """Least and greatest value of a reading, BOS included."""
    parts, low = self.expand(r)
    high = low
    for c, a in parts.items():
      values = [c.at_bos] + (c.vector.tolist() if c.vector is not None else
                             [c.source.low, c.source.high] if isinstance(c.source, Slot) else [1.0, 0.0])
      low, high = low + min(a * v for v in values), high + max(a * v for v in values)
    return low, high


def primitive(vector: np.ndarray) -> tuple[np.ndarray, float, float]:
  """(column, a, b) with vector = a * column + b; equal columns for vectors that differ by scale and constant."""
  b = float(vector[0])
  column = vector - b
  a = float(column[np.flatnonzero(column)[0]]) if column.any() else 1.0
  if (column == column.round()).all():
    a = float(np.gcd.reduce(column.astype(np.int64))) * (1 if a > 0 else -1)
  return column / a, a, b


def plan(encoder: Encoder, output: Reading) -> Plan:
  """Columns for every feature that is read, and a dimension for each."""
  columns, mapping, consts = [], {}, {}
  one, bos = Column('one', None, -1, 1.0), Column('bos', None, -1, 1.0)
  for table in [encoder.token, encoder.index, *(t for t in encoder._tables.values())]:
    lowest = table.step.places[0] if table.step else None
    made: dict[bytes, Column] = {}
    split = [(f, *primitive(f.vector)) for f in table.features.values()]
    distinct = {c.tobytes() for _, c, _, _ in split}
    onehot = len(distinct) >= table.size
    def column(vector):
      at = vector.tobytes()
      if at not in made:
        made[at] = Column(table, vector, table.time, float(vector[lowest]) if table.step else 0.0)
        columns.append(made[at])
      return made[at]
    for f, c, a, b in split:
      if onehot:
        mapping[f] = [(column(np.eye(table.size)[i]), float(f.vector[i] - f.vector[0])) for i in range(1, table.size)
                      if f.vector[i] != f.vector[0]]
      else:
        mapping[f] = [(column(c), a)] if c.any() else []
      consts[f] = b
  for head in encoder.heads:
    for slot in head.slots:
      columns.append(Column(slot, None, head.time, slot.sink))
      mapping[slot], consts[slot] = [(columns[-1], 1.0)], 0.0
  last = max([h.time for h in encoder.heads] + [s.time for s in encoder.steps] + [0])
  layers = last // 2 + 1
  p = Plan(encoder.heads, encoder.steps, columns, one, bos, layers, 0, {}, output, mapping, consts)

  def read(r: Reading, at: int):
    for c in p.expand(r)[0]:
      c.last = max(c.last, at)
  for head in encoder.heads:
    for r in [head.at_bos, *(x for pair in head.scores for x in pair), *(s.value for s in head.slots)]:
      read(r, head.time)
  for step in encoder.steps:
    read(step.z, step.time)
  read(output, 2 * layers)
  one.last = bos.last = 2 * layers
  p.columns = [one] + ([bos] if encoder.heads or encoder.steps else []) + [c for c in columns if c.last >= 0]
  allocate(p)
  return p


def allocate(p: Plan) -> None:
  """Gives every column a dimension; sets p.width and p.cleared."""
  clean: list[int] = []
  width = 0
  def fresh() -> int:
    nonlocal width
    if clean:
      return clean.pop(0)
    width += 1
    return width - 1
  alive: list[Column] = []
  for c in p.columns:
    if c.born == -1:
      c.dim = fresh()
      alive.append(c)
  for t in range(2 * p.layers):
    born = [c for c in p.columns if c.born == t]
    if t % 2 == 0:  # attention adds to its columns, so they must be 0
      for c in born:
        c.dim = fresh()
        alive.append(c)
      continue
    dead = [c for c in alive if c.last <= t]
    # Exact columns are overwritten in place; a clean direction is kept for attention, which cannot clear one.
    later = [c for c in p.columns if c.born == t + 1]
    cleared = []
    for c in born:
      old = next((d for d in dead if d.exact and d not in cleared), None)
      if clean or old is None:
        c.dim = fresh()
      else:
        cleared.append(old)
        c.dim = old.dim
      alive.append(c)
    for old in dead:
      if old not in cleared and len(clean) < len(later) + sum(x.born > t + 1 for x in p.columns):
        cleared.append(old)
        clean.append(old.dim)
    for old in cleared:
      alive.remove(old)
    if cleared:
      p.cleared[t] = cleared
  p.width = width
