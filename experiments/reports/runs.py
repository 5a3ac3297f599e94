"""Reads the folders that training runs and studies leave behind, here or with somebody else."""

import os
import pathlib
from typing import Any

from foundation import files, reading
from foundation.errors import one_line
from foundation.printable import printable
from framework import config as config_lib

# What marks a folder: a training run, a study, a section of a page that another program has written.
MARKS = ('config.json', 'verdict.json', 'section.json')

# What the pages ask of the files of a run, see reading.misfit; whatever else they hold is shown as it is.
NUMBER = (float, None)
CONFIG = {'config': {'training.steps': NUMBER}, 'versions': ({str: str}, None), 'command': (list, None)}
RESULT = {'status': (str, None), 'loss_by_position': ([NUMBER], None)} | dict.fromkeys(
    ('bits_per_byte', 'loss_nats_per_token', 'params_total', 'tokens', 'epochs', 'flops_train_exact', 'seconds', 'steps'),
    NUMBER)
METRICS = {'loss': NUMBER, 'tokens': float, 'validation_loss': NUMBER, 'validation_bits_per_byte': NUMBER}
TIMING = dict.fromkeys(('seconds', 'eta_seconds', 'tokens_per_second'), NUMBER)


def find(roots: list[pathlib.Path]) -> list[pathlib.Path]:
  """The folders at and below `roots` that have a place on the page, sorted.

  What lies below a study or a section is its own affair: the runs there are shown only if they are asked for.

  Raises:
    ConfigError: a root is no folder, or nothing below any of them has a place on the page.
  """
  folders: list[pathlib.Path] = []
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
    folders += here
  if not folders:
    raise config_lib.ConfigError(_nothing(roots[0]))
  return list(dict.fromkeys(folders))


def _nothing(root: pathlib.Path) -> str:
  return (f'--runs: nothing below {printable(root)} is a run or a study; expected a folder with one of '
          f'{", ".join(MARKS)}')


def read(path: pathlib.Path, kind: Any = dict) -> dict[str, Any] | None:
  """A JSON object of a run folder, None where there is none. Raises ConfigError if it is not of the kind."""
  try:
    return reading.value(path, kind)
  except FileNotFoundError:
    return None


def rows(path: pathlib.Path, kind: Any) -> list[dict[str, Any]]:
  """The rows of a JSON-lines file, all of the kind. Raises ConfigError."""
  found = files.read_rows(path)
  reading.check(path, found, [kind])
  return found


def state(run: dict[str, Any]) -> str:
  """'complete', 'stopped by SIGTERM', or how far an unfinished run has come."""
  if run['result']:
    return printable(run['result'].get('status') or '', 60)
  last = run['rows'][-1]['step'] if run['rows'] else 0
  return f"step {last} of {run['settings'].get('training.steps')}"


def load(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """A training run: name, folder, config.json as `config` and its settings, result.json and the rows of metrics and
  timing. Raises ConfigError.
  """
  path = folder / 'config.json'
  config: Any = read(path)
  if config is None or not isinstance(config.get('config'), dict):
    raise config_lib.ConfigError(f"{printable(path)} has no 'config'; expected the config.json of a run")
  reading.check(path, config, CONFIG)
  return {'name': printable(name, 120), 'folder': folder, 'config': config, 'settings': config['config'],
          'result': read(folder / 'result.json', RESULT) or {}, 'rows': rows(folder / 'metrics.jsonl', METRICS),
          'timing': rows(folder / 'timing.jsonl', TIMING)}


def gather(roots: list[pathlib.Path]) -> tuple[list[dict[str, Any]], list[str]]:
  """(the training runs at and below `roots`, under names that tell them apart; a line for each that cannot be read)."""
  base = roots[0] if len(roots) == 1 else pathlib.Path(os.path.commonpath([root.parent for root in roots]))
  found = find(roots)
  runs, wrong = [], [_nothing(root) for root in roots if not any(folder.is_relative_to(root) for folder in found)]
  for folder in found:
    if 'config.json' in os.listdir(folder) and not (folder / 'verdict.json').exists():
      try:
        runs.append(load(folder, folder.name if folder == base else relative(folder, base)))
      except config_lib.ConfigError as error:
        wrong.append(one_line(error))
  return runs, wrong


def collect(roots: list[pathlib.Path]) -> list[dict[str, Any]]:
  """The training runs at and below `roots`, see `gather`. Raises ConfigError for the first that cannot be read."""
  runs, wrong = gather(roots)
  if wrong:
    raise config_lib.ConfigError(wrong[0])
  return runs


def relative(path: pathlib.Path, here: pathlib.Path) -> str:
  return os.path.relpath(path, here)
