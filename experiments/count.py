"""Counts an n-gram model of a corpus into a run folder: what training is to a network, in seconds.

Example:
  python -m experiments.count --config=experiments/configs/bytes_small.py --workdir=runs/kneser_ney --order=6

Its loss on the held-out text is appended to evaluations.jsonl, and experiments.compress takes the folder as a model.
"""

import copy
import json

from absl import flags, logging

from experiments.shared import launch
from framework import config as config_lib

CONFIG = launch.define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run; new')
ORDER = flags.DEFINE_integer('order', 6, 'tokens of an n-gram, 0 (uniform) to 8', lower_bound=0, upper_bound=8)
SMOOTHING = flags.DEFINE_string('smoothing', 'kneser_ney', 'kneser_ney or backoff')


def main() -> int:
  config = copy.deepcopy(launch.given_config(CONFIG))
  workdir = launch.workdir_path(launch.required(WORKDIR))
  config.model = config_lib.Model(name='ngram')
  config = config_lib.resolve(config)

  from experiments.shared import progress
  from foundation import files
  from framework.baselines import ladder as rungs
  from framework.baselines import ngram
  from framework.data import corpus
  from framework.training import run
  ngram.check(ORDER.value, SMOOTHING.value)
  with progress.bar() as show:
    text = corpus.prepare(config.data, show)
  rungs.check_text(text)
  with run.opened(workdir, config, text, resume=True):
    folder, counted = workdir / 'ngram', {'order': ORDER.value, 'smoothing': SMOOTHING.value}
    if folder.exists():  # of the same command, which may have been killed before the evaluation
      model = ngram.load(folder)
      for key, value in counted.items():
        if getattr(model, key) != value:
          raise config_lib.ConfigError(f'workdir {workdir} already holds an n-gram model, whose {key} is '
                                       f'{getattr(model, key)} and not {value}; give another --workdir')
    else:
      model = rungs.count(text, ORDER.value, SMOOTHING.value)
    row = {'step': 0, 'split': 'validation'} | counted | rungs.scored(
        model, text.validation)  # type: ignore[arg-type]  # no endless one
    logging.info('%s n-grams; %.4f nats/token, %.3f bits/byte on held-out text; %s',
                 f'{sum(len(order.p) for order in model.orders):,}', row['nats_per_token'], row['bits_per_byte'], workdir)
    if not folder.exists():
      model.save(folder)
    files.write_atomically(workdir / 'evaluations.jsonl', json.dumps(row) + '\n')
  return 0


if __name__ == '__main__':
  launch.run(main)
