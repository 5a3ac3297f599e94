"""What a compiled program can lose, proven for its longest input: leaks of attention, ramps, rounding.

Scores are sums of whole numbers below 2^24 and carry no error. A head loses what keys below the gap weigh, N e^-gap,
and the rounding of a softmax and a mean, (N + 8) u of the largest value. A count reads w e^level / (w + e^level), which
is short of w by w^2 e^-level. A step has one ramp a gap, over its middle third, so that an input error below a third
of the gap changes nothing. Its units are multiples of one power of two q, which makes their sum exact in any order: the
rows of the first matrix hold 2^m, so that every product is rounded to q = 2^(m - 23) alike, and 2^24 q exceeds all
sums.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from rasp.compiling import readout
from rasp.compiling.circuit import Gate, Head, Reading, Refused, Slot, Step
from rasp.compiling.schedule import Column, Plan

BITS = {'float32': 24, 'bfloat16': 8}
RAMPS = 2000  # more in one step cost more than another layer
WANTED = 1e-3  # the largest error of an output that is still called right


@dataclasses.dataclass(frozen=True)
class Ramp:
  """One change of a step: between two levels, at slope 3 / gap, starting after a third of the gap."""
  low: float
  gap: float
  before: int
  after: int


@dataclasses.dataclass(frozen=True)
class Offset:
  """The exponent m that puts every product of a step in one binade, and the quantum of its units."""
  m: int
  quantum: float


def closing(gate: Gate) -> float:
  """What a closed gate takes from its value, a power of two that exceeds it."""
  return 2.0 ** math.ceil(math.log2(gate.high - gate.low + 1))


def ramps(step: Step) -> list[Ramp]:
  """Where the step's value changes."""
  at: Any = np.flatnonzero(np.diff(step.places))
  return [Ramp(float(step.levels[i]), float(step.levels[i + 1] - step.levels[i]), int(step.places[i]),
               int(step.places[i + 1])) for i in at]


def offset(step: Step, columns: list[Column]) -> Offset:
  """The smallest m for which all sums of the step's units are exact."""
  low, high = float(step.levels[0]), float(step.levels[-1])
  found = ramps(step)
  slopes = np.array([3.0 / r.gap for r in found])
  most = max([8.0, *(slopes * (high - low) + 4)])
  reach = 2 * (slopes * np.maximum(0.0, high - np.array([r.low for r in found])) + 2)
  before, after = np.array([r.before for r in found], int), np.array([r.after for r in found], int)
  total = [float(np.abs(c.vector[after] - c.vector[before]) @ reach) for c in columns]
  m = max(math.ceil(math.log2(most)), math.ceil(math.log2(max([1.0, *total]))) - 1)
  return Offset(m, 2.0 ** (m - 23))


def prove(plan: Plan, dtype: str = 'float32') -> float:
  """The largest error that the output can have on any input of up to the longest. Raises Refused if a margin fails."""
  bits, longest = BITS[dtype], plan.circuit.longest
  u = 2.0**-bits
  errors: dict[Any, float] = {}  # of slots
  def error(reading: Reading) -> float:
    parts, const = plan.expand(reading)
    low, high = plan.range(reading)
    rounded = not all(c.exact and a == round(a) and c.whole for c, a in parts.items()) or const != round(const)
    return sum(abs(a) * (errors.get(c.source, 0.0) + c.lost + (0.0 if readout.held(c.values, bits) else u * c.largest))
               for c, a in parts.items()) + (
        (len(parts) + 2) * u * (max(abs(low), abs(high)) + sum(abs(a) * c.largest for c, a in parts.items()))
        if rounded else 0.0)
  items: list[Head | Step | Gate] = [*plan.circuit.heads, *plan.circuit.steps, *plan.circuit.gates]
  for item in sorted(items, key=lambda item: item.time):
    if isinstance(item, Head):
      _check_scores(plan, item, bits)
      for slot in item.slots:
        most = max(map(abs, plan.range(slot.value)))
        errors[slot] = _slot_error(item, slot, longest, u, most) + error(slot.value) * (
            longest if item.mode == 'count' else 1)
    elif isinstance(item, Gate):
      parts, _ = plan.expand(item.on)
      if any(not c.exact or c.lost or not c.whole for c in parts):
        raise Refused(f'the condition of {item.node!r} is known nearly only')
      largest = 2 * (max(map(abs, plan.range(item.value))) + abs(item.low) + 2 * closing(item))
      errors[item] = error(item.value) + (len(plan.expand(item.value)[0]) + len(parts) + 4) * u * largest
    else:
      _check_step(plan, item, error(item.z), bits)
  output, lost = plan.circuit.output, 0.0
  if output.number is not None:
    lost, largest = error(output.number), max(map(abs, plan.range(output.number)))
    if lost > WANTED * largest:
      raise Refused(f'the output is known to {lost:.2g} only, worse than {WANTED:g} of its largest value {largest:.3g}',
                    readout=True)
  digits = [error(r) for r in output.digits]
  readout.prove(plan, digits, bits)
  return max([lost, *digits])


def _slot_error(head: Head, slot: Slot, longest: int, u: float, most: float) -> float:
  rounding = (longest + 8) * u
  if head.mode == 'count':
    w = float(longest)
    return most * (w * w * math.exp(-head.level) + w * (rounding + 4 * u) + w * math.exp(-head.gap))
  spread = slot.high - slot.low
  return (longest + 1) * math.exp(-head.margin) * spread + rounding * max(abs(slot.low), abs(slot.high))


def _check_scores(plan: Plan, head: Head, bits: int) -> None:
  most: float = abs(head.level) + head.gap * (head.bias is not None)
  for q, k in head.scores:
    for r in (q, k):
      parts, const = plan.expand(r)
      if any(not c.exact or c.lost or a != round(a) or not c.whole for c, a in parts.items()) or const != round(const):
        raise Refused(f'the scores of {head.node!r} are no whole numbers')
      if max(map(abs, plan.range(r))) > 2**bits:
        raise Refused(f'the scores of {head.node!r} need whole numbers up to {max(map(abs, plan.range(r))):.0f}, more '
                      f'than {bits} bits')
    most += max(map(abs, plan.range(q))) * max(map(abs, plan.range(k)))
  if most > 2**24:
    raise Refused(f'the scores of {head.node!r} reach {most:.0f}; above 2^24 float32 rounds them')


def _check_step(plan: Plan, step: Step, error: float, bits: int) -> None:
  columns, count = plan.written_by(step), int(np.count_nonzero(np.diff(step.places)))
  if not count:
    return
  if count > RAMPS:
    raise Refused(f'{step.node!r} needs {count} ramps, more than {RAMPS}', step, count)
  o = offset(step, columns)
  q = 2.0 ** (o.m - bits + 1)
  parts, _ = plan.expand(step.z)
  if (len(parts) + 3) * q > 0.375:
    raise Refused(f'{step.node!r} needs {len(ramps(step))} ramps with units up to 2^{o.m}, which {bits} bits do not '
                  'hold apart', step, len(ramps(step)))
  for r in ramps(step):
    slope = 3.0 / r.gap
    if slope * error > 0.375:
      raise Refused(f'{step.node!r} tells {r.gap:.3g} apart, but its input is known to {error:.3g} only',
                    step)
  for c in columns:
    if (c.vector != c.vector.round()).any():
      raise Refused(f'{step.node!r} gives values that are no whole multiples of one number')
