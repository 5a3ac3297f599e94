"""Texts at a URL (gs://, s3://, https://, hf:// and whatever else fsspec reads), copied once below the cache.

A copy is made anew where the size or the mark of the version of the original is another one; where the original cannot
be asked, the copy that is there is used, and said so.
"""

import hashlib
import logging
import os
import pathlib
import re
from typing import Any

from foundation import files, reading
from foundation.errors import ConfigError, one_line
from foundation.printable import printable

BLOCK = 1 << 20
MARKS = ('etag', 'ETag', 'md5Hash', 'blob_id', 'checksum', 'mtime', 'LastModified', 'last_modified', 'updated',
         'created')

log = logging.getLogger(__name__)


def is_remote(path: str) -> bool:
  """Whether a path is a URL."""
  return bool(re.match(r'[A-Za-z][\w+.-]*://', path))


def fetched(key: str, url: str, root: pathlib.Path) -> str:
  """The path of the local copy of what a URL names: of a file, or of a folder or glob with its files below it.

  Args:
    key: the setting that holds the URL. root: the folder of copies.

  Raises:
    ConfigError: fsspec or the package of the URL's scheme is missing, nothing is there, or it cannot be copied.
  """
  folder = root / hashlib.sha256(url.encode()).hexdigest()[:16]
  index = folder.with_suffix('.json')
  try:
    known: dict[str, Any] = reading.value(index, {'files': dict})['files']
  except (OSError, ConfigError):
    known = {}
  try:
    system, found = _list(key, url)
  except ConfigError:
    raise
  except Exception as error:  # each file system has its own
    if known and all((folder / name).is_file() for name in known):
      log.warning("%s is '%s', which cannot be asked (%s); the copy of it in data.cache is read", key, url,
                  one_line(error)[:200])
      return _local(folder, known, url)
    raise ConfigError(f"{key} is '{printable(url)}', which cannot be read ({one_line(error)[:200]}); expected a URL that "
                      'fsspec can read, nearest is a copy of it here') from None
  try:
    root.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.with_suffix('.lock')):
      marks = {}
      for name, (path, mark) in found.items():
        if known.get(name) != mark or not (folder / name).is_file():
          _copy(key, system, path, folder / name)
        marks[name] = mark
        if name in known and known[name] != mark:
          log.info('%s has changed at its URL: copied anew', name)
      for gone in set(known) - set(found):
        (folder / gone).unlink(missing_ok=True)
      files.write_json(index, {'url': url, 'files': marks})
  except OSError as error:
    raise ConfigError(f"data.cache is '{root.parent}', which cannot be written ({error.strerror or error}); expected a "
                      'folder with room for a copy, nearest is another data.cache') from None
  return _local(folder, marks, url)


def _local(folder: pathlib.Path, names: dict[str, Any], url: str) -> str:
  single = len(names) == 1 and next(iter(names)) == url.rstrip('/').rpartition('/')[2]
  return str(folder / next(iter(names)) if single else folder)


def _list(key: str, url: str) -> tuple[Any, dict[str, tuple[str, Any]]]:
  """(the file system, {name below the folder of the copy: (path there, mark of its version)})."""
  try:
    import fsspec
    system, path = fsspec.core.url_to_fs(url)
  except ImportError as error:
    raise ConfigError(f"{key} is '{printable(url)}', which needs a package ({one_line(error)[:120]}); expected pip install "
                      "-e '.[data]' and what that names, nearest is a copy of it here") from None
  except ValueError as error:
    raise ConfigError(f"{key} is '{printable(url)}': {one_line(error)[:120]}; expected gs://, s3://, https:// or hf://"
                      ) from None
  if re.search(r'[*?[]', path):
    paths = [found for found in system.glob(path) if not system.isdir(found)]
    base = re.split(r'[*?[]', path)[0].rpartition('/')[0]
  elif system.isdir(path):
    paths, base = system.find(path), path.rstrip('/')
  else:
    paths, base = [path], path.rpartition('/')[0]
  out = {}
  for found in sorted(paths):
    name = found[len(base):].lstrip('/') if found.startswith(base) else found.rpartition('/')[2]
    if not name or any(part in ('', '.', '..') for part in name.split('/')):
      raise ConfigError(f"{key} is '{printable(url)}', which has a file '{printable(found)}'; expected names below it")
    info = system.info(found)
    out[name] = found, [info.get('size'), next((str(info[mark]) for mark in MARKS if info.get(mark)), '')]
  if not out:
    raise ConfigError(f"{key} is '{printable(url)}', where there is no file; expected one")
  return system, out


def _copy(key: str, system: Any, path: str, target: pathlib.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
  try:
    try:
      source = system.open(path, 'rb')
    except Exception as error:
      raise ConfigError(f"{key}: '{printable(path)}' cannot be read ({one_line(error)[:200]}); expected a readable file"
                        ) from None
    with source, open(temporary, 'wb') as file:
      while True:
        try:
          block = source.read(BLOCK)
        except Exception as error:
          raise ConfigError(f"{key}: '{printable(path)}' broke off ({one_line(error)[:200]}); expected a readable file, "
                            'nearest is to start again') from None
        if not block:
          break
        file.write(block)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)
