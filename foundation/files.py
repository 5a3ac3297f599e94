"""Files that are either there in full or not there."""

import contextlib
import errno
import glob
import io
import json
import logging
import os
import pathlib
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from foundation import reading, sealed
from foundation.errors import ConfigError
from foundation.printable import printable

try:
  import fcntl
except ImportError:  # not a POSIX system: as on a file system without locks
  fcntl = None  # type: ignore[assignment]  # a module, or none

log = logging.getLogger(__name__)

NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
ROWS = 1 << 30  # bytes of a file of rows: one a step for ten million steps


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
  """Puts a file, or the names in a folder, on the disk itself. Raises OSError, not where a system cannot do that."""
  try:
    number = os.open(path, os.O_RDONLY)
    try:
      os.fsync(number)
    finally:
      os.close(number)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR):
      raise


def alive(number: str) -> bool:
  """Whether this machine has a process of the number."""
  try:
    os.kill(int(number), 0)
  except (ProcessLookupError, ValueError, OverflowError):
    return False
  except OSError:  # somebody else's
    pass
  return True


@contextlib.contextmanager
def _written(path: pathlib.Path, content: str | bytes) -> Iterator[pathlib.Path]:
  """A new file beside `path` that holds the content, on the disk itself; removed in the end if it is still there."""
  mine = f'.{path.name}.{socket.gethostname()}.'
  temporary = path.with_name(f'{mine}{os.getpid()}.tmp')
  for left in path.parent.glob(f'{glob.escape(mine)}*.tmp'):
    if left == temporary or not alive(left.name.split('.')[-2]):  # what a dead process left, or somebody's link
      left.unlink(missing_ok=True)
  try:
    with naming(path), open(temporary, 'xb') as file:
      file.write(content.encode() if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    yield temporary
  finally:
    temporary.unlink(missing_ok=True)


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes `content` under a temporary name in the same folder, then renames it into place."""
  with _written(path, content) as temporary:
    os.replace(temporary, path)
  sync(path.parent)


def write_new(path: pathlib.Path, data: bytes) -> None:
  """Writes a file that is not there yet, in full or not at all; one that holds these very bytes is left as it is.

  Raises:
    FileExistsError: something else is there, or appeared meanwhile.
  """
  try:
    with _written(path, data) as temporary:
      try:
        os.link(temporary, path)  # unlike a rename, it replaces nothing
      except OSError as error:
        if error.errno not in NO_LINKS:
          raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # the name is ours: a rename replaces that
        os.replace(temporary, path)
    sync(path.parent)
  except FileExistsError:
    try:
      same = reading.data(path, most=len(data)) == data
    except (OSError, ConfigError):
      same = False
    if not same:
      raise


def write_json(path: pathlib.Path, value: Any) -> None:
  """A JSON file of one value, atomically."""
  write_atomically(path, json.dumps(value, indent=2) + '\n')


def write_sealed(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  """A JSON file of an object with its digest, see foundation.sealed, atomically."""
  write_json(path, sealed.seal(value))


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


def own(path: pathlib.Path) -> io.FileIO:
  """The file at `path`, made if there is none, open for reading and for writing at its end, and never emptied.

  Raises:
    ConfigError: it is a link, which may lead to a file of somebody else's, or no regular file.
  """
  try:
    file = open(path, 'a+b', buffering=0, opener=lambda name, how: os.open(name, how | reading.UNTRUSTED, 0o666))
  except OSError as error:
    if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
      raise
    raise ConfigError(f'{printable(path)} is a link or no regular file; expected a file of our own') from None
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise ConfigError(f'{printable(path)} is a link or no regular file; expected a file of our own')
  return file


@contextlib.contextmanager
def lock(path: pathlib.Path, wait: bool = True) -> Iterator[bool]:
  """Holds the file at `path`, which stays, as `hold` does."""
  with own(path) as file:
    yield hold(file, wait, lambda: log.info('waiting for another process that holds %s', path))


@contextlib.contextmanager
def claimed(path: pathlib.Path) -> Iterator[None]:
  """Holds the folder at `path` for this process; its file `.lock` says who holds it, and stays.

  Raises:
    ConfigError: another process holds it, which is named.
  """
  path.mkdir(parents=True, exist_ok=True)
  with own(path / '.lock') as file:
    def refuse() -> None:
      file.seek(0)
      holder = printable(file.read(1000).decode(errors='replace').strip(), 400) or 'another process'
      raise ConfigError(f'{printable(path)} is in use by {holder}; expected one process at a time, nearest is to wait '
                        'for that one or to stop it') from None
    hold(file, waiting=refuse)
    words = ' '.join([*map(os.path.basename, sys.argv[:1]), *sys.argv[1:]])
    with contextlib.suppress(OSError):  # who holds it is only a help: a full disk is no reason to stop
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()} ({words[:300]})\n'.encode(errors='replace'))
    yield
    with contextlib.suppress(OSError):
      file.truncate(0)


def append_rows(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """Adds rows, sealed, to a JSON-lines file, see `append_lines`."""
  append_lines(path, ''.join(json.dumps(sealed.seal(row)) + '\n' for row in rows))


def append_lines(path: pathlib.Path, text: str) -> None:
  """Adds lines to a file, all or none of them, also when other processes add theirs at the same moment."""
  left = text.encode()
  with naming(path), own(path) as file:
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


def read_rows(path: pathlib.Path, key: str = 'step', kind: Any = int) -> list[dict[str, Any]]:
  """The rows of a JSON-lines file of a run; a last line that a kill cut short is left out.

  Args:
    key, kind: what every row has, see reading.misfit.

  Raises:
    ConfigError: a line is something else than an object with that, or was changed after it was sealed; or it is no file
      to read.
  """
  try:
    lines = reading.data(path, most=ROWS).split(b'\n')[:-1]
  except FileNotFoundError:
    return []
  rows = []
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      row = reading.loads(line)
    except ValueError:
      row = None
    if reading.misfit(row, {key: kind}):
      an = 'an integer ' if kind is int else ''
      raise ConfigError(f"{printable(path)}:{number} is damaged; expected a JSON object with {an}'{key}', nearest is the "
                        'file without that line')
    rows.append(sealed.opened(row, f'{printable(path)}:{number}'))
  return rows
