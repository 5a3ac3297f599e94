"""Tables of finished runs: read, checked cell by cell, kept raw; what counts as N and C is chosen when they are used.

A table is a CSV with named columns, or a folder searched for `result.json` files. Errors are one line that names the
row and the value, what was expected and the nearest valid choice.
"""

import csv
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from foundation import reading
from foundation.errors import ConfigError, nearest
from foundation.printable import printable
from scaling.observations import Counting, Observations, count_parameters

TableError = ConfigError  # under the name that sweeps know

# standard name: the other headers under which it is found
NAMES = {
    'N': ('params', 'n_params', 'num_params', 'parameters', 'N_noembed', 'params_noembed', 'model_size'),
    'D': ('tokens', 'n_tokens', 'num_tokens', 'train_tokens'),
    'loss': ('loss_nats_per_token', 'val_loss', 'eval_loss', 'final_loss'),
    'C': ('flops', 'compute', 'flops_train', 'flops_total'),
    'U': ('tokens_unique', 'unique_tokens'),
    'K': ('experts', 'n_experts', 'num_experts'),
}
REQUIRED = ('N', 'D', 'loss')
UNITS: dict[str, dict[str, Any]] = {
    'N': {'1': 1.0, 'thousands': 1e3, 'millions': 1e6, 'billions': 1e9, 'log10': None},
    'D': {'1': 1.0, 'thousands': 1e3, 'millions': 1e6, 'billions': 1e9, 'log10': None},
    'U': {'1': 1.0, 'thousands': 1e3, 'millions': 1e6, 'billions': 1e9, 'log10': None},
    'C': {'flop': 1.0, 'pflop_days': 8.64e19, 'exaflop': 1e18, 'log10': None},
    'loss': {'nats': 1.0, 'bits': math.log(2.0)},
}
_SUFFIX = {'k': 1e3, 'm': 1e6, 'b': 1e9, 't': 1e12}


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

  def __len__(self) -> int:
    return len(self.rows)

  def take(self, keep) -> 'Runs':
    index = np.arange(len(self))[keep]
    return dataclasses.replace(
        self, numbers={k: v[index] for k, v in self.numbers.items()},
        texts={k: tuple(v[i] for i in index) for k, v in self.texts.items()}, rows=tuple(self.rows[i] for i in index),
        by_position=None if self.by_position is None else self.by_position[index])

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

  def _number(self, column: str) -> np.ndarray:
    if column not in self.numbers:
      names = (*self.numbers, *self.texts)
      raise ConfigError(f'{self.source}: no column {column!r}; it has {", ".join(names)}{nearest(column, names)}')
    return self.numbers[column]

  def where(self, expression: str) -> 'Runs':
    """Rows for which every comma-separated comparison holds: 'role=train,rerun=0,N<2e9,chinchilla_mult=1|2|5'."""
    keep = np.ones(len(self), bool)
    for clause in filter(None, (c.strip() for c in expression.split(','))):
      match = re.fullmatch(r'(\w+)\s*(<=|>=|!=|=|<|>)\s*(.+)', clause)
      if not match:
        raise ConfigError(f'condition {clause!r}: expected COLUMN=VALUE with one of = != < <= > >=, such as role=train')
      column, operator, value = match.groups()
      if column in self.texts and operator in ('=', '!='):
        hit = np.isin(np.array(self.texts[column], object), value.split('|'))
      else:
        numbers = self._number(column)
        try:
          values = [float(v) for v in value.split('|')]
        except ValueError:
          raise ConfigError(f'condition {clause!r}: expected a number for the column {column}, got {value!r}') from None
        hit = {'=': np.isin(numbers, values), '!=': np.isin(numbers, values), '<': numbers < values[0],
               '<=': numbers <= values[0], '>': numbers > values[0], '>=': numbers >= values[0]}[operator]
      keep &= ~hit if operator == '!=' else hit
    if not keep.any():
      raise ConfigError(f'{self.source}: no row is left of {len(self)} where {expression}')
    return self.take(keep)

  def observe(self, counting: Counting = Counting()) -> Observations:
    """The numbers under one convention; refuses what is missing, not finite or not positive, naming the row."""
    n = self._count(counting.parameters)
    d, loss = self._number('D'), self._number('loss')
    kind = counting.compute or ('given' if 'C' in self.numbers else
                                'exact' if 'flops_train_exact' in self.numbers else '6nd')
    c = 6.0 * n * d if kind == '6nd' else self._number('C' if kind == 'given' else 'flops_train_exact')
    c = np.where(np.isnan(c), 6.0 * n * d, c)
    optional = {key: self.numbers.get(key) for key in ('U', 'K')}
    for name, column in (('N', n), ('D', d), ('loss', loss), ('C', c), *((k, v) for k, v in optional.items())):
      if column is not None:
        _require_positive(self, name, column)
    return Observations(n, d, loss, c, **optional, rows=self.rows, source=self.source)

  def _count(self, kind: str) -> np.ndarray:
    if not kind:
      kind = 'given' if 'N' in self.numbers else 'no_input' if 'params_embedding' in self.numbers else 'total'
    if kind == 'given':
      return self._number('N')
    if kind == 'total':
      return self._number('params_total')
    return count_parameters(kind, *(self._number(f'params_{part}') for part in ('total', 'embedding', 'head')))


