"""Runs a study: a claim with its source, a rule stated beforehand, seeds, a figure and a verdict.

Example:
  python -m experiments.study --name=tiered_word_problem --workdir=studies/word_problem
  python -m experiments.study --name=tiered_word_problem --workdir=studies/gpu --scale=gpu --seeds=5

Each part of each seed is written when it is done; the same command again continues with the next. The folder then holds
verdict.json (claim, source, rule, setting, numbers, verdict, seeds, cost), figure.svg, parts/ and, of studies on text,
runs/.
"""

import collections
import json
import pathlib
import re
import signal
import time
from typing import Any

from absl import flags, logging

from experiments import studies
from experiments.shared import launch, process
from foundation import entries, reading
from foundation.errors import one_line
from framework import config as config_lib

PROTOCOL = ('CLAIM', 'SOURCE', 'RULE', 'SCALES', 'parts(settings)', 'run(part, seed, settings, show, folder)',
            'verdict(results)', 'figure(results, axes)')  # see experiments.studies
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
  made = saved['setting']
  if made | {'study': entries.absolute(str(made.get('study')))} != setting:  # kept as it was typed, once
    raise config_lib.ConfigError(f"{path} was made in the setting {saved['setting']}; this study has {setting}: give "
                                 'another --workdir')
  return saved


def plain(value: Any, subject: str, what: str, expected: str = 'numbers') -> Any:
  """The value of a study as JSON keeps it. Raises ConfigError if it cannot, or if there is nothing to keep."""
  try:
    kept = json.loads(json.dumps(value))
  except (TypeError, ValueError) as error:  # a type that JSON has not, or a circle
    raise config_lib.ConfigError(f'{subject}, whose {what} gives what JSON does not know ({one_line(error)}); expected '
                                 'dict, list, str, float, int and bool: float(x) of an array') from None
  return entries.gives(kept, kept is not None, expected, subject, what)


def parts_of(study: Any, scale: dict[str, Any], subject: str) -> dict[str, str]:
  """{part: name of its files, but for the seed} of a study. Raises ConfigError unless all are texts of their own.

  A space is an underscore, and what no file's name may hold is percent-quoted; where two parts would share a name,
  spaces, underscores and percent signs are too.
  """
  parts = study.parts(scale)
  entries.gives(parts, isinstance(parts, (list, tuple)) and bool(parts) and all(
      isinstance(part, str) and part for part in parts), 'a list of names', subject, 'parts(settings)')
  def quoted(part: str, more: str = '') -> str:
    return re.sub(rf'[/\x00-\x1f{more}]', lambda found: f'%{ord(found[0]):02X}', part).replace(' ', '_')
  shared = collections.Counter(map(quoted, parts))
  names_of = {part: quoted(part) if shared[quoted(part)] == 1 else quoted(part, ' _%') for part in parts}
  for part, count in collections.Counter(parts).items():
    fellows = [other for other in names_of if names_of[other] == names_of[part] and other != part]
    if count > 1 or fellows:
      raise config_lib.ConfigError(f"{subject}, whose parts(settings) gives '{part}' and '{[*fellows, part][0]}', which "
                                   'are kept under one name; expected a name of its own for each')
  return names_of


def settings_of(study: Any, name: str) -> tuple[Any, dict[str, Any]]:
  """(the study's settings of the scale, what its parts are kept under: the study, by its whole path, and these)."""
  if not isinstance(study.SCALES, dict) or not all(isinstance(scale, dict) for scale in study.SCALES.values()):
    raise config_lib.ConfigError(f"--name is '{name}', whose SCALES is {study.SCALES!r}; expected "
                                 '{scale: {setting: value}}')
  if SCALE.value not in study.SCALES:
    raise config_lib.ConfigError(f'--scale is {SCALE.value}; {name} has {", ".join(study.SCALES)}')
  scale = study.SCALES[SCALE.value]
  return scale, plain({'study': name, 'scale': SCALE.value} | scale, f"--name is '{name}'", f'SCALES[{SCALE.value!r}]')


def judged(study: Any, results: dict[str, dict[int, Any]], subject: str) -> dict[str, Any]:
  """What the study says of the numbers. Raises ConfigError if it is no verdict."""
  what, expected = 'verdict(results)', "{'numbers': ..., 'verdict': str}"
  outcome = plain(study.verdict(results), subject, what, expected)
  return entries.gives(outcome, isinstance(outcome, dict) and isinstance(outcome.get('verdict'), str) and
                       'numbers' in outcome, expected, subject, what)


def main() -> int:
  name = entries.absolute(launch.required(NAME))
  study, subject = study_of(name), f"--name is '{name}'"
  workdir = launch.workdir_path(launch.required(WORKDIR))
  scale, setting = settings_of(study, name)
  folder, names_of = workdir / 'parts', parts_of(study, scale, subject)
  work = [(part, seed) for seed in range(SEEDS.value) for part in names_of]
  paths = {(part, seed): folder / f'{names_of[part]}_{seed}.json' for part, seed in work}
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
    numbers = plain(numbers, subject, 'run(part, seed, settings, show, folder)')
    done[job] = {'setting': setting, 'numbers': numbers, 'seconds': time.perf_counter() - begin}
    files.write_sealed(paths[job], done[job])
  results: dict[str, dict[int, Any]] = {}
  for (part, seed), saved in done.items():
    results.setdefault(part, {})[seed] = saved['numbers']
  outcome = judged(study, results, subject)
  verdict = {'name': name, 'claim': study.CLAIM, 'source': study.SOURCE, 'setting': setting, 'rule': study.RULE,
             **outcome, 'figure': study.figure.__doc__ or '', 'seeds': SEEDS.value,
             'cost': f"{sum(saved['seconds'] for saved in done.values()):.0f} seconds"}
  files.write_sealed(workdir / 'verdict.json', verdict)
  figures.study(study, results, verdict, workdir / 'figure.svg')
  print(json.dumps(outcome, indent=1))
  return 0


if __name__ == '__main__':
  launch.run(main)
