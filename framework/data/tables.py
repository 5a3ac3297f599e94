"""Rows of text of parquet, arrow and feather files, a few at a time: memory does not grow with the file."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from foundation.errors import ConfigError, nearest
from foundation.printable import printable
from framework.data import sources
from framework.data.sources import Source

ROWS = 64  # decoded at a time: a row may be a book
BUFFER = 1 << 20  # bytes read of a column at a time, not the whole of a row group


def rows(source: Source, raw: BinaryIO, how: Any) -> Iterator[tuple[int, str]]:
  """(number of the row from 1, its text) of the column `how.field`; how: a Reading of framework.data.texts.

  Raises:
    ConfigError: it is no such file, has no such column, or a row has no text there.
  """
  pyarrow = sources.needed('pyarrow', source)
  batches = _parquet if sources.kind(source.path) == '.parquet' else _arrow
  number, expected = 0, f"expected a text in the column '{how.field}'"
  try:
    for column in batches(pyarrow, source, raw, how.field):
      for text in _texts(column):
        number += 1
        if isinstance(text, str):
          yield number, text
        else:
          how.bad(source, number, 'is null' if text is None else 'is not UTF-8', expected)
  except pyarrow.ArrowException as error:
    raise ConfigError(f"{source.key}: '{source.path}' cannot be read as {sources.kind(source.path)[1:]} "
                      f'({printable(" ".join(str(error).split()), 160)}); expected a whole file, nearest is its text as '
                      '.jsonl') from None


def _texts(column: Any) -> Iterator[Any]:
  """str, None for null, and the undecoded bytes of what is not UTF-8."""
  try:
    yield from column.to_pylist()
  except UnicodeDecodeError:
    for value in column:
      try:
        yield value.as_py()
      except UnicodeDecodeError:
        yield b'?'


def _parquet(pyarrow: Any, source: Source, raw: BinaryIO, field: str) -> Iterator[Any]:
  parquet = sources.needed('pyarrow.parquet', source)
  with parquet.ParquetFile(raw, buffer_size=BUFFER, pre_buffer=False) as file:
    _check(pyarrow, source, file.schema_arrow, field)
    for batch in file.iter_batches(ROWS, columns=[field], use_threads=False):
      yield batch.column(0)


def _arrow(pyarrow: Any, source: Source, raw: BinaryIO, field: str) -> Iterator[Any]:
  """Of a file of record batches or of a stream of them, as the library `datasets` writes it; a feather file is one."""
  head = raw.read(6)
  raw.seek(0)
  if head[:4] == b'FEA1':
    raise ConfigError(f"{source.key}: '{source.path}' is feather of version 1; expected version 2, nearest is the file "
                      'written again')
  if head == b'ARROW1':
    file = pyarrow.ipc.open_file(raw)
    batches = (file.get_batch(i) for i in range(file.num_record_batches))
  else:
    file = pyarrow.ipc.open_stream(raw)
    batches = iter(file)
  _check(pyarrow, source, file.schema, field)
  for batch in batches:
    column = batch.column(batch.schema.get_field_index(field))
    for first in range(0, len(column), ROWS):
      yield column.slice(first, ROWS)


def _check(pyarrow: Any, source: Source, schema: Any, field: str) -> None:
  """Raises ConfigError if there is not one column of that name, or it holds no text."""
  if schema.names.count(field) != 1:
    raise ConfigError(f"{source.key}: '{source.path}' has {schema.names.count(field)} columns '{field}'"
                      f'{nearest(field, schema.names)}; expected data.field to be one of '
                      f"{', '.join(printable(name, 40) for name in schema.names[:12])}")
  kind = schema.field(field).type
  kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
  if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or kind == pyarrow.string_view()):
    strings = [f.name for f in schema if pyarrow.types.is_string(f.type) or pyarrow.types.is_large_string(f.type)]
    raise ConfigError(f"{source.key}: '{source.path}' has '{field}' of type {kind}; expected a column of text, as "
                      f"{', '.join(printable(name, 40) for name in strings[:12]) or 'none of its columns is'}")
