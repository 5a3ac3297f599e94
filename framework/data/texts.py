"""What source files say, as (document, content) pairs: a file of UTF-8 text is a document, and so is each line of a
.jsonl file, each row of a table (parquet, arrow, feather), and what stands between two ends in an array of token ids.

Text and JSON lines may be compressed: .gz, .bz2, .xz, .zst. What cannot be read or decoded raises a ConfigError that
names the setting and the file; with `data.bad_rows=skip` a bad line or row is counted and left out.
"""

import bz2
import codecs
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import gzip
import io
import json
import lzma
from typing import Any, BinaryIO
import zlib

import numpy as np

from foundation.errors import ConfigError, nearest
from framework.data import arrays, sources, tables
from framework.data.sources import Source

Content = str | np.ndarray  # a part of a document: text, or int32 token ids
NAMED = 10  # of what is left out


@dataclasses.dataclass
class LeftOut:
  """The rows that could not be read: how many, and the first of them with the reasons."""
  rows: int = 0
  named: list[str] = dataclasses.field(default_factory=list)

  def add(self, place: str, why: str) -> None:
    self.rows += 1
    if self.rows <= NAMED:
      self.named.append(f'{place} {why}')


@dataclasses.dataclass(frozen=True)
class Reading:
  """How files are read: the field of text of rows, and where bad rows are counted (None: they are refused).

  ids: the type of token ids, see framework.data.arrays, '' for texts; end, size, begin: of their tokenizer.
  """
  field: str = 'text'
  left_out: LeftOut | None = None
  ids: str = ''
  end: int = -1
  size: int = 0
  begin: int = -1

  def bad(self, source: Source, number: int, why: str, expected: str) -> None:
    """Counts a bad row, or raises ConfigError."""
    if self.left_out is None:
      raise ConfigError(f"{source.key}: '{source.path}:{number}' {why}; {expected}, or data.bad_rows=skip")
    self.left_out.add(f'{source.name}:{number}', why)


def read(found: Sequence[Source], report: Callable[[int], None], how: Reading = Reading()) -> Iterator[tuple[str, Any]]:
  """(document, content) in order: the parts of a document have the same name and follow each other; none is empty.

  Args:
    report: given the bytes of the files read so far, about once a block.
  """
  before = reported = 0
  for source in found:
    try:
      with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(source.path, 'rb'))
        for pair in _pairs(source, raw, stack, how):
          if len(pair[1]):
            yield pair
          if not raw.closed and (done := before + raw.tell()) - reported >= sources.BLOCK:
            reported = done
            report(done)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, _Unsound) as error:
      raise _not_sound(source, error) from None
    except OSError as error:
      if source.path.endswith('.bz2') and error.errno is None:  # what the library says of damage
        raise _not_sound(source, error) from None
      raise sources.unreadable(source.key, source.path, error) from None
    before += source.size
  report(before)


def _pairs(source: Source, raw: BinaryIO, stack: contextlib.ExitStack, how: Reading) -> Iterator[tuple[str, Any]]:
  kind = sources.kind(source.path)
  if kind in sources.ARRAYS:
    parts = arrays.documents(source, how.ids, (how.end, how.begin), how.size)
    return ((f'{source.title}#{number}', ids) for number, ids in parts)
  if kind in sources.TABLES:
    return ((f'{source.title}#{number}', text) for number, text in tables.rows(source, raw, how))
  file = _decompressed(source, raw, stack)
  return _lines(source, file, how) if kind == '.jsonl' else ((source.title, text) for text in _decoded(source, file))


class _Unsound(Exception):
  """A compressed file is damaged."""


def _not_sound(source: Source, error: Exception) -> ConfigError:
  kind = {'.gz': 'gzip', '.bz2': 'bzip2', '.xz': 'xz', '.zst': 'zstd'}[sources.compression(source.path)]
  ending = sources.compression(source.path)
  return ConfigError(f"{source.key}: '{source.path}' is not sound {kind} ({error}); expected a whole {ending} file, "
                     f'nearest is the text without {ending}')


def _decompressed(source: Source, raw: BinaryIO, stack: contextlib.ExitStack) -> Any:
  """A file of bytes that can be read by blocks and by lines."""
  kind = sources.compression(source.path)
  if kind == '.zst':
    return stack.enter_context(io.BufferedReader(_Zst(source, raw), 1 << 17))
  openers: dict[str, Callable] = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}
  return stack.enter_context(openers[kind](raw)) if kind else raw


class _Zst(io.RawIOBase):
  """The bytes of a .zst file of one frame or several; a frame that is cut short is an error, not an end."""
  STEP = 1 << 12  # bytes decompressed at once: of nothing but zeros they become some 100 MB

  def __init__(self, source: Source, raw: BinaryIO):
    zstandard = sources.needed('zstandard', source)
    self._raw, self._error = raw, zstandard.ZstdError
    self._new = lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    self._frame: Any = None
    self._input, self._ready = b'', memoryview(b'')

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while not self._ready:
      self._input = self._input or self._raw.read(self.STEP)
      if not self._input:
        if self._frame is not None:
          raise EOFError('it ends inside a frame')
        return 0
      self._frame = self._frame or self._new()
      try:
        self._ready = memoryview(self._frame.decompress(self._input))
      except self._error as error:
        raise _Unsound(error) from None
      self._input = self._frame.unused_data
      if self._frame.eof:
        self._frame = None
    count = min(len(buffer), len(self._ready))
    buffer[:count], self._ready = self._ready[:count], self._ready[count:]
    return count


def _decoded(source: Source, file: Any) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder('utf-8')()
  offset = 0
  while True:
    block = file.read(sources.BLOCK)
    held = len(decoder.getstate()[0])  # bytes of an unfinished character
    try:
      text = decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
      raise _not_text(source, f'byte {offset - held + error.start}', error.reason) from None
    if '\0' in text:
      place = offset - held + len(text[:text.index('\0')].encode())
      raise _not_text(source, f'byte {place}', 'a zero byte')
    yield text
    if not block:
      return
    offset += len(block)


def _lines(source: Source, file: Any, how: Reading) -> Iterator[tuple[str, str]]:
  """The documents of a .jsonl file, one a line, in the field of text."""
  expected = f"expected an object with a string '{how.field}'"
  for number, line in enumerate(file, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line.decode())
    except UnicodeDecodeError as error:
      how.bad(source, number, f'is not UTF-8 at byte {error.start} of the line ({error.reason})', expected)
      continue
    except (ValueError, RecursionError) as error:
      how.bad(source, number, f'is not JSON ({error})', expected)
      continue
    if not isinstance(row, dict):
      how.bad(source, number, f'is {type(row).__name__}', expected)
    elif not isinstance(text := row.get(how.field), str):
      has = f"'{how.field}' is {type(text).__name__}" if how.field in row else \
          f"has no field '{how.field}'{nearest(how.field, row)}"
      how.bad(source, number, has, expected)
    elif not _encodes(text):
      how.bad(source, number, 'has half of a surrogate pair', f'{expected} of whole characters')
    else:
      yield f'{source.title}#{number}', text


def _encodes(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _not_text(source: Source, place: str, reason: str) -> ConfigError:
  return ConfigError(f"{source.key}: '{source.path}' is not UTF-8 text at {place} ({reason}); expected UTF-8, "
                     f'nearest is the file converted with iconv')
