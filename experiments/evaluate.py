"""Evaluates a run on its held-out text: bits per byte, perplexity, and loss by position in the window.

Example:
  python -m experiments.evaluate --workdir=runs/first
  python -m experiments.evaluate --workdir=runs/first --stride=64 --batch=32

A stride below the window gives every token at least window - stride tokens of context, at a higher cost; the run's own
stride is reported beside it. Results are appended to evaluations.jsonl; the losses by position are drawn in
loss_by_position.svg.
"""

import sys

from absl import flags

from experiments import launch
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
STRIDE = flags.DEFINE_integer('stride', None, 'tokens predicted per window', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', None, 'windows at a time; changes the speed, not the result', lower_bound=1)
WINDOWS = flags.DEFINE_integer('windows', 0, 'windows, evenly spread over the text; 0: all', lower_bound=0)
SPLIT = flags.DEFINE_enum('split', 'validation', ['validation', 'train'], 'which part of the corpus')


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  from framework.training import run
  config = run.read_config(workdir)
  own = config.evaluation.stride
  if STRIDE.value and STRIDE.value > config.data.window:
    raise config_lib.ConfigError(f'--stride is {STRIDE.value}; expected at most data.window {config.data.window}')
  launch.start_jax(config)

  import tqdm
  from experiments import draw, progress
  from framework import evaluation, files
  from framework.data import corpus
  from framework.training import setup
  with progress.bar() as show:
    text = corpus.prepare(config.data, show)
  run.check_corpus(workdir, text)
  trained = setup.load(workdir)
  nats = evaluation.compile_nats(trained.setup.module, trained.setup.mesh)
  split = text.validation if SPLIT.value == 'validation' else text.train

  results = []
  for stride in dict.fromkeys([own, STRIDE.value or own]):
    result = evaluation.evaluate(
        nats, trained.params, split, trained.tokenizer, trained.setup.mesh, window=config.data.window, stride=stride,
        batch=BATCH.value or config.evaluation.batch, packed=config.data.packed, limit=WINDOWS.value,
        progress=lambda batches, s=stride: tqdm.tqdm(batches, desc=f'stride {s}', leave=False,
                                                     disable=not sys.stderr.isatty()))
    results.append({'step': trained.step, 'split': SPLIT.value} | result)
  files.read_rows(workdir / 'evaluations.jsonl')  # a damaged file is refused, not added to
  files.append_rows(workdir / 'evaluations.jsonl', results)
  draw.loss_by_position(results, workdir / 'loss_by_position.svg')

  print(f"step {trained.step}, {SPLIT.value}: {results[0]['targets']:,} tokens, {results[0]['bytes']:,} bytes")
  print(f"{'window':>8} {'stride':>8} {'bits/byte':>10} {'bits/token':>11} {'perplexity':>11} {'nats/token':>11}")
  for r in results:
    print(f"{r['window']:8d} {r['stride']:8d} {r['bits_per_byte']:10.4f} {r['bits_per_token']:11.4f} "
          f"{r['perplexity']:11.4f} {r['nats_per_token']:11.4f}")
  return 0


if __name__ == '__main__':
  launch.run(main)
