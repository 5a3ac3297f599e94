"""Compresses a file under a trained model, or restores it: arithmetic coding, byte for byte the same.

Example:
  python -m experiments.compress --workdir=runs/quickstart novel.txt
  python -m experiments.compress --workdir=runs/quickstart --restore --output=again.txt novel.txt.lemma

The first writes novel.txt.lemma beside the file, the second restores it. Any run that predicts from left to right will
do: decoder, rnn, lstm, markov, and the n-grams of experiments.count. The same run at the same step restores the file,
and it must compute the same numbers: expect that of the same versions on the same kind of processor only. A damaged
file, another model, or text that came out wrong is refused, and nothing is written. Files are never overwritten; the
same command again finds its result and says so.
"""

import os
import pathlib

from absl import flags

from experiments.shared import launch
from foundation import files
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
RESTORE = flags.DEFINE_bool('restore', False, 'turn a compressed file back into what it was')
OUTPUT = flags.DEFINE_string('output', None, 'file to write; default: the name with .lemma added or taken off')
SUFFIX = '.lemma'


def target(source: pathlib.Path, data: bytes) -> pathlib.Path:
  """Where the result goes. Raises ConfigError if nothing can be there, or something is that cannot be the result of
  this `data` of the source.
  """
  from framework.coding import archive
  if OUTPUT.value:
    path = files.expand('--output', OUTPUT.value)
  elif not RESTORE.value:
    path = source.with_name(source.name + SUFFIX)
  elif source.suffix == SUFFIX:
    path = source.with_suffix('')
  else:
    raise config_lib.ConfigError(f"'{source}' does not end with {SUFFIX}; give --output=FILE")
  if path.exists() or path.is_symlink():
    there = path.read_bytes() if path.is_file() and not path.is_symlink() else b''
    if not archive.is_of(*((data, there) if RESTORE.value else (there, data))):
      raise exists(path)
  if not path.parent.is_dir():
    raise config_lib.ConfigError(f"--output is '{path}', in a folder that does not exist")
  return path


def exists(path: pathlib.Path) -> config_lib.ConfigError:
  return config_lib.ConfigError(f"'{path}' already exists; give another --output")


def load(workdir: pathlib.Path, config: config_lib.Config):
  """(tokenizer, fingerprint, rows -> predictor) of a run."""
  from framework import models
  from framework.coding import predictors
  from framework.data import tokenizer as tokenizer_lib
  from framework.models import contract
  from framework.training import run, setup
  tokenizer = tokenizer_lib.load(workdir / run.TOKENIZER)
  text = (workdir / run.TOKENIZER).read_text(encoding='utf-8')
  if hasattr(models.entry(config), 'predictor'):
    arrays, make = models.entry(config).predictor(workdir)
    return tokenizer, predictors.fingerprint(config, text, arrays), make
  contract.require(models.build(config, tokenizer.size), 'empty_cache', 'experiments.compress')
  trained = setup.load(workdir)
  module, params = trained.setup.module, trained.params
  return (tokenizer, predictors.fingerprint(config, text, params),
          lambda rows: predictors.Network(module, params, config.data.window, rows))


def main(source: str = '') -> int:
  if not source:
    raise config_lib.ConfigError('the file is missing; see --help for an example')
  workdir = launch.workdir_path(launch.required(WORKDIR))
  path = files.expand('the file', source)
  if not path.is_file():
    raise config_lib.ConfigError(f"'{path}' is no file; expected one to {'restore' if RESTORE.value else 'compress'}")
  from framework.coding import archive
  from framework.training import run
  config, data = run.read_config(workdir), path.read_bytes()
  out = target(path, data)
  launch.start_jax(config, devices=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else
                   os.cpu_count() or 1)

  from experiments.shared import progress
  tokenizer, fingerprint, make = load(workdir, config)
  try:
    with progress.bar() as show:
      if RESTORE.value:
        result = archive.unpack(data, tokenizer, fingerprint, make, show)
      else:
        packed = archive.pack(data, tokenizer, fingerprint, make, show)
        result = packed.data
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f"'{path}': {error}") from None
  line = f'{out}: {len(data):,} bytes to {len(result):,}'
  if data and not RESTORE.value:
    line += f', {8 * len(result) / len(data):.4f} bits/byte; the cross-entropy is {packed.bits / len(data):.4f}'
  print(line, flush=True)
  try:
    files.write_new(out, result)
  except FileExistsError:
    raise exists(out) from None
  return 0


if __name__ == '__main__':
  launch.run(main, words=1)
