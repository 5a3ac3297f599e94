"""Tables of runs as people have them, as a header and cells of text: CSV, JSON lines, gzip, parquet, result.json folders.

A reader returns (header, records, names of the rows, warnings, losses by position or None). What a cell means is not
its business, only what could be read as another table than was written is refused here.
"""

import csv
import gzip
import io
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from foundation import reading
from foundation.errors import ConfigError, nearest
from foundation.printable import printable

Read = tuple[list[str], list[list[str]], list[str], tuple[str, ...], np.ndarray | None]
SEPARATORS = ',;\t|'
BOMS = ((b'\xff\xfe', 'utf-16'), (b'\xfe\xff', 'utf-16'), (b'\xef\xbb\xbf', 'utf-8-sig'))


def read(path: pathlib.Path) -> Read:
  """The table at a path, by what it is and how it is named. Raises ConfigError."""
  if path.is_dir():
    return _folder(path)
  if not path.is_file():
    close = [p.name for p in path.parent.glob('*')] if path.parent.is_dir() else []
    raise ConfigError(f'{path}: no such file or folder{nearest(path.name, close)}')
  kinds = [suffix.lower() for suffix in path.suffixes]
  if '.parquet' in kinds:
    return _parquet(path)
  content = reading.data(path.resolve())  # the user named it: a link is as good
  if content[:2] == b'\x1f\x8b':
    content = _unzipped(path, content)
  text = _text(path, content)
  return _json_lines(path.name, text) if {'.jsonl', '.ndjson', '.json'} & set(kinds) else _csv(path.name, text)


def frame(table: Any) -> Read:
  """The cells of a pandas DataFrame, or of anything with `columns` and rows by `itertuples`."""
  header = [str(column) for column in table.columns]
  return _checked('table', header, ([_cell(v) for v in row] for row in table.itertuples(index=False, name=None)),
                  [f'row {name}' for name in table.index])


def _unzipped(path: pathlib.Path, content: bytes) -> bytes:
  try:
    with gzip.open(io.BytesIO(content)) as file:
      whole = file.read(reading.LARGEST + 1)
  except (OSError, EOFError) as error:
    raise ConfigError(f'{path.name}: cannot be unpacked ({error}); expected a whole gzip file') from None
  if len(whole) > reading.LARGEST:
    raise ConfigError(f'{path.name} unpacks to more than {reading.LARGEST:,} bytes; expected at most so many')
  return whole


def _text(path: pathlib.Path, content: bytes) -> str:
  """By its byte order mark, else UTF-8, else Latin 1, in which every byte is a letter: numbers are the same in all."""
  for mark, name in BOMS:
    if content.startswith(mark):
      try:
        return content.decode(name)
      except UnicodeDecodeError:
        raise ConfigError(f'{path.name}: begins as {name} and is not; expected a text in one encoding') from None
  if b'\0' in content:
    raise ConfigError(f'{path.name}: byte {content.index(0)} is zero; expected a text: CSV or JSON lines')
  try:
    return content.decode()
  except UnicodeDecodeError:
    return content.decode('latin-1')


def _csv(name: str, text: str) -> Read:
  lines = text.splitlines()
  if not lines or not lines[0].strip():
    raise ConfigError(f'{name}: the file is empty; expected a header with the columns N, D, loss')
  separator = max(SEPARATORS, key=lambda mark: (lines[0].count(mark), -SEPARATORS.index(mark)))
  header, *body = _cells(name, lines, separator)
  records, rows = [], []
  for line, cells in enumerate(body, 2):
    if not cells or not any(cell.strip() for cell in cells):
      continue
    if len(cells) != len(header):
      raise ConfigError(f'{name}, line {line}: {len(cells)} cells; expected {len(header)} as in the header')
    records.append([_decimal(name, f'line {line}', cell.strip(), separator) for cell in cells])
    rows.append(f'line {line}')
  return _checked(name, [cell.strip() for cell in header], records, rows)


