"""Reads the folders that training runs and studies leave behind."""

import json
import os
import pathlib
from typing import Any

from foundation import files
from framework import config as config_lib

# What marks a folder: a training run, a study, a section of a page that another program has written.
MARKS = ('config.json', 'verdict.json', 'section.json')


def find(roots: list[pathlib.Path]) -> list[pathlib.Path]:
  """The folders at and below `roots` that have a place on the page, sorted.

  What lies below a study or a section is its own affair: the runs there are shown only if they are asked for.

  Raises:
    ConfigError: a root is no folder, or nothing below it has a place on the page.
  """
  folders = []
  for root in roots:
    if not root.is_dir():
      around = [str(p) for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
      raise config_lib.ConfigError(f'--runs: {root} is no folder{config_lib.nearest(str(root), around)}')
    here = []
    for folder, below, names in os.walk(root):
      below[:] = sorted(b for b in below if b not in ('checkpoints', 'tensorboard') and not b.startswith('.'))
      if not set(MARKS).isdisjoint(names):
        here.append(pathlib.Path(folder))
      if 'verdict.json' in names or 'section.json' in names:
        below.clear()
    if not here:
      raise config_lib.ConfigError(f'--runs: nothing below {root} is a run or a study; expected a folder with one of '
                                   f'{", ".join(MARKS)}')
    folders += here
  return list(dict.fromkeys(folders))


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """A JSON object of a run folder, None where there is none. Raises ConfigError if it is something else."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise config_lib.ConfigError(f'{path} cannot be read: {" ".join(str(error).split())}') from error
  if not isinstance(value, dict):
    raise config_lib.ConfigError(f'{path} holds {type(value).__name__}; expected a JSON object')
  return value


def state(run: dict[str, Any]) -> str:
  """'complete', 'stopped by SIGTERM', or how far an unfinished run has come."""
  if run['result']:
    return str(run['result'].get('status', ''))
  last = run['rows'][-1]['step'] if run['rows'] else 0
  return f"step {last} of {run['settings'].get('training.steps')}"


def load(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """A training run: name, folder, config.json as `config` and its settings, result.json and the rows of metrics."""
  config: Any = read(folder / 'config.json')  # every run has one
  settings = config.get('config')
  if not isinstance(settings, dict):
    raise config_lib.ConfigError(f"{folder / 'config.json'} has no 'config'; expected the config.json of a run")
  return {'name': name, 'folder': folder, 'config': config, 'settings': settings,
          'result': read(folder / 'result.json') or {}, 'rows': files.read_rows(folder / 'metrics.jsonl')}


def collect(roots: list[pathlib.Path]) -> list[dict[str, Any]]:
  """The training runs at and below `roots`, under names that tell them apart."""
  base = roots[0] if len(roots) == 1 else pathlib.Path(os.path.commonpath([root.parent for root in roots]))
  return [load(folder, folder.name if folder == base else relative(folder, base)) for folder in find(roots)
          if (folder / 'config.json').exists() and not (folder / 'verdict.json').exists()]


def relative(path: pathlib.Path, here: pathlib.Path) -> str:
  return os.path.relpath(path, here)
