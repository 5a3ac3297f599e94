"""Tables of finished runs: read, checked cell by cell, kept raw; what counts as N and C is chosen when they are used.

A table is what `readers` reads, with named columns. Errors are one line that names the row and the value, what was
expected and the nearest valid choice.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from foundation.errors import ConfigError, nearest
from foundation.printable import printable
from scaling import readers
from scaling.columns import KNOWN, Column
from scaling.observations import Counting, Observations, count_parameters
from scaling.selection import best_rate
from scaling.where import where

__all__ = ['NAMES', 'Runs', 'TableError', 'UNITS', 'best_rate', 'joined', 'parse_assignments', 'read']

TableError = ConfigError  # under the name that sweeps know

# standard name: the other headers under which it is found
NAMES = {'loss': ('loss_nats_per_token', 'val_loss', 'eval_loss', 'final_loss'),
         **{column.name: column.headers for column in KNOWN.values()}}
REQUIRED = ('N', 'D', 'loss')
GUESSED = ('N', 'D', 'loss', 'C', 'U', 'K')  # two headers that could be one of these are refused
PREFIXES = ('summary', 'config', 'params', 'metrics', 'param', 'metric')  # of the exports of experiment trackers
COUNTS = {'1': 1.0, 'thousands': 1e3, 'millions': 1e6, 'billions': 1e9, 'trillions': 1e12, 'log10': None}
UNITS: dict[str, dict[str, Any]] = {
    'N': COUNTS, 'D': COUNTS, 'U': COUNTS, 'batch': COUNTS,
    'C': {'flop': 1.0, 'pflop_days': 8.64e19, 'exaflop': 1e18, 'log10': None},
    'loss': {'nats': 1.0, 'bits': math.log(2.0), 'perplexity': None},
}
SUFFIX = {'k': 1e3, 'm': 1e6, 'b': 1e9, 't': 1e12}
FLAGS = {'true': '1', 'false': '0'}


@dataclasses.dataclass(frozen=True)
class Runs:
  """A table as read: numbers under standard or own names (NaN where a cell is empty), texts apart, row names.

  by_position: loss_by_position of every run, nats [runs, window], NaN where nothing was scored; None if runs lack it or
  differ in their window.
  """
  numbers: Mapping[str, np.ndarray]
  texts: Mapping[str, tuple[str, ...]]
  rows: tuple[str, ...]
  source: str
  warnings: tuple[str, ...] = ()
  by_position: np.ndarray | None = None
  weights: np.ndarray | None = None  # of the rows in an objective

  def __len__(self) -> int:
    return len(self.rows)

  def take(self, keep) -> 'Runs':
    index = np.arange(len(self))[keep]
    return dataclasses.replace(
        self, numbers={k: v[index] for k, v in self.numbers.items()},
        texts={k: tuple(v[i] for i in index) for k, v in self.texts.items()}, rows=tuple(self.rows[i] for i in index),
        by_position=None if self.by_position is None else self.by_position[index],
        weights=None if self.weights is None else self.weights[index])

  def grouped_positions(self, groups: int = 0) -> tuple[list[str], np.ndarray]:
    """(names, nats [runs, groups]) of the positions of the window, counted from 1: each by itself (groups 0), or the
    means of that many groups of equal width in the logarithm (a group that holds no position is left out).
    """
    if self.by_position is None:
      raise ConfigError(f'{self.source}: no loss_by_position of one length in all runs; expected result.json folders '
                        'of runs with the same window')
    places = np.flatnonzero(np.isfinite(self.by_position).all(0))
    if not groups:
      return [str(i + 1) for i in places], self.by_position[:, places]
    window = self.by_position.shape[1]
    group = np.minimum((np.log(places + 1.0) / np.log(window + 1.0) * groups).astype(int), groups - 1)
    names, means = [], []
    for g in np.unique(group):
      here = places[group == g]
      names.append(str(here[0] + 1) if len(here) == 1 else f'{here[0] + 1}-{here[-1] + 1}')
      means.append(self.by_position[:, here].mean(1))
    return names, np.stack(means, 1)

  def exclude(self, column: str) -> 'Runs':
    """Without the rows whose `column` is not zero."""
    return self.take(~(np.nan_to_num(self._number(column)) != 0))

  def weighted(self, column: str) -> 'Runs':
    """With the numbers of a column as weights of the rows."""
    return dataclasses.replace(self, weights=self._number(column))

  def _number(self, column: str) -> np.ndarray:
    if column not in self.numbers:
      names = (*self.numbers, *self.texts)
      raise ConfigError(f'{self.source}: no column {column!r}; it has {", ".join(names)}{nearest(column, names)}')
    return self.numbers[column]

  def where(self, expression: str) -> 'Runs':
    """Rows for which an expression holds: 'role=train,rerun=0,N<2e9,mult=1|2|5', see scaling.where."""
    keep = where(expression, self.numbers, self.texts, self.source)
    if not keep.any():
      raise ConfigError(f'{self.source}: no row is left of {len(self)} where {expression}')
    return self.take(keep)

  def observe(self, counting: Counting = Counting(), reads: Sequence[Column] = ()) -> Observations:
    """The numbers under one convention; refuses what is missing, not finite or not positive, naming the row.

    reads: columns of a law besides N, D, U, K and C.
    """
    n = self._count(counting.parameters)
    d, loss = self._number('D'), self._number('loss')
    kind = counting.compute or ('given' if 'C' in self.numbers else
                                'exact' if 'flops_train_exact' in self.numbers else '6nd')
    c = 6.0 * n * d if kind == '6nd' else self._number('C' if kind == 'given' else 'flops_train_exact')
    known = np.isfinite(c) & (c > 0) & (n > 0) & (d > 0)
    k = np.median(c[known] / (n * d)[known]) if known.any() else 6.0  # of the rows that have it
    c = np.where(np.isnan(c), k * n * d, c)
    optional = {key: self.numbers.get(key) for key in ('U', 'K')}
    for name, column in (('N', n), ('D', d), ('loss', loss), ('C', c), ('weight', self.weights), *optional.items()):
      if column is not None:
        _require(self, name, column)
    more = {read: self.column(read) for read in reads if read.name not in ('N', 'D', 'C', 'U', 'K')}
    for read, values in more.items():
      _require(self, read.name, values, positive=read.log)
    return Observations(n, d, loss, c, **optional, weights=self.weights, more=more, rows=self.rows, source=self.source)

  def column(self, column: Column) -> np.ndarray:
    """The numbers of a column, by its name or by another of its headers."""
    return self._number(next((h for h in (column.name, *column.headers) if h in self.numbers), column.name))

  def _count(self, kind: str) -> np.ndarray:
    if not kind:
      kind = 'given' if 'N' in self.numbers else 'no_input' if 'params_embedding' in self.numbers else 'total'
    if kind == 'given':
      return self._number('N')
    if kind == 'total':
      return self._number('params_total')
    return count_parameters(kind, *(self._number(f'params_{part}') for part in ('total', 'embedding', 'head')))


def _require(runs: Runs, name: str, column: np.ndarray, positive: bool = True) -> None:
  bad = ~np.isfinite(column) | ((column <= 0) if positive else False)
  if bad.any():
    first = int(np.argmax(bad))
    row, value = runs.rows[first], column[first]
    if math.isnan(value):
      raise ConfigError(f'{runs.source}, {row}: {name} is missing or NaN; expected a {"positive " if positive else ""}'
                        'number, drop the row with --where or --exclude')
    raise ConfigError(f'{runs.source}, {row}: {name}={value:g}; expected a {"positive " if positive else ""}finite '
                      'number')


def parse_assignments(text: str, what: str) -> dict[str, str]:
  """{'N': 'params'} of 'N=params,...'; `what` names the flag in errors."""
  out = {}
  for clause in filter(None, (c.strip() for c in text.split(','))):
    key, equals, value = clause.partition('=')
    if not equals or not key or not value:
      raise ConfigError(f'{what}: {clause!r} is not NAME=VALUE')
    if key in out:
      raise ConfigError(f'{what}: {key!r} is given twice')
    out[key] = value
  return out


def read(path: Any, columns: Mapping[str, str] | None = None, units: Mapping[str, str] | None = None) -> Runs:
  """Runs of a file (CSV, JSON lines, parquet; also .gz), of every result.json below a folder, or of a DataFrame.

  columns: {standard name: header}; what is given here is never taken from another header. units: {standard name: unit},
  loss nats | bits | perplexity, N and D 1 | millions | log10 ...
  """
  for name, unit in (units or {}).items():
    if name not in UNITS:
      raise ConfigError(f'units: {name!r} has no unit to choose; expected one of {", ".join(UNITS)}'
                       f'{nearest(name, UNITS)}')
    if unit not in UNITS[name]:
      raise ConfigError(f'units: {name}={unit!r}; expected one of {", ".join(UNITS[name])}{nearest(unit, UNITS[name])}')
  framed = hasattr(path, 'columns') and hasattr(path, 'itertuples')
  header, records, rows, warnings, by_position = readers.frame(path) if framed else readers.read(pathlib.Path(path))
  source = 'table' if framed else printable(pathlib.Path(path).name, 120)
  runs = _build(source, header, records, rows, columns or {}, units or {}, warnings)
  return dataclasses.replace(runs, by_position=by_position)


def joined(parts: Sequence[Runs]) -> Runs:
  """Several tables as one, each row under the name of its table; a column that one lacks is empty there."""
  if len(parts) == 1:
    return parts[0]
  names = dict.fromkeys(name for part in parts for name in (*part.numbers, *part.texts))
  texts = {name for part in parts for name in part.texts}
  missing = lambda part: np.full(len(part), np.nan)
  as_text = lambda part, name: part.texts[name] if name in part.texts else tuple(
      '' if np.isnan(v) else f'{v:g}' for v in part.numbers.get(name, missing(part)))
  positions = [part.by_position for part in parts if part.by_position is not None]
  same = len(positions) == len(parts) and len({p.shape[1] for p in positions}) == 1
  return Runs({name: np.concatenate([part.numbers.get(name, missing(part)) for part in parts])
               for name in names if name not in texts},
              {name: tuple(v for part in parts for v in as_text(part, name)) for name in names if name in texts},
              tuple(f'{part.source} {row}' for part in parts for row in part.rows),
              ', '.join(part.source for part in parts), tuple(w for part in parts for w in part.warnings),
              np.concatenate(positions) if same else None)


def _plain(header: str) -> str:
  """A header without the prefix that an export of an experiment tracker gives it: 'loss' of 'summary/loss'."""
  prefix, mark, rest = re.match(r'(\w*)([/.]?)(.*)', header).groups()  # type: ignore[union-attr]  # matches all
  return rest if mark and rest and prefix.lower() in PREFIXES else header


def _resolve(source: str, header: list[str], given: Mapping[str, str]) -> dict[str, str]:
  """{header: standard name} of the columns found by name."""
  out = {}
  for name, column in given.items():
    if column not in header:
      raise ConfigError(f'{source}: no column {column!r} for {name}; it has {", ".join(header)}'
                       f'{nearest(column, header)}')
    out[column] = name
  for name, others in NAMES.items():
    if name in given or name in header and name not in out:
      out.update({} if name in given else {name: name})
      continue
    order = [other.lower() for other in (name, *others)]
    hits = [column for column in header if column not in out and (
        column.lower() in order or _plain(column).lower() in order)]
    if len(hits) > 1 and name in GUESSED:
      raise ConfigError(f'{source}: both {hits[0]!r} and {hits[1]!r} could be {name}; say which with '
                       f'--columns={name}={hits[0]}')
    if hits:
      out[min(hits, key=lambda h: order.index(h.lower() if h.lower() in order else _plain(h).lower()))] = name
  return out


def _check_required(source: str, header: list[str], names: Iterable[str]) -> None:
  for name in REQUIRED:
    if name not in names and not (name == 'N' and 'params_total' in header):
      hint = nearest(name, header) or ''
      bits = [column for column in header if re.search(r'bits|bpb|bpt', column.lower())] if name == 'loss' else []
      if bits:
        raise ConfigError(f'{source}: no loss in nats per token; map {bits[0]!r} with --columns=loss={bits[0]} '
                         '--units=loss=bits if it is in bits per token')
      also = '' if name == 'loss' else ' or give two of N, D and C' if name == 'N' else \
          ', or give two of N, D and C, or steps, batch and window'
      raise ConfigError(f'{source}: no column {name!r} among {", ".join(header)}; map one with '
                       f'--columns={name}=...{hint}{also}')


def _number(source: str, row: str, column: str, cell: str) -> float:
  """The number of a cell: 1300000000, 1.3e9, 1.3B and 1,300,000,000 are one."""
  try:
    return float(cell)
  except ValueError:
    pass
  match = re.fullmatch(r'([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([kKmMbBtT])', cell)
  if match:
    return float(match[1]) * SUFFIX[match[2].lower()]
  if re.fullmatch(r'[-+]?\d{1,3}(,\d{3})+(\.\d+)?', cell):
    return float(cell.replace(',', ''))
  raise ConfigError(f'{source}, {row}: {column}={printable(repr(cell), 60)} is not a number')


def _column(source: str, rows, column: str, cells: list[str], must: bool) -> np.ndarray | None:
  """The numbers of a column, None if it holds texts and need not be numbers; True and False are 1 and 0."""
  if all(not cell or cell.lower() in FLAGS for cell in cells) and any(cells):
    cells = [FLAGS.get(cell.lower(), cell) for cell in cells]
  try:
    return np.array([_number(source, row, column, cell) if cell else math.nan for row, cell in zip(rows, cells)])
  except ConfigError:
    if must:
      raise
    return None


def _build(source, header, records, rows, columns, units, warnings) -> Runs:
  resolved = _resolve(source, header, columns)
  taken = set(resolved.values())
  numbers, texts, warnings = {}, {}, list(warnings)
  for column, cells in zip(header, zip(*records)):
    name = resolved.get(column, column)
    if column not in resolved and name in taken:  # a standard name that was given to another header
      warnings.append(f'mapped: the column {name!r} of the table is not used, {columns.get(name, name)!r} is {name}')
      continue
    must = column in columns.values() or name in GUESSED or name in (
        'params_total', 'params_embedding', 'params_head', 'flops_train_exact')
    values = _column(source, rows, column, list(cells), must)
    if values is None:
      texts[column] = cells
      continue
    unit = units.get(name)
    if unit is not None:
      values = (10.0 ** values if unit == 'log10' else np.log(values) if unit == 'perplexity' else
                values * UNITS[name][unit])
    numbers[name] = values
    if name != column and name not in REQUIRED and column not in NAMES:
      numbers.setdefault(column, values)
  for column, name in resolved.items():
    if name in numbers and column not in NAMES:
      numbers.setdefault(column, numbers[name])
  _derive(numbers, header, resolved, warnings)
  _check_required(source, header, numbers)
  return Runs(numbers, texts, tuple(rows), source, tuple(warnings))


def _derive(numbers, header, resolved, warnings) -> None:
  """Fills in N or D where the other columns say it: C = 6 N D, or steps of so many tokens."""
  has = lambda *names: all(name in numbers for name in names)
  if 'D' not in numbers and has('steps', 'batch'):
    header_of = {name: column for column, name in resolved.items()}.get('batch', 'batch')
    window = next((numbers[key] for key in ('window', 'seq_len', 'sequence_length', 'context_length')
                   if key in numbers and 'token' not in header_of), None)
    if window is not None or 'token' in header_of:
      numbers['D'] = numbers['steps'] * numbers['batch'] * (1.0 if window is None else window)
      warnings.append(f'derived: D is steps x {header_of}' + (' x window' if window is not None else ''))
  if 'D' not in numbers and has('C', 'N'):
    numbers['D'] = numbers['C'] / (6.0 * numbers['N'])
    warnings.append('derived: D is C / (6 N)')
  if not {'N', 'params_total'} & set(numbers) and has('C', 'D'):
    numbers['N'] = numbers['C'] / (6.0 * numbers['D'])
    warnings.append('derived: N is C / (6 D)')
