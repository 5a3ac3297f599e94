"""Trains a model on text; a run is a folder that can be killed and resumed at any time.

Example:
  python -m experiments.train --config=experiments/configs/bytes_small.py --workdir=runs/first --resume
  python -m experiments.train --config=experiments/configs/bytes_small.py --workdir=runs/novel \\
    --config.data.path=novels/ --config.model.layers=6 --config.training.steps=3000
  python -m experiments.train --start=runs/first --config=experiments/configs/finetune.py --workdir=runs/tuned \\
    --config.data.path=novels/
"""

import signal

from absl import flags, logging
from ml_collections import config_flags

from experiments.shared import launch, process

CONFIG = launch.define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run; new, or the one to resume')
RESUME = flags.DEFINE_bool('resume', False, 'continue the run in --workdir, or start it if there is none')
PROFILE = flags.DEFINE_string('profile', '', 'steps to trace, as 20:25, into the folder profile of the run')
START = flags.DEFINE_string('start', None, 'run whose model, tokenizer and newest weights this one begins with, with a '
                            'fresh optimizer')
flags.adopt_module_key_flags(launch)
flags.adopt_module_key_flags(process)


def main() -> int:
  source = launch.workdir_path(START.value) if START.value else None
  config = launch.given_config(CONFIG)
  if source:
    from framework.training import adoption
    config = adoption.start_config(config, source, config_flags.get_override_values(flags.FLAGS[CONFIG.name]))
  workdir = launch.workdir_path(launch.required(WORKDIR))
  launch.start_jax(config)

  import jax
  from experiments.reports import figures
  from experiments.shared import progress
  from framework import models
  from framework.data import corpus
  from framework.training import adoption, loop, run, trace
  traced = trace.steps_of(PROFILE.value)
  with progress.bar() as show:
    text = corpus.prepare(config.data, show)
  loop.check(config, text)  # whatever is wrong is said before the run's folder exists
  with run.opened(workdir, config, text, RESUME.value, str(source or '')):
    if source:
      adoption.begin(workdir, config, text, source)
    else:
      adoption.check_begun(workdir)
    result = loop.train(config, text, workdir, traced)
    if jax.process_index() == 0:
      figures.loss_curves(workdir, models.stages(config))
  if result['status'] != 'complete':
    name = result['status'].removeprefix('stopped by ')
    logging.info('stopped by %s at step %d of %d; checkpoint saved, continue with --resume', name, result['steps'],
                 config.training.steps)
    return 128 + getattr(signal, name, signal.SIGTERM)
  logging.info('done: %.4f nats/token, %.3f bits/byte on held-out text; %s', result['loss_nats_per_token'],
               result['bits_per_byte'], workdir)
  return 0


if __name__ == '__main__':
  launch.run(main)
