"""What may change when a run goes on, and how it gets another number of steps.

Settings are of four kinds, see framework.config.setting: those that decide what is trained have to be the same; how it
is computed and what is logged, kept and evaluated may change; and so may the steps and their rates, from a checkpoint on
up to which the rates are the same. Then the run is the one that was begun with the new settings, and what it was until
then stays in its folder steps_<N>. It is so bit for bit where the schedule stays wsd or constant: of another kind, or
with optimizer.rewarm, the rates come from a program of another form, which may round them another way.
"""

import os
import pathlib
import shutil
from typing import Any

from absl import logging

from foundation import files
from framework import config as config_lib
from framework import models
from framework.training import optimizer

CONFIG, RESULT, CHECKPOINTS = 'config.json', 'result.json', 'checkpoints'


def settings(saved: dict[str, Any], name: object) -> config_lib.Config:
  """The config of a config.json: what is absent has its default, what is unknown is said and left out."""
  held, known = saved['config'], config_lib.flatten(config_lib.Config())
  for key in [key for key in held if key not in known]:
    logging.warning('%s has %s=%r, which this version does not know; it is left out', name, key, held[key])
  return config_lib.from_flat({key: value for key, value in held.items() if key in known})


def changes(workdir: pathlib.Path, saved: dict[str, Any], config: config_lib.Config) -> dict[str, tuple[Any, Any]]:
  """{setting: (what the run in `workdir` has, what `config` has)} where they differ.

  Args:
    saved: the content of its config.json.

  Raises:
    ConfigError: a setting differs that decides what is trained.
  """
  flat = config_lib.flatten(config)
  held = config_lib.flatten(config_lib.resolve(settings(saved, workdir / CONFIG)))
  differ = {key: (held[key], flat[key]) for key in flat if held[key] != flat[key]}
  for key, (before, now) in differ.items():  # in the order of the fields: a setting before what was derived from it
    moved = key == 'data.tokenizer' and not {before, now} & set(config_lib.TOKENIZERS)  # whose digest is compared
    if key not in config_lib.HOW | config_lib.BESIDE | config_lib.RATE and not moved:
      raise _refused(workdir, key, before, now)
    if key in config_lib.HOW:
      logging.info('goes on with %s=%s, begun with %s: the same to rounding, not to the bit', key, now, before)
    else:
      logging.info('goes on with %s=%s, until now %s', key, now, before)
  return differ


def _refused(workdir: pathlib.Path, key: str, before: Any, now: Any, why: str = '') -> config_lib.ConfigError:
  return config_lib.ConfigError(f'workdir {workdir} holds a run whose {key} is {before!r}; this config has {now!r}'
                                f'{why}: give the same, or another --workdir')


def rewrite(workdir: pathlib.Path, saved: dict[str, Any], config: config_lib.Config) -> dict[str, tuple[Any, Any]]:
  """Writes the settings of `config` into config.json, which keeps those that the run began with as `begun`.

  Returns {setting: (as it began, now)}.
  """
  flat = config_lib.flatten(config)
  begun = {key: saved['config'].get(key, value) for key, value in flat.items()} | saved.get('begun', {})
  begun = {key: value for key, value in begun.items() if flat.get(key) != value}
  new = saved | {'config': saved['config'] | flat, 'begun': begun}
  if new['config'] != saved['config'] or begun != saved.get('begun', {}):
    files.write_sealed(workdir / CONFIG, new)
  return {key: (value, flat.get(key)) for key, value in begun.items()}


def lengthen(workdir: pathlib.Path, saved: dict[str, Any], config: config_lib.Config,
             differ: dict[str, tuple[Any, Any]]) -> None:
  """Gives the run in `workdir`, which is held, the steps and rates of `config`; killed anywhere, it can be done again.

  Args:
    differ: from `changes`.

  Raises:
    ConfigError: it has no checkpoint up to which the rates are the same, or is trained in several stages.
  """
  keys = [key for key in differ if key in config_lib.RATE]
  if not keys:
    return
  held = settings(saved, workdir / CONFIG)
  key, old, new = keys[-1], held.training.steps, config.training.steps
  steps = sorted(int(path.name) for path in (workdir / CHECKPOINTS).glob('*') if path.name.isdecimal())
  if any(stage.name and (workdir / stage.name).exists() for stage in models.stages(config)):
    raise _refused(workdir, key, *differ[key], ', and is trained in several stages, which keep their lengths')
  if not steps and not (workdir / RESULT).exists():  # nothing was trained that could be kept or lost
    return
  shared = optimizer.equal_rates((held.optimizer, old), (config.optimizer, new))
  begin = max((step for step in steps if step <= shared), default=0)
  if new < old and (begin != max(steps, default=0) or new < begin or (workdir / RESULT).exists()):
    raise _refused(workdir, key, *differ[key], ', fewer than it has made or decayed for')
  if not begin:
    raise _refused(workdir, key, *differ[key], _advice(held, shared, steps))
  if begin != steps[-1] or (workdir / RESULT).exists():
    _keep(workdir, old, begin, steps)
    logging.info('what the run was until now is in %s', workdir / f'steps_{old}')
  rewrite(workdir, saved, config)
  (workdir / RESULT).unlink(missing_ok=True)
  logging.info('goes on from step %d, up to which its rates are those of %s', begin,
               ', '.join(f'{key}={differ[key][1]}' for key in keys))


def _advice(held: config_lib.Config, shared: int, steps: list[int]) -> str:
  ended = f"optimizer.rewarm={','.join(filter(None, [held.optimizer.rewarm, str(held.training.steps)]))}"
  return (f'. Their rates are the same for {shared} steps and the first checkpoint is at {steps[0] if steps else None}: '
          f'expected a checkpoint before they differ, as checkpoint.at_decay=True leaves with the schedules wsd and '
          f'constant, or {ended}, which warms up again from there')


def _keep(workdir: pathlib.Path, old: int, begin: int, steps: list[int]) -> None:
  """Puts the run as it is, with its checkpoints after `begin`, into steps_<old>, and removes those checkpoints."""
  kept, temporary = workdir / f'steps_{old}', workdir / f'.steps_{old}.tmp'
  if not kept.exists():
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in workdir.iterdir():
      if path.is_file() and not path.is_symlink() and not path.name.startswith('.'):
        shutil.copy2(path, temporary / path.name)
    for step in {*(step for step in steps if step > begin), steps[-1]}:
      shutil.copytree(workdir / CHECKPOINTS / str(step), temporary / CHECKPOINTS / str(step), copy_function=_linked)
    os.rename(temporary, kept)
    files.sync(workdir)
  for step in steps:
    if step > begin:
      gone = workdir / f'.gone_{step}.tmp'
      shutil.rmtree(gone, ignore_errors=True)
      os.rename(workdir / CHECKPOINTS / str(step), gone)
      shutil.rmtree(gone)


def _linked(source: str, target: str) -> None:
  """A second name for a file that is never written again, else a copy."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)
