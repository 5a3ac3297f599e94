"""A run is a folder: config.json when it starts, result.json when it ends."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

from foundation import files
from framework import config as config_lib
from framework.data import corpus as corpus_lib

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain', 'tokenizers')
TOKENIZER = 'tokenizer.json'
ROWS = ('metrics.jsonl', 'timing.jsonl')


def _git_commit() -> str:
  """The commit of the code, with '+' if the tree differs from it; '' outside a checkout."""
  here = pathlib.Path(__file__).parent
  def git(*words):
    try:
      return subprocess.run(['git', *words], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
      return ''
  commit = git('rev-parse', 'HEAD').strip()
  return commit + ('+' if commit and git('status', '--porcelain', '--untracked-files=no').strip() else '')


def open_folder(workdir: pathlib.Path, config: config_lib.Config, corpus: corpus_lib.Corpus, resume: bool) -> None:
  """Creates the run's folder, or checks that the run in it is the one that `config` describes.

  Raises:
    ConfigError: the folder holds something else, another config, or a run that was not asked to be resumed.
  """
  path = workdir / 'config.json'
  flat = config_lib.flatten(config)
  if path.exists():
    saved = read_config_file(path)
    if not resume:
      raise config_lib.ConfigError(f'workdir {workdir} already holds a run; give --resume to continue it, '
                                   'or another --workdir')
    begun = config_lib.flatten(config_lib.Config()) | saved['config']  # settings that are younger than the run
    for key in flat | begun:  # in the order of the fields: a setting before what was derived from it
      if begun.get(key) != flat.get(key):
        raise config_lib.ConfigError(f"workdir {workdir} holds a run whose {key} is {begun.get(key)!r}; "
                                     f'this config has {flat.get(key)!r}: give the same, or another --workdir')
    check_corpus(workdir, corpus)
    for name in ROWS:
      files.read_rows(workdir / name)  # now, not when the model has been compiled
    return
  if workdir.exists() and not workdir.is_dir():
    raise config_lib.ConfigError(f'workdir {workdir} is a file; expected a folder')
  # A kill between the two files below leaves a tokenizer alone: still an empty run.
  strangers = [p.name for p in workdir.iterdir() if not p.name.startswith('.') and p.name != TOKENIZER] \
      if workdir.exists() else []
  if strangers:
    raise config_lib.ConfigError(f'workdir {workdir} is not empty and holds no run (found {sorted(strangers)[0]}); '
                                 'give an empty or a new folder')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      corpus.tokenizer.save(workdir / TOKENIZER)
      files.write_json(path, {
          'config': flat, 'corpus': corpus.digest, 'git_commit': _git_commit(), 'command': sys.argv,
          'versions': {'python': platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
          'xla_flags': os.environ.get('XLA_FLAGS', ''),
      })
  except OSError as error:
    raise config_lib.ConfigError(f'workdir {workdir} cannot be written: {error.strerror or error}') from error


def check_corpus(workdir: pathlib.Path, corpus: corpus_lib.Corpus) -> None:
  """Raises ConfigError if the run in `workdir` was on other text."""
  saved = read_config_file(workdir / 'config.json')['corpus']
  if saved != corpus.digest:
    raise config_lib.ConfigError(f'workdir {workdir} holds a run on corpus {saved[:12]}; the text at data.path is now '
                                 f'{corpus.digest[:12]}: give that text back, or train in another --workdir')


def read_config_file(path: pathlib.Path) -> dict[str, Any]:
  try:
    saved = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(saved['config'], dict) or not isinstance(saved['corpus'], str):
      raise ValueError('no config in it')
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise config_lib.ConfigError(f"{path} cannot be read as a run's config: {' '.join(str(error).split())}") from error
  return saved


def read_config(workdir: pathlib.Path) -> config_lib.Config:
  """The config of the run in `workdir`. Raises ConfigError if there is none."""
  path = workdir / 'config.json'
  if not path.exists():
    beside = workdir.parent.iterdir() if workdir.parent.is_dir() else []
    around = [p.name for p in beside if (p / 'config.json').exists()]
    raise config_lib.ConfigError(f'workdir {workdir} holds no run; expected a folder with config.json'
                                 f'{config_lib.nearest(workdir.name, around)}')
  config = config_lib.from_flat(read_config_file(path)['config'])
  return config_lib.resolve(config)
