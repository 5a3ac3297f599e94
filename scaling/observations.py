"""What laws are fitted to: runs under one convention of what counts as parameters N and as compute C."""

import dataclasses
from typing import Any

import numpy as np

from foundation.errors import ConfigError, nearest

PARAMETER_COUNTS = ('given', 'total', 'no_input', 'body')
COMPUTE_COUNTS = ('given', 'exact', '6nd')


def levels(column, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
  """(the least value of each level, the level of each value) of positive values; a level ends `tolerance` (relative)
  above its least value, so that no chain of small steps becomes one level."""
  order = np.argsort(column, kind='stable')
  ordered = np.asarray(column, float)[order]
  starts, label = [], np.empty(len(ordered), int)
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
class Observations:
  """Runs under one counting: N in parameters, D in tokens, loss in nats per token, C in FLOPs, each [rows]."""
  N: np.ndarray
  D: np.ndarray
  loss: np.ndarray
  C: np.ndarray
  U: np.ndarray | None = None
  K: np.ndarray | None = None
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
    columns = {'n': np.log(self.N), 'd': np.log(self.D)}
    if self.U is not None:
      columns['u'] = np.log(self.U)
    if self.K is not None:
      columns['k'] = np.log(self.K)
    return columns

  @property
  def y(self) -> np.ndarray:
    """ln loss."""
    return np.log(self.loss)

  def take(self, keep) -> 'Observations':
    """The rows of a mask or an index array."""
    index = np.arange(len(self))[keep]
    part: dict[str, Any] = {f.name: (None if getattr(self, f.name) is None else getattr(self, f.name)[index])
            for f in dataclasses.fields(self) if f.name not in ('rows', 'source')}
    return Observations(**part, rows=tuple(self.rows[i] for i in index) if self.rows else (), source=self.source)


def count_parameters(kind: str, total, embedding, head):
  """N of one convention (total, no_input or body: see Counting) from the counts of a result.json."""
  if kind == 'total':
    return total
  if kind == 'no_input':
    return total - np.where(np.asarray(head) > 0, embedding, 0)
  return total - embedding - head