def _require_positive(runs: Runs, name: str, column: np.ndarray) -> None:
  for row, value in zip(runs.rows, column):
    if math.isnan(value):
      raise ConfigError(f'{runs.source}, {row}: {name} is missing or NaN; expected a positive number, drop the row '
                        'with --where or --exclude')
    if not math.isfinite(value) or value <= 0:
      raise ConfigError(f'{runs.source}, {row}: {name}={value:g}; expected a positive finite number')


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


def read(path: str | pathlib.Path, columns: Mapping[str, str] | None = None,
         units: Mapping[str, str] | None = None) -> Runs:
  """Runs of a CSV file, or of every result.json below a folder.

  columns: {standard name: header}. units: {standard name: unit}, loss nats | bits, N and D 1 | millions | log10 ...
  """
  path = pathlib.Path(path)
  for name, unit in (units or {}).items():
    if name not in UNITS:
      raise ConfigError(f'units: {name!r} has no unit to choose; expected one of {", ".join(UNITS)}'
                       f'{nearest(name, UNITS)}')
    if unit not in UNITS[name]:
      raise ConfigError(f'units: {name}={unit!r}; expected one of {", ".join(UNITS[name])}{nearest(unit, UNITS[name])}')
  by_position = None
  if path.is_dir():
    header, records, rows, warnings, by_position = _read_folder(path)
  elif path.is_file():
    header, records, rows, warnings = _read_csv(path)
  else:
    close = [p.name for p in path.parent.glob('*')] if path.parent.is_dir() else []
    raise ConfigError(f'{path}: no such file or folder{nearest(path.name, close)}')
  runs = _build(printable(path.name, 120), header, records, rows, columns or {}, units or {}, warnings)
  return dataclasses.replace(runs, by_position=by_position)


def _read_csv(path: pathlib.Path):
  real = path.resolve()  # the user named it: a link is as good
  try:
    lines = reading.data(real).decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as error:
    raise ConfigError(f'{path.name}: byte {error.start} is not UTF-8; expected a CSV file in UTF-8') from None
  if not lines or not lines[0].strip():
    raise ConfigError(f'{path.name}: the file is empty; expected a header with the columns N, D, loss')
  if ',' not in lines[0]:
    for mark, name in ((';', 'semicolons'), ('\t', 'tabs')):
      if mark in lines[0]:
        raise ConfigError(f'{path.name}: the header is separated by {name}; expected commas')
  header, *body = _cells(path.name, lines)
  header = [name.strip() for name in header]
  repeated = sorted({name for name in header if header.count(name) > 1})
  if repeated:
    raise ConfigError(f'{path.name}: the column {repeated[0]!r} appears {header.count(repeated[0])} times in the '
                      'header')
  records, rows = [], []
  for line, cells in enumerate(body, 2):
    if not cells or not any(cell.strip() for cell in cells):
      continue
    if len(cells) != len(header):
      raise ConfigError(f'{path.name}, line {line}: {len(cells)} cells; expected {len(header)} as in the header')
    records.append([cell.strip() for cell in cells])
    rows.append(f'line {line}')
  if not records:
    raise ConfigError(f'{path.name}: a header and no rows; expected a row a run')
  return header, records, rows, ()


def _cells(name: str, lines: list[str]) -> Iterator[list[str]]:
  """The cells of every line. Raises ConfigError where a quote goes on beyond its line: it would swallow runs."""
  reader, line = csv.reader(lines, strict=True), 1
  try:
    for cells in reader:
      if reader.line_num != line:
        raise ConfigError(f'{name}, line {line}: a quoted cell goes on to line {reader.line_num}; expected its quote '
                          'closed in its line')
      yield cells
      line += 1
  except csv.Error as error:
    raise ConfigError(f'{name}, line {line}: {error}; expected a row of cells whose quotes are closed in the line'
                      ) from None


