"""Finds what a fork adds: a file is an entry, known by its name, and the package's `__init__` says what it must hold.

Models, optimizers, schedules, tasks, studies, laws and RASP programs are all found here. A name is that of a file in
the package's folder; a path that ends in .py is a file anywhere else, so that a fork need not touch the package.

What such a file does wrong is one line that names it: `find` says what it lacks, `check_takes` which arguments its
functions should take, `gives` what they should return, and `blame` where in it an exception comes from.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
import types
from typing import Any

from foundation.errors import ConfigError, nearest, one_line
from foundation.printable import printable


def files(package: types.ModuleType) -> dict[str, pathlib.Path]:
  """The files of a package by name, but for folders and names that begin with an underscore."""
  return {path.stem: path for folder in package.__path__ for path in sorted(pathlib.Path(folder).glob('[!_]*.py'))}


def names(package: types.ModuleType, mark: str) -> list[str]:
  """The entries of a package: its files that define or import `mark` at their top level. None of them is run."""
  defines = re.compile(rf'^(def|class) {mark}\b|^{mark}\b.*=|^from .* import .*\b{mark}\b', re.MULTILINE)
  return [name for name, path in files(package).items() if defines.search(path.read_text(encoding='utf-8'))]


def absolute(name: str) -> str:
  """A name as it means the same in every folder: the path of a file in full, and whatever follows its colon."""
  path, colon, rest = name.partition(':')
  return f'{pathlib.Path(os.path.expanduser(path)).resolve()}{colon}{rest}' if path.endswith('.py') else name


def find(package: types.ModuleType, name: str, key: str, needs: Sequence[str], may: Sequence[str] = ()
         ) -> types.ModuleType:
  """The entry called `name`, a module that holds everything in `needs`.

  Args:
    key: the setting or flag that the user gave, for messages.
    needs: what every entry of the package defines, functions with what they are called with, as 'build(config)'; files
      of the package without the first of these are no entries.
    may: functions that an entry may define besides.

  Raises:
    ConfigError: there is no such entry, its file cannot be run, or it lacks something; the message names it.
  """
  first = needs[0].partition('(')[0]
  if name.endswith('.py'):
    module = from_file(name, key, package.__name__)
  elif name in files(package):
    module = importlib.import_module(f'{package.__name__}.{name}')
  else:
    known = names(package, first)
    raise ConfigError(f"{key} is '{name}'; expected one of {', '.join(known)}, or the path of a .py file"
                      f'{nearest(name, known)}')
  for need in needs:
    if not hasattr(module, need.partition('(')[0]):
      raise ConfigError(f"{key} is '{name}', whose file has no '{need.partition('(')[0]}'; expected {', '.join(needs)}, "
                        f'as the docstring of {package.__name__} says{nearest(name, names(package, first))}')
  for need in (*needs, *may):
    if need.endswith(')') and hasattr(module, need.partition('(')[0]):
      check_takes(getattr(module, need.partition('(')[0]), need, f"{key} is '{name}'", package.__name__)
  return module


def check_takes(function: Any, need: str, subject: str, see: str) -> None:
  """Raises ConfigError unless a function can be called as in `need`, say 'hidden(params, batch, keys_B=None)': with all
  of these arguments in order, and without those that have a value there.

  Args:
    subject: whose it is, as "model.name is 'mine.py'". see: where to read what is expected.
  """
  name, _, words = need.removesuffix(')').partition('(')
  given = [word for word in words.split(', ') if word]
  if not callable(function):
    raise ConfigError(f"{subject}, whose '{name}' is {printable(repr(function), 80)}; expected a function {need}, see "
                      f'{see}')
  try:
    signature = inspect.signature(function)
  except ValueError:  # of C, which does not tell
    return
  try:
    for arguments in (given, [word for word in given if '=' not in word]):
      signature.bind(*arguments)
  except TypeError:
    code = getattr(inspect.unwrap(function), '__code__', None)
    line = f' at line {code.co_firstlineno}' if code and code.co_filename in _FORKS else ''
    raise ConfigError(f"{subject}, whose {name}{printable(signature, 200)}{line} is called as {need}; expected that, "
                      f'see {see}') from None


def gives(result: Any, right: bool, expected: str, subject: str, what: str) -> Any:
  """The result of a fork's function, whose call is told as `what`. Raises ConfigError if it is not right."""
  if not right:
    shape, kind = getattr(result, 'shape', None), type(result).__name__
    given = repr(result) if result is None or isinstance(
        result, (str, int, float, list, tuple, dict)) else \
        kind if shape is None else f'an array of shape {tuple(shape)}, {getattr(result, "dtype", kind)}'
    raise ConfigError(f'{subject}, whose {what} gives {printable(given, 80)}; expected {expected}')
  return result


