"""Files that are either there in full or not there."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from foundation.errors import ConfigError

try:
  import fcntl
except ImportError:  # not a POSIX system: as on a file system without locks
  fcntl = None  # type: ignore[assignment]  # a module, or none

log = logging.getLogger(__name__)


def expand(key: str, text: str) -> pathlib.Path:
  """The path `text` with ~ written out. Raises ConfigError, naming `key`, if no such path can be."""
  try:
    path = pathlib.Path(text).expanduser()
    path.exists()
  except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown home, a zero byte
    reason = getattr(error, 'strerror', None) or error
    raise ConfigError(f"{key} is '{text}', which cannot be a path ({reason})") from None
  return path


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
  """Gives an OSError inside the name of the file, which a failed write or flush does not know."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      error.filename = str(path)
    raise


def sync(path: pathlib.Path) -> None:
  """Puts a file, or the names in a folder, on the disk itself. Raises OSError, but not where a system cannot do that."""
  try:
    number = os.open(path, os.O_RDONLY)
    try:
      os.fsync(number)
    finally:
      os.close(number)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR):
      raise


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes `text` under a temporary name in the same folder, then renames it into place."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with naming(path), open(temporary, 'w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)
  finally:
    temporary.unlink(missing_ok=True)


def write_new(path: pathlib.Path, data: bytes) -> None:
  """Writes a file that is not there yet, in full or not at all. Raises FileExistsError if it appeared meanwhile."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with naming(path), open(temporary, 'xb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.link(temporary, path)  # unlike a rename, it replaces nothing
    sync(path.parent)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """A JSON file of one value, atomically."""
  write_atomically(path, json.dumps(value, indent=2) + '\n')


def hold(file: IO[Any], wait: bool = True, waiting: Callable[[], None] = lambda: None) -> bool:
  """Whether the open file is now held against other processes; the system lets go of it when the last that has it open
  ends. False where another holds it and we do not `wait`, and on a file system without locks.

  Args:
    waiting: called before we wait for another process.
  """
  if not fcntl:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    if not wait:
      return False
    waiting()
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError as error:
    log.info('no lock on %s (%s)', file.name, error)
    return False
  return True


@contextlib.contextmanager
def lock(path: pathlib.Path, wait: bool = True) -> Iterator[bool]:
  """Holds the file at `path`, which stays, as `hold` does."""
  with open(path, 'wb') as file:
    yield hold(file, wait, lambda: log.info('waiting for another process that holds %s', path))


@contextlib.contextmanager
def claimed(path: pathlib.Path) -> Iterator[None]:
  """Holds the folder at `path` for this process; its file `.lock` says who holds it, and stays.

  Raises:
    ConfigError: another process holds it, which is named.
  """
  path.mkdir(parents=True, exist_ok=True)
  with open(os.open(path / '.lock', os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o666), 'r+b') as file:
    try:
      if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = file.read(1000).decode(errors='replace').strip() or 'another process'
      raise ConfigError(f'{path} is in use by {holder}; expected one process at a time, nearest is to wait for that '
                        'one or to stop it') from None
    except OSError as error:
      log.info('no lock on %s (%s)', file.name, error)  # a file system without them
    words = ' '.join(map(os.path.basename, sys.argv[:1])) + ' ' + ' '.join(sys.argv[1:])
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()} ({words.strip()[:300]})\n'.encode(errors='replace'))
    file.flush()
    yield
    file.truncate(0)


def append_rows(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """Adds rows to a JSON-lines file, all or none of them, also when other processes add theirs at the same moment."""
  left = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  with naming(path), open(path, 'a+b', buffering=0) as file:
    hold(file)
    file.seek(0)
    end = file.read().rfind(b'\n') + 1
    file.truncate(end)  # what a kill cut short is no row
    try:
      while left:
        left = left[file.write(left):]
      os.fsync(file.fileno())
    except OSError:
      file.truncate(end)
      raise


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a JSON-lines file of a run; a last line that a kill cut short is left out.

  Raises:
    ConfigError: a line is something else than an object with an integer `step`.
  """
  if not path.exists():
    return []
  rows = []
  for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], 1):
    if not line:
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if not isinstance(row, dict) or type(row.get('step')) is not int:
      raise ConfigError(f"{path}:{number} is damaged; expected a JSON object with an integer 'step', nearest is the "
                        'file without that line')
    rows.append(row)
  return rows
