"""The circuit: a program as heads and steps that read features, before anything has a direction of its own.

The encoding pass makes it, scheduling gives it layers and directions, the proof bounds its errors, and emitting writes
it as weights. Half-layers count time: attention of layer l is 2 l, feed-forward 2 l + 1, the embedding -1.
"""

import dataclasses

import numpy as np

from rasp.language import SOp, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Feature:
  """A number for every value of one table, which whatever comes later in time may read."""
  vector: np.ndarray
  time: int


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
  """One number that a head brings: the mean of `value`, between low and high. At the first token, BOS, it is `sink`."""
  value: 'Reading'
  sink: float
  low: float
  high: float
  time: int


@dataclasses.dataclass(frozen=True)
class Reading:
  """A linear map of features and slots: all that a head, a step or the output can read at no cost."""
  parts: tuple[tuple[Feature | Slot, float], ...] = ()
  const: float = 0.0

  @property
  def time(self) -> int:
    return max((part.time for part, _ in self.parts), default=-1)

  def __add__(self, other: 'Reading') -> 'Reading':
    parts = dict(self.parts)
    for part, k in other.parts:
      parts[part] = parts.get(part, 0.0) + k
    return Reading(tuple((part, k) for part, k in parts.items() if k), self.const + other.const)

  def __mul__(self, scale: float) -> 'Reading':
    return Reading(tuple((part, k * scale) for part, k in self.parts) if scale else (), self.const * scale)

  __rmul__ = __mul__


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
  """softmax(sum of query * key + bias of the distance) over BOS and the tokens, of each slot's value.

  mode is count (BOS outweighs a match by e^level: the weight off BOS is nearly proportional to the number of matches),
  sink (BOS is read where nothing matches) or total (something always matches). A match scores 0, or the same for all
  matches of a query; anything else is lower by `gap`; BOS scores `level`.
  """
  node: SOp
  mode: str
  time: int
  gap: int
  level: int
  margin: int  # least difference of scores between what is read and what is not
  scores: tuple[tuple[Reading, Reading], ...]
  bias: np.ndarray | None  # of distances -R .. R
  at_bos: Reading  # added to the level
  slots: tuple[Slot, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Gate(Slot):
  """`value` where `on` is 1, and 0 where it is 0: one unit of a feed-forward layer, which needs no list of values."""
  node: SOp
  on: Reading


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """A function of a number z, constant around each of its `levels`: value number `places[k]` at levels[k]."""
  node: SOp
  z: Reading
  levels: np.ndarray
  places: np.ndarray
  time: int


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """What is known of the token ('token'), the index ('index') or a step's value: features of its `size` values."""
  source: 'Step | str'
  size: int
  features: tuple[Feature, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
  """What the last hidden state says: one of listed values, told apart by codes; a number as it is; or either.

  number: the program's number where it gives one that is not listed. digits: readings that tell the listed values
  apart, each by whole codes. codes: of each listed value, a code a digit. unlisted: the codes that mean the number.
  """
  number: Reading | None
  digits: tuple[Reading, ...] = ()
  codes: dict[Value, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  unlisted: tuple[float, ...] | None = None


class Refused(ValueError):
  """The reason why no proof was found, the step that it is about, and its ramps if they are too many.

  readout: whether what failed is telling the output's codes apart.
  """

  def __init__(self, reason: str, step: Step | None = None, ramps: int = 0, readout: bool = False):
    super().__init__(reason)
    self.step, self.ramps, self.readout = step, ramps, readout


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
  """A whole program: what it computes on the way, and what is said of it."""
  heads: tuple[Head, ...]
  steps: tuple[Step, ...]
  gates: tuple[Gate, ...]
  tables: tuple[Table, ...]  # of the token, of the index, then of each step
  output: Output
  longest: int
  causal: bool
