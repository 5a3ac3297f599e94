"""Finds what a fork adds: a file is an entry, known by its name, and the package's `__init__` says what it must hold.

Models, optimizers, schedules, tasks, studies, laws and RASP programs are all found here. A name is that of a file in
the package's folder; a path that ends in .py is a file anywhere else, so that a fork need not touch the package.
"""

from collections.abc import Sequence
import functools
import hashlib
import importlib
import importlib.util
import os
import pathlib
import re
import sys
import types
from typing import Any

from foundation.errors import ConfigError, nearest, one_line


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


def find(package: types.ModuleType, name: str, key: str, needs: Sequence[str]) -> types.ModuleType:
  """The entry called `name`, a module that holds everything in `needs`.

  Args:
    key: the setting or flag that the user gave, for messages.
    needs: what every entry of the package defines; files of the package without the first of these are no entries.

  Raises:
    ConfigError: there is no such entry, its file cannot be run, or it lacks something; the message names it.
  """
  if name.endswith('.py'):
    module = from_file(name, key)
  elif name in files(package):
    module = importlib.import_module(f'{package.__name__}.{name}')
  else:
    known = names(package, needs[0])
    raise ConfigError(f"{key} is '{name}'; expected one of {', '.join(known)}, or the path of a .py file"
                      f'{nearest(name, known)}')
  missing = [need for need in needs if not hasattr(module, need)]
  if missing:
    raise ConfigError(f"{key} is '{name}', whose file has no '{missing[0]}'; expected {', '.join(needs)}, as the "
                      f'docstring of {package.__name__} says{nearest(name, names(package, needs[0]))}')
  return module


def from_file(path: str, key: str) -> types.ModuleType:
  """The module of a Python file outside the packages; the same file gives the same module again."""
  full = pathlib.Path(os.path.expanduser(path)).resolve()
  if full.suffix != '.py':
    raise ConfigError(f"{key} is '{path}'; expected a file of Python, whose name ends in .py")
  if not full.is_file():
    around = [str(p) for p in full.parent.glob('*.py')] if full.parent.is_dir() else []
    raise ConfigError(f"{key} is '{path}', which does not exist{nearest(str(full), around)}")
  return _run(full, path, key, full.stat().st_mtime_ns)


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
  except Exception as error:  # whatever a user's file does
    raise ConfigError(f"{key} is '{path}', which fails ({type(error).__name__}: {one_line(error)}); expected a file "
                      'that Python can run') from None
  return module