def from_file(path: str, key: str, see: str = '') -> types.ModuleType:
  """The module of a Python file outside the packages; the same file gives the same module again.

  see: the package whose docstring says what such a file holds.
  """
  full = pathlib.Path(os.path.expanduser(path)).resolve()
  if full.suffix != '.py':
    raise ConfigError(f"{key} is '{path}'; expected a file of Python, whose name ends in .py")
  if not full.is_file():
    around = [str(p) for p in full.parent.glob('*.py')] if full.parent.is_dir() else []
    raise ConfigError(f"{key} is '{path}', which does not exist{nearest(str(full), around)}")
  _FORKS[str(full)] = (f"{key} is '{path}'", see)
  return _run(full, path, key, full.stat().st_mtime_ns)


_FORKS: dict[str, tuple[str, str]] = {}  # of each file outside the packages: what the user called it, and what to read


def place(error: BaseException, chain: bool = True) -> tuple[str, str]:
  """(a file outside the packages, ' in FUNCTION at line N') of the last line of such a file that an exception passed
  through; ('', '') if it passed through none."""
  seen: set[int] = set()
  cause: BaseException | None = error
  while cause is not None and id(cause) not in seen:
    seen.add(id(cause))
    if isinstance(cause, SyntaxError) and cause.filename in _FORKS:
      return cause.filename, f' at line {cause.lineno}'
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
      if frame.filename in _FORKS:
        return frame.filename, (f' in {frame.name}' if frame.name.isidentifier() else '') + f' at line {frame.lineno}'
    cause = (cause.__cause__ or cause.__context__) if chain else None
  return '', ''


def blame(error: BaseException) -> str:
  """An exception that passed through a file outside the packages, as one line that names the file and its line; '' of
  any other, which is a fault of ours."""
  file, where = place(error)
  if not file:
    return ''
  subject, see = _FORKS[file]
  what = one_line(error).partition(' The error occurred while tracing')[0]  # of JAX, which goes on for a page
  return (f'{subject}, which fails{where} ({type(error).__name__}: {what[:300]})'
          + (f'; see {see} for what is expected' if see else ''))


@contextlib.contextmanager
def blaming() -> Iterator[None]:
  """Turns what `blame` can tell of an exception into a ConfigError, and puts the file before a ConfigError that a
  function of ours raised because of what a file outside the packages gave it."""
  try:
    yield
  except ConfigError as error:
    file, where = place(error, chain=False)
    raised = error.__traceback__
    while raised and raised.tb_next:
      raised = raised.tb_next
    if not file or not raised or raised.tb_frame.f_code.co_filename == file or _FORKS[file][0] in str(error):
      raise
    raise ConfigError(f'{_FORKS[file][0]},{where}: {one_line(error)}') from error
  except Exception as error:
    said = blame(error)
    if not said:
      raise
    raise ConfigError(said) from error


@functools.cache
def _run(full: pathlib.Path, path: str, key: str, changed: int) -> types.ModuleType:
  name = f'{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}'
  spec: Any = importlib.util.spec_from_file_location(name, full)  # None only of what does not end in .py
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up
  try:
    spec.loader.exec_module(module)
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:  # whatever a user's file does
    raise ConfigError(f"{key} is '{path}', which fails{place(error)[1]} ({type(error).__name__}: {one_line(error)}); "
                      'expected a file that Python can run') from None
  return module
