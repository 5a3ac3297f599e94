"""Samples text from a trained run, as it is written.

Example:
  python -m experiments.generate --workdir=runs/first --prompt='def main(' --tokens=300 --temperature=0.8
  python -m experiments.generate --workdir=runs/first --prompt='import' --prompt='class ' --top_k=40 --seed=1
  python -m experiments.generate --workdir=runs/first --prompts=prompts.jsonl --samples=4 --output=texts.jsonl

--prompts continues every line of a file, an object with a string 'prompt', so many times; --output has a line for each,
the prompt's own with `sample` and `completion`. A line depends on (seed, prompt, sample) alone, and what a kill leaves
is not drawn again.
"""

import itertools
import sys
from typing import Any

from absl import flags

from experiments.shared import launch
from foundation.printable import printable
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
PROMPT = flags.DEFINE_multi_string('prompt', [''], 'text to continue; may be given several times')
PROMPTS = flags.DEFINE_string('prompts', None, "file of JSON lines, each an object with a string 'prompt'")
OUTPUT = flags.DEFINE_string('output', None, 'of --prompts: the file of JSON lines that is written')
SAMPLES = flags.DEFINE_integer('samples', 1, 'of --prompts: continuations of each', lower_bound=1)
TOKENS = flags.DEFINE_integer('tokens', 256, 'most tokens to write', lower_bound=1)
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0 takes the likeliest token', lower_bound=0.0)
TOP_K = flags.DEFINE_integer('top_k', 0, 'sample among the k likeliest tokens; 0: all', lower_bound=0)
TOP_P = flags.DEFINE_float('top_p', 1.0, 'sample among the likeliest tokens of this probability together',
                           lower_bound=1e-6, upper_bound=1.0)
SHOW_ROLLOUTS = flags.DEFINE_bool('show_rollouts', False, 'of a tiered model: also write the rollouts of the lower '
                                  'tiers where they start, as [[tier: text]]')
SEED = flags.DEFINE_integer('seed', 0, 'of the sampling', lower_bound=0, upper_bound=2**32 - 1)
STEP = flags.DEFINE_integer('step', None, 'of the checkpoint; default: the newest', lower_bound=0)
STOP = flags.DEFINE_string('stop', None, 'text of one token at which to stop; default: the end of the document')


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  _check_flags()
  from framework import models
  from framework.models import contract
  from framework.training import run
  config = run.read_config(workdir)
  tokenizer = run.read_tokenizer(workdir)
  model = models.build(config, tokenizer.size)
  with_notes = contract.answers(model, 'generate')
  if not with_notes:
    contract.require(model, 'empty_cache', 'experiments.generate')
  if SHOW_ROLLOUTS.value:
    contract.require(model, 'generate', '--show_rollouts')
  launch.start_jax(config, devices=1)  # one row is not worth spreading

  import numpy as np
  from framework import generation
  from framework.training import setup
  stop = tokenizer.end
  if STOP.value is not None:
    ids = tokenizer.encode(STOP.value)
    if len(ids) != 1:
      raise config_lib.ConfigError(f"--stop is '{STOP.value}', {len(ids)} tokens; expected the text of one token")
    stop = int(ids[0])
  settings = generation.Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, stop)
  if PROMPTS.value:
    return _many(workdir, tokenizer, config.data.window, settings, with_notes)
  try:
    prompts = [np.array([tokenizer.begin, *tokenizer.encode(text)], np.int32) for text in PROMPT.value]
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'--prompt: {error}') from None
  trained = setup.load(workdir, STEP.value)  # compiles: after whatever may be refused
  if with_notes:
    for text, prompt in zip(PROMPT.value, prompts):
      rule = f'{"-" * 72}\n' if len(prompts) > 1 else ''
      for piece in itertools.chain([rule + text], _pieces(trained, prompt, settings)):
        _write(piece)
    return 0
  columns = generation.generate(trained.setup.module, trained.params, prompts, tokens=TOKENS.value,
                                window=config.data.window, settings=settings, seed=SEED.value)
  if len(prompts) == 1:
    stream = tokenizer.stream()
    sys.stdout.write(PROMPT.value[0])
    for new in columns:
      _write(stream.push(new[0]))
    _write(stream.finish() + '\n')
    return 0
  for text, row in zip(PROMPT.value, np.concatenate(list(columns), axis=1)):
    row = row[:list(row).index(stop)] if stop in row else row
    _write(f'{"-" * 72}\n{text}{tokenizer.continued(row)}\n')
  return 0


def _check_flags() -> None:
  """Raises ConfigError for flags that do not go together."""
  given = {name for name in ('prompt', 'prompts', 'output', 'samples', 'show_rollouts') if flags.FLAGS[name].present}
  if 'prompts' in given and given & {'prompt', 'show_rollouts'}:
    raise config_lib.ConfigError(f'--prompts is given beside --{min(given & {"prompt", "show_rollouts"})}; expected one '
                                 'of the two')
  if ('prompts' in given) != ('output' in given) or 'samples' in given - {'prompts'} and 'prompts' not in given:
    raise config_lib.ConfigError('--prompts, --output and --samples belong together; expected --prompts=FILE.jsonl '
                                 '--output=FILE.jsonl')


def _many(workdir, tokenizer, window: int, settings, alone: bool) -> int:
  """Continues --prompts into --output; `alone`: of a model that writes in a way of its own, a row at a time."""
  from experiments.shared import progress, prompts
  from foundation import files
  from framework.training import setup
  output = files.expand('--output', launch.required(OUTPUT)).absolute()
  requests = prompts.read(files.expand('--prompts', launch.required(PROMPTS)), SAMPLES.value, tokenizer)
  trained = setup.load(workdir, STEP.value)

  def one(request) -> str:
    model: Any = trained.setup.module  # which has answered that it writes in a way of its own
    ids = [int(token) for token, _ in model.generate(
        trained.params, request.ids, tokens=TOKENS.value, settings=settings, seed=request.key(SEED.value))]
    return tokenizer.continued(ids[:ids.index(settings.stop)] if settings.stop in ids else ids)

  def texts(some) -> list[str]:
    if alone:
      return [one(request) for request in some]
    return prompts.draw(trained, some, TOKENS.value, window, settings, SEED.value)

  drawn = {'workdir': str(workdir), 'step': trained.step, 'tokens': TOKENS.value, 'temperature': settings.temperature,
           'top_k': settings.top_k, 'top_p': settings.top_p, 'stop': settings.stop, 'seed': SEED.value}
  output.parent.mkdir(parents=True, exist_ok=True)
  with progress.steps() as show:
    prompts.write(output, requests, list(prompts.batches(requests, window)), drawn, texts, show)
  return 0


def _write(text: str) -> None:
  """What a model has written; on a terminal, which obeys escapes, without any."""
  sys.stdout.write(printable(text, keep='\n\t') if sys.stdout.isatty() else text)
  sys.stdout.flush()


def _pieces(trained, prompt, settings):
  """The text of a model that notes what it thinks, with the notes in it where they are shown."""
  text = trained.tokenizer.stream()
  for token, notes in trained.setup.module.generate(trained.params, prompt, tokens=TOKENS.value, settings=settings,
                                                    seed=SEED.value):
    if notes and SHOW_ROLLOUTS.value:
      for tier, tokens_KxR in enumerate(notes, 1):
        yield ''.join(f'[[{tier}: {trained.tokenizer.continued(row)}]]' for row in tokens_KxR)
    yield text.push([token])
  yield text.finish() + '\n'


if __name__ == '__main__':
  launch.run(main)
