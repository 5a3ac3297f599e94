"""How the output is said: the head that picks the nearest codes, what it picks them from, and the proof that it does.

A token with codes c has the logit sum of 2 c y - c^2 over the digits y, which is greatest at the codes nearest to y: by
the square of their distance. Float32 holds the terms of codes up to a few thousands without rounding; larger ones are
said in several digits. A number that is not listed is logit 0 itself.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from rasp.compiling.circuit import Output, Refused
from rasp.compiling.schedule import Plan
from rasp.language import Value

NO_OUTPUT = -4.0  # the logit of a token that is no output: the nearest codes have at least about 0


@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
  """What the last hidden state x says, before the head picks: x @ weights + const, the number first if there is one.

  codes, unlisted: as in Output.
  """
  weights: np.ndarray
  const: np.ndarray
  number: bool
  codes: dict[Value, tuple[float, ...]]
  unlisted: tuple[float, ...] | None = None

  def errors(self, hidden_LxD: np.ndarray, exact: Sequence[Value]) -> np.ndarray:
    """The largest distance from what should be said, at each of L positions."""
    read = np.asarray(hidden_LxD, np.float64) @ self.weights + self.const
    out = np.zeros(len(exact))
    for row, value in enumerate(exact):
      listed = value in self.codes and not (self.unlisted and isinstance(value, (int, float)))
      codes: Any = self.codes[value] if listed else self.unlisted or ()
      wanted = [*([0.0 if listed else float(value)] if self.number else []), *codes]
      distance = np.abs(read[row] - wanted)
      out[row] = distance[int(self.number and listed):].max()
    return out


def readout(plan: Plan) -> Readout:
  """The readings of a plan's output as linear maps of the last hidden state."""
  output = plan.circuit.output
  readings = [r for r in (output.number, *output.digits) if r is not None]
  weights, const = np.zeros((plan.width, len(readings))), np.zeros(len(readings))
  for k, r in enumerate(readings):
    columns, const[k] = plan.expand(r)
    for c, a in columns.items():
      weights[plan.dims[c], k] = a
  return Readout(weights, const, output.number is not None, output.codes, output.unlisted)


def _middles(output: Output) -> np.ndarray:
  """A whole number in the middle of each digit's codes, which keeps their squares small."""
  codes = _codes(output)
  return np.round((codes.min(0) + codes.max(0)) / 2)


def _codes(output: Output) -> np.ndarray:
  return np.array([*output.codes.values(), *([output.unlisted] if output.unlisted else [])])


def write(plan: Plan, head: np.ndarray, outputs: dict[int, tuple[float, ...]]) -> None:
  """The rows of the head. `outputs`: token id -> its codes."""
  output = plan.circuit.output
  if outputs:
    head[:, plan.one] = NO_OUTPUT
    expanded, middles = [plan.expand(r) for r in output.digits], _middles(output)
  for token, codes in outputs.items():
    head[token] = 0
    for (columns, const), code, middle in zip(expanded, codes, middles):
      code -= middle
      for c, a in columns.items():
        head[token, plan.dims[c]] += 2 * code * a
      head[token, plan.one] += 2 * code * (const - middle) - code * code
  if output.number is not None:
    columns, const = plan.expand(output.number)
    head[0] = 0
    for c, a in columns.items():
      head[0, plan.dims[c]] = a
    head[0, plan.one] += const


def prove(plan: Plan, errors: Sequence[float], bits: int) -> None:
  """Raises Refused where the digits, known to `errors`, could be taken for another value's: for codes c and d the
  logits differ by (c - d)^2 less 2 |c - d| times the error, which must exceed what rounding changes of both."""
  output = plan.circuit.output
  if not output.digits:
    return
  codes = _codes(output)
  margin = np.inf
  for k, lost in enumerate(errors):
    values = np.unique(codes[:, k])
    if len(values) > 1:
      gap = np.diff(values).min()
      margin = min(margin, gap * (gap - 2 * lost))
  rounding = _rounding(plan, codes, bits)
  if margin <= 2 * rounding:
    raise Refused(f'the output has {len(codes)} values, whose logits differ by {max(margin, 0):.2g} where rounding may '
                  f'change {2 * rounding:.2g}', readout=True)


def _rounding(plan: Plan, codes: np.ndarray, bits: int) -> float:
  """What rounding may change of one logit; nothing where every term is whole and sums stay below 2^24."""
  output, middles = plan.circuit.output, _middles(plan.circuit.output)
  largest, terms, whole = np.zeros(len(codes)), 1, True
  const = np.zeros(len(codes))
  columns: dict[Any, np.ndarray] = {}
  for k, (r, middle) in enumerate(zip(output.digits, middles)):
    parts, constant = plan.expand(r)
    code = codes[:, k] - middle
    for c, a in parts.items():
      columns[c] = columns.get(c, 0.0) + 2 * code * a
      whole = whole and c.exact and c.whole
    const += 2 * code * (constant - middle) - code * code
  for c, weights in columns.items():
    largest += np.abs(weights) * c.largest
    terms += 1
    whole = whole and bool((weights == np.round(weights)).all())
  largest += np.abs(const)
  if bits < 24 and not all(held(w, bits) for w in [*columns.values(), const]):
    raise Refused(f'the head needs weights that {bits} bits do not hold', readout=True)
  if whole and (const == np.round(const)).all() and largest.max() <= 2**24:
    return 0.0
  return float((terms + 2) * 2.0**-24 * largest.max())


def held(numbers: np.ndarray, bits: int) -> bool:
  """Whether numbers of this many bits hold these without rounding."""
  mantissa, _ = np.frexp(np.asarray(numbers, np.float64))
  scaled = mantissa * 2.0**bits
  return bool((scaled == np.round(scaled)).all())

