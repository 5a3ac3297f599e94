"""The ladder of predictors: bits per token and per byte of all of them on the very same held-out tokens.

Example:
  python -m experiments.ladder --config=experiments/configs/bytes_small.py --output=runs/ladder
  python -m experiments.ladder --config=experiments/configs/bytes_small.py --output=runs/ladder \\
    --runs=runs/first,runs/lstm --tokens=200000

Uniform, unigram, bigram (Shannon's Markov model), n-grams with two smoothings, gzip, bz2 and xz that have read the
training text, and any trained or adopted runs: those on other tokens read the text in their own, and bits per byte compare.
Writes ladder.json, ladder.svg and, with runs, positions.svg: their loss by position in the window. Runs get the bounds of
Shannon's guessing game too.
"""

import pathlib
import tempfile

from absl import flags, logging

from experiments.shared import launch
from foundation import outputs
from foundation.printable import printable
from framework import config as config_lib

CONFIG = launch.define_config()
OUTPUT = flags.DEFINE_string('output', None, 'folder of the table and the figures; files of an earlier ladder in it '
                             'are replaced')
RUNS = flags.DEFINE_list('runs', [], 'folders of trained or adopted runs')
ORDERS = flags.DEFINE_list('orders', ['3', '4', '5', '6', '7', '8'], 'orders of the n-grams, after the bigram')
TOKENS = flags.DEFINE_integer('tokens', 0, 'held-out tokens; 0: all. They are the first, of the first '
                               'documents by name: a small number is the text of a few', lower_bound=0)
STRIDE = flags.DEFINE_integer('stride', 0, "tokens predicted per window; 0: each run's own", lower_bound=0)


def main() -> int:
  config = launch.given_config(CONFIG)
  if TOKENS.value == 1:
    raise config_lib.ConfigError('--tokens is 1; expected 0 (all) or at least 2: the first is predicted by nobody')
  output = launch.workdir_path(launch.required(OUTPUT))
  orders = []
  for word in ORDERS.value:
    if not word.isdecimal() or not 0 <= int(word) <= 8:
      raise config_lib.ConfigError(f"--orders has '{word}'; expected whole numbers from 0 to 8")
    orders.append(int(word))
  outputs.check_folder('--output', output, ('ladder.json', 'ladder.svg', 'positions.svg'), mark='ladder.json')
  folders = [launch.workdir_path(word) for word in RUNS.value]
  if folders:
    from framework.training import run
    for folder in folders:
      window = run.read_config(folder).data.window
      if STRIDE.value > window:
        raise config_lib.ConfigError(f'--stride is {STRIDE.value}; {folder} has data.window {window}: expected at most '
                                     'that')
    launch.start_jax(config)

  from experiments.reports import figures
  from experiments.shared import progress
  from foundation import figures as style
  from foundation import files
  from framework.baselines import ladder as rungs
  from framework.data import corpus
  with progress.bar() as show:
    text = corpus.prepare(config.data, show)
  rungs.check_text(text)
  split = rungs.held_out(text, TOKENS.value)
  rows = rungs.counted_rows(text, split, orders)
  rows += rungs.compressor_rows(text, split)
  for folder in folders:
    with tempfile.TemporaryDirectory() as tokens:
      rows.append(rungs.run_row(folder, text, split, STRIDE.value, pathlib.Path(tokens)))
    logging.info('%s: %.4f bits/byte', rows[-1]['name'], rows[-1]['bits_per_byte'])
  rows.sort(key=lambda row: (row['kind'] == 'two-sided', -row['bits_per_byte']))
  print(f'{split.tokens - 1:,} held-out tokens, {split.bytes:,} bytes, {split.documents:,} documents')
  print(printable(rungs.table(rows), keep='\n'), flush=True)

  output.mkdir(parents=True, exist_ok=True)
  files.write_sealed(output / 'ladder.json', {'corpus': text.digest, 'tokenizer': text.tokenizer.name,
                                            'targets': split.tokens - 1, 'bytes': split.bytes,
                                            'documents': split.documents, 'rows': rows, 'quoted': rungs.QUOTED})
  files.write_atomically(output / 'ladder.svg', style.svg(figures.ladder(rows)))
  if folders:
    by_position = {row['name']: row['loss_by_position'] for row in rows if 'loss_by_position' in row}
    files.write_atomically(output / 'positions.svg', style.svg(figures.positions(by_position)))
  return 0


if __name__ == '__main__':
  launch.run(main)
