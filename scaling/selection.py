"""The best run of each cell: a law is one of well-tuned runs, so of a sweep of rates and batches the best are fitted.

A cell is the runs of nearly equal N, D, unique tokens and experts. Of its rates and batches the setting of the least
loss is kept, with all its runs: those are seeds. A rate that is not known is a setting of its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.columns import SELECTED, Column
from scaling.observations import Counting, Observations, levels

Runs = Any  # a table.Runs, whose module hands `best_rate` on
CELL = 0.01  # relative difference of N, D, ... within which runs are one cell


def cells(o: Observations) -> np.ndarray:
  """The cell of each row, a number."""
  columns = [column for column in (o.N, o.D, o.U, o.K) if column is not None]
  each = [levels(column, CELL)[1] for column in columns]
  each += [np.unique(values, return_inverse=True)[1] for values in o.more.values()]
  return np.unique(np.stack(each), axis=1, return_inverse=True)[1].ravel()


def settings(runs: Runs, reads: Sequence[Column] = ()) -> dict[str, np.ndarray]:
  """{name: values} of the rate and the batch, where the table has them, they differ and the law does not read them."""
  return {name: runs.numbers[name] for name in SELECTED if name in runs.numbers and len(np.unique(runs.numbers[name])) > 1
          and name not in [column.name for column in reads]}


def chosen(o: Observations, tuned: dict[str, np.ndarray]) -> np.ndarray:
  """Which rows have the best setting of their cell."""
  cell = cells(o)
  each = [np.unique(np.nan_to_num(values, nan=-1.0), return_inverse=True)[1] for values in tuned.values()]
  setting = np.unique(np.stack(each), axis=1, return_inverse=True)[1].ravel()
  order = np.lexsort((o.loss, cell))
  first = order[np.concatenate([[True], np.diff(cell[order]) > 0])]  # the least loss of each cell, by cell
  return setting == setting[first][cell]


def best_rate(runs: Runs, counting: Counting = Counting(), reads: Sequence[Column] = ()) -> Runs:
  """The rows at the best learning rate and batch of each cell that has several; other rows as they are.

  What was dropped is among the warnings. reads: columns that the law reads, which are not chosen over.
  """
  tuned = settings(runs, reads)
  if not tuned:
    return runs
  keep = chosen(runs.observe(counting, reads), tuned)
  if keep.all():
    return runs
  unknown = sum(np.isnan(values[keep]) for values in tuned.values()) > 0
  words = (f'selected: of {len(runs)} runs {int(keep.sum())} have the best {" and ".join(tuned)} of their cell and are '
           f'fitted, {int((~keep).sum())} are not')
  words += f'; {int(unknown.sum())} of the best have no {" or ".join(tuned)}' if unknown.any() else ''
  return dataclasses.replace(runs.take(keep), warnings=(*runs.warnings, words))
