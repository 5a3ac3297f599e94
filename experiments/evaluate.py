"""Evaluates a run on its held-out text: bits per byte, perplexity, and loss by position in the window.

Example:
  python -m experiments.evaluate --workdir=runs/first
  python -m experiments.evaluate --workdir=runs/first --stride=64 --batch=32
  python -m experiments.evaluate --workdir=runs/first --all_steps
  python -m experiments.evaluate --workdir=runs/first --text=novel.txt --step=200 --output=runs/novel

A stride below the window gives every token at least window - stride tokens of context, at a higher cost; the run's own
stride is reported beside it. Of a tiered run, whose loss is that of one draw of its rollouts, the loss of the mean
probability over several draws is reported beside that. Results are appended to evaluations.jsonl and the losses by
position drawn in loss_by_position.svg, in the run's folder or, if that is not to be written to, in --output.

--text reads other text than the run's, in any form that data.path takes; it is read whole and stays in memory. A run
whose own text was moved or removed is evaluated on its tokens in data.cache.
"""

import itertools
import sys

from absl import flags

from experiments.shared import launch
from foundation import files, outputs
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
STRIDE = flags.DEFINE_integer('stride', None, 'tokens predicted per window', lower_bound=1)
OUTPUT = flags.DEFINE_string('output', None, "folder of the results; default: the run's")
BATCH = flags.DEFINE_integer('batch', None, 'windows at a time; changes the speed, not the result', lower_bound=1)
WINDOWS = flags.DEFINE_integer('windows', 0, 'windows, evenly spread over the text; 0: all', lower_bound=0)
DRAWS = flags.DEFINE_integer('draws', None, 'of a tiered run: draws of the rollouts whose probabilities are averaged, '
                             '8 by default; 1: none beside the run\'s own', lower_bound=1)
TEXT = flags.DEFINE_string('text', None, "file, folder or glob of text to evaluate on in place of the run's")
STEP = flags.DEFINE_integer('step', None, 'of the checkpoint; default: the newest', lower_bound=0)
ALL = flags.DEFINE_bool('all_steps', False, 'every checkpoint there is: draws the loss along training, along_training.svg')
SPLIT = flags.DEFINE_enum('split', 'validation', ['validation', 'train'], 'which part of the corpus')


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  output = files.expand('--output', OUTPUT.value).resolve() if OUTPUT.value else workdir
  rows = output / 'evaluations.jsonl'
  if output != workdir:
    outputs.check_folder('--output', output, (rows.name, 'loss_by_position.svg', 'along_training.svg'), mark=rows.name)
  files.read_rows(rows)  # a damaged file is refused, not added to
  from framework import models
  from framework.models import contract
  from framework.training import run
  config = run.read_config(workdir)
  own = config.evaluation.stride
  if STRIDE.value and STRIDE.value > config.data.window:
    raise config_lib.ConfigError(f'--stride is {STRIDE.value}; expected at most data.window {config.data.window}')
  model = models.build(config, run.read_tokenizer(workdir).size)
  drawn = contract.answers(model, 'with_seed')
  if TEXT.value and flags.FLAGS['split'].present:
    raise config_lib.ConfigError(f'--split is {SPLIT.value} beside --text, which has no parts; expected one of the two')
  if DRAWS.value:
    contract.require(model, 'with_seed', f'--draws={DRAWS.value}')
  launch.start_jax(config)

  import tqdm
  from experiments.reports import figures
  from experiments.shared import progress
  from foundation import figures as style
  from framework.data import mixtures
  from framework.training import evaluation, setup
  with progress.bar() as show:
    split = _split(workdir, config, show)
  steps = _steps(workdir)
  trained = setup.load(workdir, steps[0])
  draws = (1, *({DRAWS.value or 8} - {1})) if drawn else (1,)
  nats = {n: evaluation.compile_nats(trained.setup.module, trained.setup.mesh, n) for n in draws}
  which = f'text {TEXT.value}' if TEXT.value else SPLIT.value

  results = []
  for step, stride, n in itertools.product(steps, dict.fromkeys([own, STRIDE.value or own]), draws):
    if step is not None and step != trained.step:
      trained = setup.load(workdir, step)
    result = evaluation.evaluate(
        nats[n], trained.params,
        mixtures.evaluated_on(split, trained.tokenizer.end, config.data.window, stride, config.data.packed),
        trained.tokenizer, trained.setup.mesh, batch=BATCH.value or config.evaluation.batch, limit=WINDOWS.value,
        progress=lambda batches, s=stride: tqdm.tqdm(  # type: ignore[misc]  # mypy has no type for s
            batches, desc=f'stride {s}', leave=False, disable=not sys.stderr.isatty()))
    results.append({'step': trained.step, 'split': which} | ({'draws': n} if drawn else {}) | result)
  _print(results, which, drawn)
  output.mkdir(parents=True, exist_ok=True)
  files.append_rows(rows, results)
  newest = [r for r in results if r['step'] == trained.step and r.get('draws', 1) == 1]
  figures.loss_by_position(newest, output / 'loss_by_position.svg')
  if ALL.value:
    files.write_atomically(output / 'along_training.svg', style.svg(figures.along_training(
        [r for r in results if r.get('draws', 1) == 1])))
  return 0


