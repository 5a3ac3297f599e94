"""The source files of a corpus: which files data.path names, and what they say as (document, text) pairs. A document is
a file of UTF-8 text or a line of a .jsonl file, gzipped or not. What cannot be found, read or decoded raises a
ConfigError that names the setting and the file.
"""

import codecs
import contextlib
import dataclasses
import glob
import gzip
import json
import os
import pathlib
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator

from framework.config import ConfigError, nearest

BLOCK = 1 << 20  # bytes read at a time
SUFFIXES = ('.txt', '.py', '.jsonl')
_EMBEDDED_SUFFIXES = ('.py', '.txt', '.rst')
_EMBEDDED_SKIPS = {'site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'idle_test'}


@dataclasses.dataclass(frozen=True)
class Source:
  """A file, named by its path below the folder that the user gave, which is the same on every machine."""
  key: str  # the setting that named it, for messages
  path: str
  name: str
  size: int
  modified: int  # in nanoseconds

  def changed(self) -> bool:
    try:
      now = os.stat(self.path)
    except OSError:
      return True
    return (now.st_size, now.st_mtime_ns) != (self.size, self.modified)


# Which files


def find(key: str, path: str) -> list[Source]:
  """The readable files that `path` names, in the order of their names."""
  if not path:
    return _embedded()
  path = os.path.expanduser(path)
  expected = f"expected files that end in {', '.join(SUFFIXES)} or one of these and .gz"
  if os.path.isfile(path):
    if not _suffix(path):
      raise ConfigError(f"{key} is '{path}'; {expected}, nearest is a copy named "
                        f"'{os.path.basename(path).split('.')[0]}.txt'")
    base, paths = os.path.dirname(path), [path]
  elif os.path.isdir(path):
    base, paths = path, _walk(path)
  elif magic := re.search(r'[*?[]', path):
    base = os.path.dirname(path[:magic.start()])
    paths = [match for match in set(glob.glob(path, recursive=True)) if os.path.isfile(match)]
  else:
    raise ConfigError(f"{key} is '{path}', which does not exist; {expected}{_sibling(path)}")
  sources = [_source(key, match, base) for match in paths if _suffix(match)]
  if not sources:
    other = f", nearest is '{min(paths)}'" if paths else ', but there is no file at all'
    raise ConfigError(f"{key} is '{path}', where no file can be read; {expected}{other}")
  return sorted(sources, key=lambda source: source.name)


def _embedded() -> list[Source]:
  """The sources and documentation of this Python's standard library, about 15 MB that every machine has."""
  base = sysconfig.get_path('stdlib')
  paths = [path for path in _walk(base, _EMBEDDED_SKIPS) if path.endswith(_EMBEDDED_SUFFIXES) and _is_text(path)]
  if not paths:
    raise ConfigError(f"data.path is '', the standard library, but '{base}' holds no sources; expected a data.path")
  return sorted((_source('data.path', path, base) for path in paths), key=lambda source: source.name)


def _walk(base: str, skips: Iterable[str] = ()) -> list[str]:
  """Every file below `base` but the hidden ones."""
  out = []
  for folder, folders, files in os.walk(base):
    folders[:] = [name for name in folders if name not in skips and not name.startswith('.')]
    out += [os.path.join(folder, name) for name in files if not name.startswith('.')]
  return out


def _is_text(path: str) -> bool:
  try:
    return '\0' not in pathlib.Path(path).read_bytes().decode()
  except (OSError, ValueError):
    return False


def _suffix(path: str) -> str:
  """Of the text inside, without .gz; '' if it is not one that can be read."""
  suffix = os.path.splitext(path.removesuffix('.gz'))[1]
  return suffix if suffix in SUFFIXES else ''


def _source(key: str, path: str, base: str) -> Source:
  try:
    stat = os.stat(path)
  except OSError as error:
    raise unreadable(key, path, error) from None
  name = pathlib.PurePath(os.path.relpath(path, base or '.')).as_posix()
  return Source(key, path, name, stat.st_size, stat.st_mtime_ns)


def _sibling(path: str) -> str:
  """", nearest is 'x'" for what exists beside a path that does not."""
  parent, name = os.path.split(path.rstrip('/'))
  while parent and not os.path.isdir(parent):
    parent, name = os.path.split(parent)
  try:
    close = nearest(name, sorted(os.listdir(parent or '.')))
  except OSError:
    return ''
  return close or f", nearest is the folder '{parent or '.'}'"


def unreadable(key: str, path: str, error: OSError) -> ConfigError:
  return ConfigError(f"{key}: '{path}' cannot be read ({error.strerror or error}); expected a readable file")


# What they say


def texts(sources: list[Source], report: Callable[[int], None]) -> Iterator[tuple[str, str]]:
  """(document, text) in order: the parts of a document have the same name and follow each other; no text is empty.

  `report` is given the bytes of the files read so far, about once a block.
  """
  before = reported = 0
  for source in sources:
    with contextlib.ExitStack() as stack:
      try:
        raw = stack.enter_context(open(source.path, 'rb'))
        file = stack.enter_context(gzip.open(raw)) if source.path.endswith('.gz') else raw
        if _suffix(source.path) == '.jsonl':
          pairs = _lines(source, file)
        else:
          pairs = ((source.name, text) for text in _decoded(source, file))
        for pair in pairs:
          if pair[1]:
            yield pair
          if (done := before + raw.tell()) - reported >= BLOCK:
            reported = done
            report(done)
      except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{source.key}: '{source.path}' is not sound gzip ({error}); expected a whole .gz file, "
                          f'nearest is the text without .gz') from None
      except OSError as error:
        raise unreadable(source.key, source.path, error) from None
    before += source.size
  report(before)


def _decoded(source: Source, file) -> Iterator[str]:
  decoder = codecs.getincrementaldecoder('utf-8')()
  offset = 0
  while True:
    block = file.read(BLOCK)
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


def _lines(source: Source, file) -> Iterator[tuple[str, str]]:
  """The documents of a .jsonl file, one a line, in the field `text`."""
  offset = 0
  for number, line in enumerate(file, 1):
    place = f"{source.key}: '{source.path}:{number}'"
    expected = "expected an object with a string 'text'"
    try:
      row = json.loads(line.decode()) if line.strip() else {'text': ''}
    except UnicodeDecodeError as error:
      raise _not_text(source, f'byte {offset + error.start} in line {number}', error.reason) from None
    except (ValueError, RecursionError) as error:
      raise ConfigError(f'{place} is not JSON ({error}); {expected}') from None
    if not isinstance(row, dict):
      raise ConfigError(f'{place} is {type(row).__name__}; {expected}')
    if not isinstance(row.get('text'), str):
      has = f"'text' is {type(row['text']).__name__}" if 'text' in row else f"has no field 'text'{nearest('text', row)}"
      raise ConfigError(f'{place} {has}; {expected}')
    try:
      row['text'].encode()
    except UnicodeEncodeError:
      raise ConfigError(f'{place} has half of a surrogate pair; {expected} of whole characters') from None
    yield f'{source.name}#{number}', row['text']
    offset += len(line)


def _not_text(source: Source, place: str, reason: str) -> ConfigError:
  return ConfigError(f"{source.key}: '{source.path}' is not UTF-8 text at {place} ({reason}); expected UTF-8, "
                     f'nearest is the file converted with iconv')
