"""Runs a study: a claim with its source, a rule stated beforehand, seeds, a figure and a verdict.

Example:
  python -m experiments.study --name=tiered_word_problem --workdir=studies/word_problem
  python -m experiments.study --name=tiered_word_problem --workdir=studies/gpu --scale=gpu --seeds=5

Each part of each seed is written when it is done; the same command again continues with the next. The folder then holds
verdict.json (claim, source, rule, setting, numbers, verdict, seeds, cost), figure.svg, parts/ and, of studies on text,
runs/.
"""

import json
import pathlib
import signal
import time
from typing import Any

from absl import flags, logging

from experiments import studies
from experiments.shared import launch, process
from foundation import entries, reading
from framework import config as config_lib

PROTOCOL = ('CLAIM', 'SOURCE', 'RULE', 'SCALES', 'parts', 'run', 'verdict', 'figure')  # see experiments.studies

NAME = flags.DEFINE_string('name', None, 'a study of experiments/studies, or the path of a file')
SEEDS = flags.DEFINE_integer('seeds', 3, 'how many', lower_bound=1)
SCALE = flags.DEFINE_enum('scale', 'cpu', ['quick', 'cpu', 'gpu', 'paper'],
                          'sizes of models and numbers of steps; quick: a first look, where a study has one')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the results; new, or the one to continue')
flags.adopt_module_key_flags(launch)
flags.adopt_module_key_flags(process)


def names() -> list[str]:
  """The studies of the package."""
  return entries.names(studies, PROTOCOL[0])


def study_of(name: str) -> Any:
  """The module of the study. Raises ConfigError if there is none, or half of one."""
  return entries.find(studies, name, '--name', PROTOCOL)


def read_part(path: pathlib.Path, setting: dict[str, Any]) -> dict[str, Any] | None:
  """A part's numbers if it is done. Raises ConfigError if it was done in another setting."""
  try:
    saved = reading.value(path, {'setting': dict, 'numbers': (dict, list, float, str, bool), 'seconds': float})
  except FileNotFoundError:
    return None
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{error}; nearest is the folder without it') from None
  if saved['setting'] != setting:
    raise config_lib.ConfigError(f"{path} was made in the setting {saved['setting']}; this study has {setting}: give "
                                 'another --workdir')
  return saved


def main() -> int:
  study = study_of(launch.required(NAME))
  workdir = launch.workdir_path(launch.required(WORKDIR))
  if SCALE.value not in study.SCALES:
    raise config_lib.ConfigError(f'--scale is {SCALE.value}; {NAME.value} has {", ".join(study.SCALES)}')
  scale = study.SCALES[SCALE.value]
  setting = json.loads(json.dumps({'study': NAME.value, 'scale': SCALE.value} | scale))
  folder = workdir / 'parts'
  work = [(part, seed) for seed in range(SEEDS.value) for part in study.parts(scale)]
  paths = {job: folder / f'{job[0].replace(" ", "_")}_{job[1]}.json' for job in work}
  done: dict[Any, Any] = {job: read_part(path, setting) for job, path in paths.items()}
  launch.start_jax(config_lib.Config(), devices=getattr(study, 'DEVICES', 1))
  from experiments.reports import figures
  from experiments.shared import progress
  from experiments.shared import text_training as text
  from foundation import files
  folder.mkdir(parents=True, exist_ok=True)
  for number, job in enumerate(work):
    if done[job]:
      continue
    logging.info('part %d of %d: %s, seed %d', number + 1, len(work), *job)
    begin = time.perf_counter()
    try:
      with progress.steps() as show:
        numbers = study.run(*job, scale, show, workdir / 'runs' / paths[job].stem)
    except text.Stopped as stopped:
      logging.info('stopped by %s; the same command continues', stopped)
      return 128 + getattr(signal, str(stopped), signal.SIGTERM)
    done[job] = {'setting': setting, 'numbers': numbers, 'seconds': time.perf_counter() - begin}
    files.write_sealed(paths[job], done[job])
  results: dict[str, dict[int, Any]] = {}
  for (part, seed), saved in done.items():
    results.setdefault(part, {})[seed] = saved['numbers']
  outcome = study.verdict(results)
  verdict = {'name': NAME.value, 'claim': study.CLAIM, 'source': study.SOURCE, 'setting': setting, 'rule': study.RULE,
             **outcome, 'figure': study.figure.__doc__, 'seeds': SEEDS.value,
             'cost': f"{sum(saved['seconds'] for saved in done.values()):.0f} seconds"}
  files.write_sealed(workdir / 'verdict.json', verdict)
  figures.study(study, results, verdict, workdir / 'figure.svg')
  print(json.dumps(outcome, indent=1))
  return 0


if __name__ == '__main__':
  launch.run(main)
