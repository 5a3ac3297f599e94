"""Runs that share their stable phase: a longer warm-up-stable-decay run begins where a shorter one began its decay.

Until its decay a wsd run does not know how long it will be. So of a ladder of runs that differ only in their number of
steps, each can begin at the checkpoint that the one before it wrote at its decay (`checkpoint.at_decay`), and ends with
the bytes that it would have had alone. Hägele et al. 2024, arXiv:2405.18392, section 4; Hu et al. 2024,
arXiv:2404.06395, section 4.
"""

import json
import os
import pathlib
import shutil

from foundation import entries, files
from framework import config as config_lib
from framework import expressions, models
from framework.training import run, schedules, writer


def shares_trunk(shorter: config_lib.Config, longer: config_lib.Config) -> bool:
  """Whether `longer` may begin at the decay of `shorter`: runs that differ only in their number of steps and have a
  schedule that knows where it decays."""
  one, other = (config_lib.flatten(c) | {'training.steps': 0} for c in (shorter, longer))
  return one == other and longer.checkpoint.at_decay and len(models.stages(longer)) == 1 and (
      branch_step(shorter) <= branch_step(longer))


def branch_step(config: config_lib.Config) -> int:
  """The step at which the decay of a run begins; 0 for a schedule without a stable phase."""
  o = config.optimizer
  begin, steps = expressions.segments(o.rewarm, o.warmup_steps, config.training.steps)[-1]
  schedule = schedules.find(o.schedule)
  if not hasattr(schedule, 'decay_start'):
    return 0
  start = schedule.decay_start(o, steps)
  return begin + entries.gives(start, isinstance(start, int) and 0 <= start <= steps,
                               f'a whole number of steps, 0 to {steps}', f"optimizer.schedule is '{o.schedule}'",
                               'decay_start(c, steps)')


def begin(workdir: pathlib.Path, config: config_lib.Config, source: pathlib.Path) -> bool:
  """Gives the new run in `workdir`, whose folder is open, the checkpoint and the rows of `source` at its decay.

  Returns whether it did: not if the run has checkpoints of its own, or if `source` has none at its decay.

  Raises:
    ConfigError: the runs share no trunk, or are on different texts.
  """
  if (workdir / 'checkpoints').exists() and any((workdir / 'checkpoints').iterdir()):
    return False
  theirs = run.read_config(source)
  if not shares_trunk(theirs, config):
    raise config_lib.ConfigError(f'run {workdir} cannot branch from {source}; expected wsd runs with '
                                 'checkpoint.at_decay that differ only in training.steps')
  digests = [run.read_config_file(folder / run.CONFIG)['corpus'] for folder in (source, workdir)]
  if digests[0] != digests[1]:
    raise config_lib.ConfigError(f'run {workdir} is on corpus {digests[1][:12]} and {source} on {digests[0][:12]}; '
                                 'expected the same text')
  step = branch_step(theirs)
  if not (source / 'checkpoints' / str(step)).is_dir():
    return False
  for name in writer.ROWS:  # before the checkpoint: a run without one starts anew and drops them
    kept = [row for row in files.read_rows(source / name) if row['step'] <= step]
    files.write_atomically(workdir / name, ''.join(json.dumps(row) + '\n' for row in kept))
  temporary = workdir / f'.branch.{os.getpid()}.tmp'
  for left in workdir.glob('.branch.*.tmp'):
    shutil.rmtree(left)
  shutil.copytree(source / 'checkpoints' / str(step), temporary)
  (workdir / 'checkpoints').mkdir(exist_ok=True)
  os.rename(temporary, workdir / 'checkpoints' / str(step))
  return True