def _decimal(name: str, row: str, cell: str, separator: str) -> str:
  """A cell with its comma as a point, where the comma does not separate cells; refuses one that could be either."""
  if separator == ',' or cell.count(',') != 1 or not cell.replace(',', '').lstrip('+-').isdigit():
    return cell
  whole, part = cell.split(',')
  if len(part) == 3 and len(whole.lstrip('+-')) <= 3 and whole.lstrip('+-') != '0':
    raise ConfigError(f"{name}, {row}: '{cell}' is {whole}.{part} or {whole}{part}; expected one of these")
  return f'{whole}.{part}'


def _cells(name: str, lines: list[str], separator: str) -> Iterator[list[str]]:
  """The cells of every line. Raises ConfigError where a quote goes on beyond its line: it would swallow runs."""
  reader, line = csv.reader(lines, strict=True, delimiter=separator), 1
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


def _checked(name: str, header: list[str], records: Iterable[list[str]], rows: list[str],
             warnings: tuple[str, ...] = (), by_position: np.ndarray | None = None) -> Read:
  repeated = sorted({column for column in header if header.count(column) > 1})
  if repeated:
    raise ConfigError(f'{name}: the column {repeated[0]!r} appears {header.count(repeated[0])} times in the header')
  records = list(records)
  if not records:
    raise ConfigError(f'{name}: a header and no rows; expected a row a run')
  return header, records, rows, warnings, by_position


def _cell(value: Any) -> str:
  if value is None or isinstance(value, float) and math.isnan(value) or str(value) in ('nan', '<NA>', 'NaT'):
    return ''
  return repr(float(value)) if isinstance(value, float) else str(value)


def _flat(record: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in record.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}/')
    elif value is None or isinstance(value, (str, int, float, bool)):
      yield f'{prefix}{key}', value


def _table(name: str, records: list[dict], rows: list[str], warnings: tuple[str, ...] = (),
           by_position: np.ndarray | None = None) -> Read:
  """Objects, those within them under names like summary/loss, as cells."""
  flat = [dict(_flat(record)) for record in records]
  header = list(dict.fromkeys(key for record in flat for key in record))
  return _checked(name, header, ([_cell(record.get(key)) for key in header] for record in flat), rows, warnings,
                  by_position)


def _json_lines(name: str, text: str) -> Read:
  """A line an object; or a JSON list of objects."""
  records, rows = [], []
  whole = text.lstrip().startswith('[')
  for number, line in [(1, text)] if whole else enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      value = reading.loads(line)
    except ValueError as error:
      raise ConfigError(f'{name}, line {number}: {printable(error, 120)}; expected a JSON object a line') from None
    for i, record in enumerate(value if isinstance(value, list) else [value], 1):
      where = f'item {i}' if isinstance(value, list) else f'line {number}'
      if not isinstance(record, dict):
        raise ConfigError(f'{name}, {where}: {type(record).__name__}; expected a JSON object')
      records.append(record)
      rows.append(where)
  if not records:
    raise ConfigError(f'{name}: the file is empty; expected a JSON object a line')
  return _table(name, records, rows)


def _parquet(path: pathlib.Path) -> Read:
  try:
    import pyarrow.parquet  # type: ignore[import-not-found]  # an extra
  except ImportError:
    raise ConfigError(f"{path.name}: parquet needs pyarrow; install the extra: pip install -e '.[data]', nearest is a "
                      'CSV file') from None
  try:
    found = pyarrow.parquet.read_table(path.resolve()).to_pylist()
  except (OSError, ValueError) as error:
    raise ConfigError(f'{path.name}: cannot be read ({printable(error, 120)})') from None
  return _table(path.name, found, [f'row {i}' for i in range(1, len(found) + 1)])


def _folder(path: pathlib.Path) -> Read:
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
  return _table(path.name, finished, rows, tuple(warnings), _by_position(finished))


def _by_position(records: list[dict]) -> np.ndarray | None:
  try:
    return np.array([[math.nan if v is None else float(v) for v in record['loss_by_position']] for record in records])
  except (KeyError, TypeError, ValueError):  # a run has none, or another window
    return None
