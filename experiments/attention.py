"""Draws what a trained decoder attends to: a matrix of weights for every layer and head.

Example:
  python -m experiments.attention --workdir=runs/first --text='def first(x): return x[0]'

The picture is attention.svg in the run's folder, or in --output: a row of each matrix is a token that reads, a column
one that is read.
"""

from absl import flags

from experiments.shared import launch
from foundation import files, outputs
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
OUTPUT = flags.DEFINE_string('output', None, "folder of the picture; default: the run's")
TEXT = flags.DEFINE_string('text', None, 'what to read; default: the beginning of the held-out text')
TOKENS = flags.DEFINE_integer('tokens', 40, 'of the text, at most', lower_bound=2)


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  output = files.expand('--output', OUTPUT.value).resolve() if OUTPUT.value else workdir
  if output != workdir:
    outputs.check_folder('--output', output, ('attention.svg',))
  from framework.training import run
  config = run.read_config(workdir)
  from framework import models
  from framework.models import contract
  tokenizer = run.read_tokenizer(workdir)
  contract.require(models.build(config, tokenizer.size), 'attention', 'experiments.attention')
  launch.start_jax(config, devices=1)

  import jax
  import numpy as np
  from experiments.reports import figures
  from framework.training import setup
  most = min(TOKENS.value, config.data.window)
  if TEXT.value is None:
    tokens = run.corpus_of(workdir, config).validation.read(0, most)
  else:
    try:
      tokens = np.array([tokenizer.begin, *tokenizer.encode(TEXT.value)], np.int32)[:most]
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'--text: {error}') from None
  trained = setup.load(workdir)
  row = np.asarray(tokens, np.int32)[None]
  weights_NxBxHxLxL = jax.jit(
      trained.setup.module.attention)(trained.params, row)  # type: ignore[attr-defined]  # required above
  labels = [tokenizer.continued([token]) or '∅' for token in tokens]
  output.mkdir(parents=True, exist_ok=True)
  figures.attention(np.asarray(weights_NxBxHxLxL)[:, 0], labels, output / 'attention.svg')
  print(output / 'attention.svg')
  return 0


if __name__ == '__main__':
  launch.run(main)
