"""The circuit of compiled weights, as interpretability methods are asked to find it; it is saved with them.

Which variable lives in which direction of the residual stream and when, which heads and units compute which s-op, and
what each of them reads. Half-layers count time, as in circuit.py.
"""

import dataclasses
from typing import Any

from rasp.compiling import bound
from rasp.compiling.circuit import Gate, Slot, Step
from rasp.compiling.schedule import Column, Plan


@dataclasses.dataclass(frozen=True)
class Variable:
  """A direction that holds a number of an s-op (`of`: a part's name, tokens or indices) from half-layer `born` until
  half-layer `cleared` writes something else there; None: to the end. vector: its number for every value of the s-op,
  in their order; None: the number that a head or a gate brings."""
  of: str
  dim: int
  born: int
  cleared: int | None
  vector: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Part:
  """A head, or the units of a feed-forward layer, that computes an s-op. name: the s-op's, and #2, .. where several
  parts compute it. numbers: the head's, or the units', from 0."""
  name: str
  sop: str
  kind: str  # 'head' or 'units'
  layer: int
  numbers: tuple[int, ...]
  reads: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Wiring:
  """variables, parts in the order of their layers, and what the output reads."""
  variables: tuple[Variable, ...]
  parts: tuple[Part, ...]
  output: tuple[str, ...]

  @property
  def edges(self) -> list[tuple[str, str]]:
    """(from, to): names of parts, tokens, indices and `output`."""
    return [(name, part.name) for part in self.parts for name in part.reads] + [
        (name, 'output') for name in self.output]

  def part(self, name: str) -> Part:
    """The part of a name. Raises KeyError that lists them."""
    found = {part.name: part for part in self.parts}
    if name not in found:
      raise KeyError(f"no part '{name}'; expected one of {', '.join(found)}")
    return found[name]


def wiring(plan: Plan) -> Wiring:
  """The wiring of a plan, as `emit` writes it."""
  names = _names(plan)
  def source(c: Column) -> str | None:
    return {'one': None, 'bos': None, 'token': 'tokens', 'index': 'indices'}[c.source] if isinstance(
        c.source, str) else names[c.source]
  def reads(*readings: Any) -> tuple[str, ...]:
    return tuple(sorted({name for r in readings if r is not None for c in plan.expand(r)[0] if (name := source(c))}))
  cleared = {c: time for time, columns in plan.cleared.items() for c in columns}
  variables = tuple(Variable(name, plan.dims[c], c.born, cleared.get(c), None if c.vector is None else tuple(
      c.vector.tolist())) for c in plan.columns if (name := source(c)))
  parts = []
  for layer in range(plan.layers):
    for number, head in enumerate(h for h in plan.circuit.heads if h.time == 2 * layer):
      parts.append(Part(names[head], repr(head.node), 'head', layer, (number,), reads(
          head.at_bos, *(r for pair in head.scores for r in pair), *(s.value for s in head.slots))))
    for item, first, last in units(plan, layer):
      parts.append(Part(names[item], repr(item.node), 'units', layer, tuple(range(first, last)), reads(
          *((item.value, item.on) if isinstance(item, Gate) else (item.z,)))))
  output = plan.circuit.output
  return Wiring(variables, tuple(parts), reads(output.number, *output.digits))


def clearing(plan: Plan, layer: int) -> int:
  """How many units of a layer remove old values, before those of its steps."""
  return sum(len(signs(c)) for c in plan.cleared.get(2 * layer + 1, ()))


def signs(c: Column) -> tuple[int, ...]:
  """Of the units that hold a column's value: one is enough for what is never negative."""
  return (1,) if c.vector is not None and c.vector.min() >= 0 and c.at_bos >= 0 else (1, -1)


def units(plan: Plan, layer: int) -> list[tuple[Step | Gate, int, int]]:
  """(step or gate, its first unit, the one after its last) of a layer, in the order in which they are written."""
  out: list[tuple[Step | Gate, int, int]] = []
  unit = clearing(plan, layer)
  for step in (s for s in plan.circuit.steps if s.time == 2 * layer + 1):
    out.append((step, unit, unit + 2 * len(bound.ramps(step))))
    unit = out[-1][2]
  for gate in (g for g in plan.circuit.gates if g.time == 2 * layer + 1):
    out.append((gate, unit, unit + 1))
    unit += 1
  return out


def _names(plan: Plan) -> dict[Any, str]:
  """A name for each head, step and gate: its s-op's, with a number where that is taken; slots have their head's."""
  names: dict[Any, str] = {}
  taken: dict[str, int] = {}
  items: list[Any] = [*plan.circuit.heads, *plan.circuit.steps, *plan.circuit.gates]
  for item in sorted(items, key=lambda item: item.time):
    name = repr(item.node)
    taken[name] = taken.get(name, 0) + 1
    names[item] = name if taken[name] == 1 else f'{name}#{taken[name]}'
    slots: tuple[Slot, ...] = getattr(item, 'slots', ())
    names |= {slot: names[item] for slot in slots}
  return names
