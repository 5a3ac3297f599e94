"""Reads files that may come from somebody else: regular ones below their folder, of bounded size, JSON of a known form.

A folder from a colleague or from the web may hold a link to any file of its reader's, a pipe that never ends, gigabytes
of nothing, or a text where a number is expected. All of that is one ConfigError here. Names and texts from such files
go through `foundation.printable` besides, wherever they are shown.
"""

import contextlib
import json
import math
import os
import pathlib
import stat
from collections.abc import Iterator
from numbers import Real
from typing import Any, BinaryIO

from foundation.errors import ConfigError
from foundation.printable import printable

LARGEST = 64 << 20  # bytes of a file that is read whole
DEPTH = 32  # of lists and objects in one another
DIGITS = 300  # of a whole number: beyond some 308 it is no float
HUGE = 1e36  # no count and no measurement is larger
# Of os.open: a pipe is not waited for and a link not followed.
UNTRUSTED = getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_CLOEXEC', 0)
_SAID: dict[Any, str] = {str: 'a text', int: 'a whole number', float: 'a finite number', Real: 'a number',
                         bool: 'true or false', list: 'a list', dict: 'a JSON object', None: 'null'}


def inside(path: pathlib.Path, below: pathlib.Path | None = None) -> pathlib.Path:
  """The file that `path` leads to, without links; it lies below the folder `below`, by default that of `path`.

  Raises:
    FileNotFoundError: there is none.
    ConfigError: it lies elsewhere.
  """
  folder = path.parent if below is None else below
  try:
    real, folder = path.resolve(strict=True), folder.resolve()
  except FileNotFoundError:
    raise
  except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte, a file where a folder should be
    raise _unreadable(path, error) from error
  if not real.is_relative_to(folder):
    raise ConfigError(f'{printable(path)} is a link or a name that leaves its folder; expected a file below '
                      f'{printable(folder)}')
  return real


@contextlib.contextmanager
def opened(path: pathlib.Path, below: pathlib.Path | None = None) -> Iterator[BinaryIO]:
  """The regular file at `path`, see `inside`, open for reading. No pipe, device or socket is waited for.

  Raises:
    FileNotFoundError: there is none.
    ConfigError: it is something else, or cannot be read.
  """
  real = inside(path, below)
  try:
    with open(real, 'rb', opener=lambda name, how: os.open(name, how | UNTRUSTED)) as file:
      if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise ConfigError(f'{printable(path)} is no regular file; expected one')
      yield file
  except FileNotFoundError:
    raise
  except OSError as error:
    raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> ConfigError:
  return ConfigError(f"{printable(path)} cannot be read: {printable(getattr(error, 'strerror', None) or error)}")


def data(path: pathlib.Path, below: pathlib.Path | None = None, most: int = LARGEST) -> bytes:
  """The bytes of a file, see `opened`. Raises ConfigError if there are more than `most`."""
  with opened(path, below) as file:
    content = file.read(most + 1)
  if len(content) > most:
    raise ConfigError(f'{printable(path)} has more than {most:,} bytes; expected at most so many')
  return content


def text(path: pathlib.Path, below: pathlib.Path | None = None, most: int = LARGEST) -> str:
  """The text of a file in UTF-8, see `data`."""
  try:
    return data(path, below, most).decode()
  except UnicodeDecodeError as error:
    raise ConfigError(f'{printable(path)} cannot be read: byte {error.start} is not UTF-8') from None


def loads(content: str | bytes) -> Any:
  """A JSON value of bounded depth and numbers. Raises ValueError."""
  try:
    value = _DECODER.decode(content.decode() if isinstance(content, bytes) else content)
  except RecursionError:
    raise ValueError(f'it is nested more than {DEPTH} deep') from None
  layer = [value]
  for _ in range(DEPTH):
    layer = [inner for outer in layer if isinstance(outer, (dict, list))
             for inner in (outer.values() if isinstance(outer, dict) else outer)]
    if not layer:
      return value
  raise ValueError(f'it is nested more than {DEPTH} deep')


def _whole(digits: str) -> int:
  if len(digits) > DIGITS:
    raise ValueError(f'a number has {len(digits)} digits')
  return int(digits)


_DECODER = json.JSONDecoder(parse_int=_whole)


def value(path: pathlib.Path, kind: Any = dict, below: pathlib.Path | None = None, most: int = LARGEST) -> Any:
  """The JSON value of a file, see `text`, which is of the `kind`, see `misfit`.

  Raises:
    FileNotFoundError: there is no file.
    ConfigError: anything else is wrong with it.
  """
  try:
    found = loads(text(path, below, most))
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f'{printable(path)} cannot be read: {printable(error, 200)}') from None
  check(path, found, kind)
  return found


def check(path: object, found: Any, kind: Any) -> None:
  """Raises ConfigError, which names the file, if what was found in it is not of the `kind`, see `misfit`."""
  if wrong := misfit(found, kind):
    raise ConfigError(f'{printable(path)}: {wrong}')


def misfit(found: Any, kind: Any, name: str = '') -> str:
  """What is wrong with a JSON value, as in "steps is 'x'; expected a whole number"; '' if it is of the kind.

  Args:
    kind: str, bool, list, dict: of that type. int, float: a number, finite and below 1e36. Real: any number, also NaN.
      None: null. A tuple: any of its kinds. [k]: a list of k. {'key': k, ...}: an object whose keys are of these kinds,
      beside others; one that may be None may be missing. {str: k}: an object of values of k.
    name: of the value, for the message.
  """
  if isinstance(kind, tuple):
    each = [misfit(found, one, name) for one in kind]
    return '' if '' in each else each[0]
  if isinstance(kind, list) and type(found) is list:
    return next(filter(None, (misfit(v, kind[0], f'{name}[{i}]') for i, v in enumerate(found))), '')
  if isinstance(kind, dict) and type(found) is dict:
    kinds = dict.fromkeys(found, kind[str]) if str in kind else kind
    dot = name and f'{name}.'
    each = [misfit(found.get(key), of, f'{dot}{printable(key, 60)}') for key, of in kinds.items()]
    return next(filter(None, each), '')
  if not isinstance(kind, (list, dict)) and _is(found, kind):
    return ''
  what = _SAID[kind if kind is None or isinstance(kind, type) else type(kind)]
  return f"{name or 'the value'} is {'null' if found is None else printable(repr(found), 60)}; expected {what}"


def _is(found: Any, kind: Any) -> bool:
  if kind is None:
    return found is None
  if kind in (int, float):
    return type(found) in (int, kind) and math.isfinite(found) and abs(found) < HUGE
  return type(found) in (int, float) if kind is Real else type(found) is kind