def _print(results, which: str, drawn: bool) -> None:
  """The table."""
  steps = ', '.join(str(step) for step in dict.fromkeys(r['step'] for r in results))
  print(f"step {steps}, {which}: {results[0]['targets']:,} tokens, {results[0]['bytes']:,} bytes")
  columns = [('window', 8, 'd'), ('stride', 8, 'd'), ('bits_per_byte', 10, '.4f'), ('bits_per_token', 11, '.4f'),
             ('perplexity', 11, '.4f'), ('nats_per_token', 11, '.4f')]
  columns += [('draws', 6, 'd')] * drawn + [('step', 9, 'd')] * ALL.value
  print(' '.join(f"{key.replace('_per_', '/'):>{width}}" for key, width, _ in columns))
  for r in results:
    print(' '.join(f'{r[key]:{width}{form}}' for key, width, form in columns), flush=True)
    parts: dict[str, dict] = r.get('sources', {})  # type: ignore[assignment]  # of a mixture
    for name, one in parts.items():
      print(f"  {name}: {one['bits_per_byte']:.4f} bits/byte, {one['nats_per_token']:.4f} nats/token, "
            f"{one['targets']:,} tokens", flush=True)


def _steps(workdir) -> list[int | None]:
  """The checkpoints that are evaluated; None is the newest."""
  from framework.training import checkpoint
  if not ALL.value:
    return [STEP.value]
  if STEP.value is not None:
    raise config_lib.ConfigError(f'--step is {STEP.value} beside --all_steps; expected one of the two')
  reader = checkpoint.Checkpoints(workdir / 'checkpoints', read_only=True)
  try:
    steps: list[int | None] = [*reader.steps()]
  finally:
    reader.close()
  return steps or [None]


def _split(workdir, config, show):
  """What is evaluated on: a part of the run's corpus, or --text."""
  from framework.data import sources, splits, texts
  from framework.training import run
  if not TEXT.value:
    text = run.corpus_of(workdir, config, show)
    return text.validation if SPLIT.value == 'validation' else text.train
  files_of_text = sources.find('--text', TEXT.value)
  total = sum(source.size for source in files_of_text)
  split = splits.held(texts.read(files_of_text, lambda done: show(done, total, 'reading'),
                                 texts.Reading(config.data.field)),
                      run.read_tokenizer(workdir))
  if split.tokens < 3:
    raise config_lib.ConfigError(f"--text is '{TEXT.value}', which holds no text; expected at least a character of it")
  return split


if __name__ == '__main__':
  launch.run(main)
