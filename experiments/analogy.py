"""Asks the embedding of a trained run for analogies: ` house` is to ` houses` as ` king` is to what?

Example:
  python -m experiments.analogy --workdir=runs/markov

Questions are made from the vocabulary, so the run needs whole words as tokens: data.tokenizer=bpe.
"""

from absl import flags

from experiments.shared import launch
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
MOST = flags.DEFINE_integer('pairs', 300, 'most pairs of a relation, the commonest', lower_bound=2)


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  from framework.training import run
  config = run.read_config(workdir)
  launch.start_jax(config, devices=1)

  import jax
  import numpy as np
  from framework.baselines import analogy
  from framework.models import contract
  from framework.training import setup
  trained = setup.load(workdir)
  related = {name: pairs[:MOST.value] for name, pairs in analogy.pairs(trained.tokenizer.table).items()}
  if not any(len(pairs) > 1 for pairs in related.values()):
    raise config_lib.ConfigError(f"the run's tokenizer is '{trained.tokenizer.name}', whose vocabulary has no pairs of "
                                 'words; expected a run with data.tokenizer=bpe')
  path = next((path for path, p in contract.describe(trained.setup.module).items()
               if p.role == 'embedding' and p.axes == ('vocabulary', 'width')), None)
  if path is None:
    raise config_lib.ConfigError(f"model.name is '{config.model.name}', which has no embedding of tokens")
  embedding_VxD = np.asarray({jax.tree_util.keystr(place): leaf for place, leaf in
                              jax.tree_util.tree_leaves_with_path(trained.params)}[path], np.float32)
  print(f"{'relation':>10} {'pairs':>6} {'questions':>10} {'right':>8} {'by chance':>10}")
  for name, pairs in related.items():
    right, asked = analogy.accuracy(embedding_VxD, pairs)
    print(f'{name:>10} {len(pairs):6d} {asked:10,d} {100 * right:6.1f} % {100 / (trained.tokenizer.size - 3):8.3f} %')
  return 0


if __name__ == '__main__':
  launch.run(main)
