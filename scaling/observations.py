"""What laws are fitted to: runs under one convention of what counts as parameters N and as compute C."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from foundation.errors import ConfigError, nearest
from scaling.columns import Column

PARAMETER_COUNTS = ('given', 'total', 'no_input', 'body')
COMPUTE_COUNTS = ('given', 'exact', '6nd')


LARGE = 20_000  # rows from which starts are found on a part of them, and intervals are those of the normal limit


def levels(column, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
  """(the least value of each level, the level of each value) of positive values; a level ends `tolerance` (relative)
  above its least value, so that no chain of small steps becomes one level."""
  order = np.argsort(column, kind='stable')
  ordered = np.asarray(column, float)[order]
  starts: list[float] = []
  label = np.empty(len(ordered), int)
  at = 0
  while at < len(ordered):
    end = int(np.searchsorted(ordered, ordered[at] * (1.0 + tolerance), 'right'))
    label[order[at:end]] = len(starts)
    starts.append(ordered[at])
    at = max(end, at + 1)
  return np.array(starts), label


@dataclasses.dataclass(frozen=True)
class Counting:
  """What N and C mean.

  parameters: given (column N) | total | no_input (total less an input embedding that does no multiplication; a tied
  one, with params_head 0, is the output head as well, and stays) | body (total less embedding and head). compute: given
  (column C) | exact (flops_train_exact) | 6nd (6 N D with that N).
  An empty string picks the first that the table can give, in the orders given, no_input, total and given, exact, 6nd.
  """
  parameters: str = ''
  compute: str = ''

  def __post_init__(self):
    for value, choices, name in ((self.parameters, PARAMETER_COUNTS, 'parameters'),
                                 (self.compute, COMPUTE_COUNTS, 'compute')):
      if value and value not in choices:
        raise ConfigError(f'counting {name}={value!r} is not one of {", ".join(choices)}{nearest(value, choices)}')


@dataclasses.dataclass(frozen=True)
class Convention:
  """What C means in a table: C = k N D FLOPs. k: 6 by the usual count, more where attention or a head is counted.

  low, high: least and greatest C/(N D) of the runs.
  """
  k: float = 6.0
  low: float = 6.0
  high: float = 6.0

  def __str__(self) -> str:
    range_ = f' (the runs: {self.low:.4g} to {self.high:.4g})' if self.high > 1.02 * self.low else ''
    return f'C = {self.k:.4g} N D{range_}'


@dataclasses.dataclass(frozen=True)
class Observations:
  """Runs under one counting: N in parameters, D in tokens, loss in nats per token, C in FLOPs, each [rows]."""
  N: np.ndarray
  D: np.ndarray
  loss: np.ndarray
  C: np.ndarray
  U: np.ndarray | None = None
  K: np.ndarray | None = None
  weights: np.ndarray | None = None  # of the rows in an objective
  more: Mapping[Column, np.ndarray] = dataclasses.field(default_factory=dict)  # what else a law reads
  rows: tuple[str, ...] = ()  # how messages name each row
  source: str = 'memory'

  @classmethod
  def of(cls, N, D, loss, C=None, **columns) -> 'Observations':
    """From plain arrays; C is 6 N D unless given."""
    N, D, loss = (np.asarray(v, float) for v in (N, D, loss))
    return cls(N, D, loss, 6.0 * N * D if C is None else np.asarray(C, float),
               rows=tuple(f'row {i + 1}' for i in range(len(N))), **columns)

  def __len__(self) -> int:
    return len(self.N)

  @property
  def x(self) -> dict[str, np.ndarray]:
    """Log columns as laws read them."""
    columns = {'n': np.log(self.N), 'd': np.log(self.D), 'c': np.log(self.C)}
    if self.U is not None:
      columns['u'] = np.log(self.U)
    if self.K is not None:
      columns['k'] = np.log(self.K)
    return columns | {column.key: column.of(values) for column, values in self.more.items()}

  @property
  def convention(self) -> Convention:
    """C as k N D: the median k of the quarter of the runs with most compute, those next to what is planned."""
    k = self.C / (self.N * self.D)
    most = np.argsort(self.C)[-max(len(k) // 4, 1):]
    return Convention(float(np.median(k[most])), float(k.min()), float(k.max()))

  @property
  def y(self) -> np.ndarray:
    """ln loss."""
    return np.log(self.loss)

  def take(self, keep) -> 'Observations':
    """The rows of a mask or an index array."""
    index = np.arange(len(self))[keep]
    part: dict[str, Any] = {f.name: (None if getattr(self, f.name) is None else getattr(self, f.name)[index])
            for f in dataclasses.fields(self) if f.name not in ('rows', 'source', 'more')}
    more = {column: values[index] for column, values in self.more.items()}
    return Observations(**part, more=more, rows=tuple(self.rows[i] for i in index) if self.rows else (), source=self.source)


def count_parameters(kind: str, total, embedding, head):
  """N of one convention (total, no_input or body: see Counting) from the counts of a result.json."""
  if kind == 'total':
    return total
  if kind == 'no_input':
    return total - np.where(np.asarray(head) > 0, embedding, 0)
  return total - embedding - head
