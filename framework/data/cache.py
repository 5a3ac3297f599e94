"""Folders of a cache that several processes fill at once: each is written under a temporary name, under a lock where
the file system has one, and appears by one rename. What a dead process leaves is removed by the next.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable

from foundation import files


def temporary(folder: pathlib.Path) -> pathlib.Path:
  """A new folder beside `folder`, which `clean` knows by its name."""
  path = folder.with_name(f'{folder.name}.{secrets.token_hex(4)}.tmp')
  path.mkdir()
  return path


def flush(file) -> None:
  """To the disk itself: a rename must not overtake what it publishes."""
  file.flush()
  os.fsync(file.fileno())


def publish(new: pathlib.Path, folder: pathlib.Path, sound: Callable[[pathlib.Path], bool]) -> None:
  """Renames `made` to `folder`, unless a `sound` one is there; a damaged one is replaced."""
  try:
    os.rename(new, folder)
  except OSError:
    if not folder.exists():
      raise
    if sound(folder):  # another process, on a file system without locks
      shutil.rmtree(new, ignore_errors=True)
      return
    damaged = temporary(folder)
    os.rename(folder, damaged)  # onto an empty folder, which a rename replaces
    os.rename(new, folder)
    shutil.rmtree(damaged, ignore_errors=True)


def clean(root: pathlib.Path, mine: str) -> None:
  """Removes the temporaries of dead processes. A live process holds the lock of its digest; we hold that of `mine` and
  have made no temporary yet."""
  for left in root.glob('*.tmp'):
    digest = left.name.split('.')[0]
    with contextlib.nullcontext(True) if digest == mine else files.lock(root / f'{digest}.lock', wait=False) as dead:
      if dead:
        shutil.rmtree(left, ignore_errors=True)


def sha256(path: pathlib.Path) -> str:
  """Of a file's content, read once a process while its inode, size and time of change stay."""
  about = path.stat()
  return _sha256(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(1024)
def _sha256(path: pathlib.Path, *version: int) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
