"""The source files of a corpus: which files data.path names. What they say is read by framework/data/texts.py.

What cannot be found or read raises a ConfigError that names the setting and the file.
"""

import collections
import dataclasses
import glob
import importlib
import logging
import os
import pathlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from typing import Any

from framework.config import ConfigError, nearest

BLOCK = 1 << 20  # bytes read at a time
TEXTS = ('.txt', '.py', '.md', '.jsonl')
COMPRESSED = ('.gz', '.bz2', '.xz', '.zst')  # of texts
TABLES = ('.parquet', '.arrow', '.feather')
ARRAYS = ('.bin', '.npy')  # of token ids
SUFFIXES = TEXTS + TABLES
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
  title: str  # what its documents are named by: the same for the same rows in any form, so that the same are held out

  def changed(self) -> bool:
    try:
      now = os.stat(self.path)
    except OSError:
      return True
    return (now.st_size, now.st_mtime_ns) != (self.size, self.modified)


# Which files


def find(key: str, path: str, ours: str | os.PathLike = '', ids: bool = False) -> list[Source]:
  """The readable files that `path` names, each once, in the order of their names. The log says what is left out.

  Args:
    ours: a folder of our own files, which are nobody's texts though it may lie among them.
    ids: arrays of token ids are looked for, not texts.

  Raises:
    ConfigError: there is none, one that should be read cannot be, or most of the bytes would be left out.
  """
  if not path:
    return _embedded()
  path = os.path.expanduser(path)
  expected = f"expected files that end in {', '.join(ARRAYS)}" if ids else \
      f"expected files that end in {', '.join(SUFFIXES)} or one of {', '.join(TEXTS)} and {', '.join(COMPRESSED)}"
  if os.path.isfile(path):
    if not _readable(path, ids):
      near = 'data.ids with the type of its ids' if kind(path) in ARRAYS else \
          f"a copy named '{os.path.basename(path).split('.')[0]}.txt'"
      raise ConfigError(f"{key} is '{path}'; {expected}, nearest is {near}")
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
  whys = {match: _why_not(match, ids) for match in paths}
  sources = [_source(key, match, base) for match in paths if not whys[match]]
  if not sources:
    other = f", nearest is '{min(paths)}'" if paths else ', but there is no file at all'
    raise ConfigError(f"{key} is '{path}', where no file can be read; {expected}{other}")
  _say_what_is_left_out(f"{key} is '{path}'", base, sources, {match: why for match, why in whys.items() if why})
  return _once(sources, base)


def _why_not(path: str, ids: bool) -> str:
  """Why `path` is left out, '' if it is not: a text that cannot be opened is not left out, it is refused later."""
  if os.path.isdir(path):  # the walk names a folder only where it did not enter it
    return 'links to a folder' if os.path.islink(path) else 'unreadable folders'
  if os.path.exists(path) and not os.path.isfile(path):
    return 'pipes or devices'
  return '' if _readable(path, ids) else f"not {', '.join(ARRAYS if ids else SUFFIXES)}"


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
    ending = kind(max(sources, key=lambda source: source.size).path)
    raise ConfigError(f'{setting}, where {texts_found} files of {read} bytes can be read and {others} of {size} bytes '
                      f'cannot ({listed}); expected most of the bytes to be text, nearest is a glob of the files '
                      f"wanted, as '{os.path.join(base, '**', f'*{ending}')}'")
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
  return _titled([source for source in sources if source in kept])


def _titled(sources: list[Source]) -> list[Source]:
  """With the names by which documents are held out: of a table, an array or a compressed file those that its text would
  have, unless another file has them too. Gzipped files have names of their own since they could first be read."""
  def plain(name: str) -> str:
    if (ending := compression(name)) and ending != '.gz':
      return name.removesuffix(ending)
    return f'{name.removesuffix(kind(name))}.jsonl' if kind(name) in TABLES + ARRAYS else name
  times = collections.Counter(plain(source.name) for source in sources)
  return [dataclasses.replace(source, title=plain(source.name) if times[plain(source.name)] == 1 else source.name)
          for source in sources]


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


def compression(path: str) -> str:
  """The ending that says how a text is compressed, '' if it is not."""
  ending = os.path.splitext(path)[1]
  return ending if ending in COMPRESSED else ''


def kind(path: str) -> str:
  """The ending of a file that can be read, without that of its compression; '' of any other."""
  ending = os.path.splitext(path.removesuffix(compression(path)))[1]
  return ending if ending in (TEXTS if compression(path) else SUFFIXES + ARRAYS) else ''


def read_with(source: Source) -> list[str]:
  """The paths of a source and of what it cannot be read without."""
  index = os.path.splitext(source.path)[0] + '.idx'
  return [source.path] + [index] * (kind(source.path) == '.bin' and os.path.isfile(index))


def _readable(path: str, ids: bool) -> bool:
  return kind(path) in (ARRAYS if ids else SUFFIXES)


def needed(module: str, source: Source) -> Any:
  """A library that only some files need. Raises ConfigError, with what installs it, if it is not there."""
  try:
    return importlib.import_module(module)
  except ImportError:
    raise ConfigError(f"{source.key}: '{source.path}' needs {module}; expected pip install -e '.[data]', nearest is its "
                      'text as .jsonl') from None


def _source(key: str, path: str, base: str) -> Source:
  try:
    stat = os.stat(path)
  except OSError as error:
    raise unreadable(key, path, error) from None
  name = pathlib.PurePath(os.path.relpath(path, base or '.')).as_posix()
  return Source(key, path, name, stat.st_size, stat.st_mtime_ns, name)


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
