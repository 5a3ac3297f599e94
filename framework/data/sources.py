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
import logging
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

log = logging.getLogger(__name__)


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


def find(key: str, path: str, ours: str | os.PathLike = '') -> list[Source]:
  """The readable files that `path` names, each once, in the order of their names. The log says what is left out.

  Args:
    ours: a folder of our own files, which are nobody's texts though it may lie among them.

  Raises:
    ConfigError: there is none, one that should be read cannot be, or most of the bytes would be left out.
  """
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
  elif os.path.exists(path):
    raise ConfigError(f"{key} is '{path}', a pipe or a device; {expected}, nearest is a file with what it gives")
  elif magic := re.search(r'[*?[]', path):
    base = os.path.dirname(path[:magic.start()])
    paths = [match for match in _glob(path) if not os.path.isdir(match)]
  else:
    raise ConfigError(f"{key} is '{path}', which does not exist; {expected}{_sibling(path)}")
  inside = os.path.join(os.path.abspath(ours), '') if ours else os.devnull
  paths = [match for match in paths if not os.path.abspath(match).startswith(inside)]
  whys = {match: _why_not(match) for match in paths}
  sources = [_source(key, match, base) for match in paths if not whys[match]]
  if not sources:
    other = f", nearest is '{min(paths)}'" if paths else ', but there is no file at all'
    raise ConfigError(f"{key} is '{path}', where no file can be read; {expected}{other}")
  _say_what_is_left_out(f"{key} is '{path}'", base, sources, {match: why for match, why in whys.items() if why})
  return _once(sources, base)


def _why_not(path: str) -> str:
  """Why `path` is left out, '' if it is not: a text that cannot be opened is not left out, it is refused later."""
  if os.path.isdir(path):  # the walk names a folder only where it did not enter it
    return 'links to a folder' if os.path.islink(path) else 'unreadable folders'
  if os.path.exists(path) and not os.path.isfile(path):
    return 'pipes or devices'
  return '' if _suffix(path) else f"not {', '.join(SUFFIXES)}"


def _say_what_is_left_out(setting: str, base: str, sources: list[Source], whys: dict[str, str]) -> None:
  """Logs one line, or raises ConfigError if what is left out is most of the bytes."""
  groups: dict[str, list[str]] = {}
  for path, why in whys.items():
    groups.setdefault(why, []).append(os.path.relpath(path, base or '.'))
  groups |= {'empty': empty} if (empty := [source.name for source in sources if not source.size]) else {}
  listed = '; '.join(f"{why}: {', '.join(map(repr, sorted(names)[:3]))}" + f', {len(names) - 3} more' * (len(names) > 3)
                     for why, names in sorted(groups.items()))
  texts_found, others = len(sources) - len(empty), len(whys) + len(empty)
  read = sum(source.size for source in sources)
  size = sum(os.path.getsize(path) for path in whys if os.path.isfile(path))
  if size > read:
    ending = max(sources, key=lambda source: source.size).path.removesuffix('.gz').rpartition('.')[2]
    raise ConfigError(f'{setting}, where {texts_found} files of {read} bytes can be read and {others} of {size} bytes '
                      f'cannot ({listed}); expected most of the bytes to be text, nearest is a glob of the files '
                      f"wanted, as '{os.path.join(base, '**', f'*.{ending}')}'")
  if groups:
    log.warning('%s: %d files of %d bytes are read, %d of %d bytes are not (%s)', setting, texts_found, read, others,
                size, listed)


def _once(sources: list[Source], base: str) -> list[Source]:
  """By name, without a file's further names: of links and what they lead to the latter is kept, else the first."""
  same: dict[tuple[int, ...], list[Source]] = {}
  sources = sorted(sources, key=lambda source: source.name)
  for number, source in enumerate(sources):
    stat = os.stat(source.path)
    same.setdefault((stat.st_dev, stat.st_ino) if stat.st_ino else (number,), []).append(source)
  top = os.path.realpath(base)

  def rank(source: Source) -> tuple[bool, str]:
    return os.path.realpath(source.path) != os.path.join(top, source.name), source.name

  kept = {min(names, key=rank) if len(names) > 1 else names[0] for names in same.values()}
  if twice := [source.name for source in sources if source not in kept]:
    log.warning('%s: %d files are read once though they have further names, such as %r', sources[0].key, len(twice),
                twice[0])
  return [source for source in sources if source in kept]


def _embedded() -> list[Source]:
  """The sources and documentation of this Python's standard library, about 15 MB that every machine has."""
  base = sysconfig.get_path('stdlib')
  paths = [path for path in _walk(base, _EMBEDDED_SKIPS) if path.endswith(_EMBEDDED_SUFFIXES) and _is_text(path)]
  if not paths:
    raise ConfigError(f"data.path is '', the standard library, but '{base}' holds no sources; expected a data.path")
  return sorted((_source('data.path', path, base) for path in paths), key=lambda source: source.name)


def _walk(base: str, skips: Iterable[str] = ()) -> list[str]:
  """Every file below `base` but the hidden ones, and every folder that is not entered: unreadable, or a link."""
  out = []
  for folder, folders, files in os.walk(base, onerror=lambda error: out.append(error.filename)):
    folders[:] = [name for name in folders if name not in skips and not name.startswith('.')]
    out += [os.path.join(folder, name) for name in files if not name.startswith('.')]
    out += [path for name in folders if os.path.islink(path := os.path.join(folder, name))]
  return out


def _glob(pattern: str) -> set[str]:
  """What glob.glob finds, but ** enters every folder once, however many links lead to it or around in a circle."""
  parts = pattern.split('/')
  if '**' not in parts:
    return set(glob.glob(pattern))
  place = parts.index('**')
  head, tail = '/'.join(parts[:place] + ['']), parts[place + 1:] or ['*']
  return {match for base in (glob.glob(head) if head else [''])
          for folder in _folders(base) for match in _glob(os.path.join(glob.escape(folder), *tail))}


def _folders(base: str) -> Iterator[str]:
  """`base` and every folder below it but the hidden ones, each once; through links where no other way leads to it."""
  seen, ahead = set(), [base]
  while ahead:
    links: list[str] = []
    for top in sorted(ahead):
      for folder, folders, _ in os.walk(top or '.', onerror=lambda error: log.warning('%s', error)):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
          folders.clear()
          continue
        seen.add((stat.st_dev, stat.st_ino))
        yield folder
        folders[:] = [name for name in folders if not name.startswith('.')]
        links += [path for name in folders if os.path.islink(path := os.path.join(folder, name))]
    ahead = links


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
