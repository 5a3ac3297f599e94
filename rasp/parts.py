"""What a compiled program is made of before it has dimensions: features, heads and steps, and how they are read."""

import dataclasses
from typing import Any

import numpy as np

from rasp.language import SOp


@dataclasses.dataclass(eq=False)
class Table:
  """Values number 0 .. of the token, of the index, or of a step; `columns` are the features asked of it."""
  kind: str  # token | index | step
  size: int
  time: int = -1  # half-layer that writes it: attention of layer l is 2 l, feed-forward 2 l + 1, the embedding -1
  step: 'Step | None' = None
  features: dict[bytes, 'Feature'] = dataclasses.field(default_factory=dict)

  def feature(self, vector: np.ndarray) -> 'Feature':
    vector = np.asarray(vector, np.float64)
    return self.features.setdefault(vector.tobytes(), Feature(self, vector))


@dataclasses.dataclass(eq=False)
class Feature:
  """A number for every value of a table."""
  table: Table
  vector: np.ndarray

  @property
  def time(self) -> int:
    return self.table.time


@dataclasses.dataclass(eq=False)
class Slot:
  """One number that a head brings, and the column it is written to. At the first token, BOS, its value is `sink`."""
  head: 'Head'
  value: 'Reading'
  sink: float
  low: float
  high: float

  @property
  def time(self) -> int:
    return self.head.time


@dataclasses.dataclass
class Reading:
  """A linear map of features and slots."""
  parts: dict[Any, float] = dataclasses.field(default_factory=dict)
  const: float = 0.0

  @property
  def time(self) -> int:
    return max((p.time for p in self.parts), default=-1)

  def __add__(self, other: 'Reading') -> 'Reading':
    parts = dict(self.parts)
    for p, k in other.parts.items():
      parts[p] = parts.get(p, 0.0) + k
    return Reading({p: k for p, k in parts.items() if k}, self.const + other.const)

  def __mul__(self, scale: float) -> 'Reading':
    return Reading({p: k * scale for p, k in self.parts.items()} if scale else {}, self.const * scale)

  def __rmul__(self, scale: float) -> 'Reading':
    return self * scale


@dataclasses.dataclass(eq=False)
class Head:
  """softmax(sum of query * key + bias of the distance) over BOS and the tokens, of each slot's value.

  mode is count (BOS outweighs a match by e^level: the weight off BOS is nearly proportional to the number of matches),
  sink (BOS is read where nothing matches) or total (something always matches). A match scores 0, or the same for all
  matches of a query; anything else is lower by `gap`; BOS scores `level`.
  """
  node: SOp
  mode: str
  time: int
  gap: int = 0
  level: int = 0
  margin: int = 0  # least difference of scores between what is read and what is not
  scores: list[tuple[Reading, Reading]] = dataclasses.field(default_factory=list)
  bias: np.ndarray | None = None  # of distances -R .. R
  at_bos: Reading = dataclasses.field(default_factory=Reading)  # added to the level
  slots: list[Slot] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Step:
  """A function of a number z, constant around each of its `levels`: value number `places[k]` at levels[k]."""
  node: SOp
  z: Reading
  levels: np.ndarray
  places: np.ndarray
  time: int