def _read_folder(path: pathlib.Path):
  files = sorted(path.glob('**/result.json'))
  if not files:
    raise ConfigError(f'{path.name}: no result.json below this folder; expected a folder of run folders, or a CSV file')
  finished, rows, warnings = [], [], []
  for file in files:
    name = printable(file.parent.relative_to(path), 120)
    try:
      record = reading.loads(reading.data(file, path))
    except ConfigError:
      raise
    except (OSError, ValueError) as error:
      raise ConfigError(f'{name}/result.json is not JSON: {error}') from None
    if not isinstance(record, dict):
      raise ConfigError(f'{name}/result.json: expected an object with the keys of a run')
    if record.get('status', 'complete') != 'complete':
      warnings.append(f'unfinished: run {name} is left out, its status is {record["status"]!r}')
      continue
    finished.append(record)
    rows.append(f'run {name}')
  if not finished:
    raise ConfigError(f'{path.name}: none of {len(files)} runs has finished')
  scalar = (str, int, float, bool)
  header = list(dict.fromkeys(key for r in finished for key, v in r.items() if isinstance(v, scalar) or v is None))
  cell = lambda v: '' if v is None or not isinstance(v, scalar) else repr(v) if isinstance(v, float) else str(v)
  return (header, [[cell(record.get(key)) for key in header] for record in finished], rows, tuple(warnings),
          _by_position(finished))


def _by_position(records: list[dict]) -> np.ndarray | None:
  try:
    return np.array([[math.nan if v is None else float(v) for v in record['loss_by_position']] for record in records])
  except (KeyError, TypeError, ValueError):  # a run has none, or another window
    return None


def _resolve(source: str, header: list[str], given: Mapping[str, str]) -> dict[str, str]:
  """{header: standard name} of the columns found by name."""
  out = {}
  for name, column in given.items():
    if column not in header:
      raise ConfigError(f'{source}: no column {column!r} for {name}; it has {", ".join(header)}'
                       f'{nearest(column, header)}')
    out[column] = name
  for name, others in NAMES.items():
    if name in given or name in header:
      out.update({} if name in given else {name: name})
      continue
    low = {other.lower() for other in (name, *others)}
    hits = [column for column in header if column.lower() in low and column not in out]
    if len(hits) > 1:
      raise ConfigError(f'{source}: both {hits[0]!r} and {hits[1]!r} could be {name}; say which with '
                       f'--columns={name}={hits[0]}')
    if hits:
      out[hits[0]] = name
  for name in REQUIRED:
    if name not in out.values() and not (name == 'N' and 'params_total' in header):
      hint = nearest(name, header) or ''
      bits = [column for column in header if re.search(r'bits|bpb|bpt', column.lower())] if name == 'loss' else []
      if bits:
        raise ConfigError(f'{source}: no loss in nats per token; map {bits[0]!r} with --columns=loss={bits[0]} '
                         '--units=loss=bits if it is in bits per token')
      raise ConfigError(f'{source}: no column {name!r} among {", ".join(header)}; map one with '
                       f'--columns={name}=...{hint}')
  return out


def _number(source: str, row: str, column: str, cell: str) -> float:
  try:
    return float(cell)
  except ValueError:
    pass
  match = re.fullmatch(r'([-+.\deE]+)\s*([kKmMbBtT])', cell)
  if match:
    hint = f'; write {float(match[1]) * _SUFFIX[match[2].lower()]:g}'
  elif re.fullmatch(r'[-+]?\d{1,3}(,\d{3})+(\.\d+)?', cell):
    hint = f'; write {cell.replace(",", "")}'
  else:
    hint = ''
  raise ConfigError(f'{source}, {row}: {column}={cell!r} is not a number{hint}')


def _build(source, header, records, rows, columns, units, warnings) -> Runs:
  resolved = _resolve(source, header, columns)
  numbers, texts = {}, {}
  for position, column in enumerate(header):
    name, cells = resolved.get(column, column), [record[position] for record in records]
    if column in resolved or name in ('params_total', 'params_embedding', 'params_head', 'flops_train_exact'):
      values = np.array([_number(source, row, column, cell) if cell else math.nan for row, cell in zip(rows, cells)])
      unit = units.get(name)
      if unit is not None:
        values = 10.0 ** values if unit == 'log10' else values * UNITS[name][unit]
      numbers[name] = values
      if name != column and name not in REQUIRED:
        numbers.setdefault(column, values)
    else:
      try:
        numbers[name] = np.array([float(cell) if cell else math.nan for cell in cells])
      except ValueError:
        texts[name] = tuple(cells)
  for name in resolved.values():
    column = next(c for c, n in resolved.items() if n == name)
    numbers.setdefault(column, numbers[name])
  return Runs(numbers, texts, tuple(rows), source, warnings)


def best_rate(runs: Runs) -> Runs:
  """The rows at the best learning rate of each cell of equal N and D that has several; other rows as they are."""
  if 'lr' not in runs.numbers:
    return runs
  observed, rates = runs.observe(), runs.numbers['lr']
  keep = np.ones(len(runs), bool)
  for cell in np.unique(np.stack([observed.N, observed.D]), axis=1).T:
    here = np.flatnonzero((observed.N == cell[0]) & (observed.D == cell[1]))
    if len(np.unique(rates[here])) > 1:
      best = here[np.argmin(observed.loss[here])]
      keep[here] = rates[here] == rates[best]
  return runs.take(keep)
