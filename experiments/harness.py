"""Evaluates a run on tasks of lm-evaluation-harness.

Example:
  python -m experiments.harness --workdir=runs/pythia --tasks=lambada_openai,hellaswag --limit=100
  python -m experiments.harness --workdir=runs/pythia --tasks=mine --include_path=tasks/ --output=runs/pythia/harness.json

Needs the extra harness: pip install -e '.[harness]'. Tasks bring their texts from where they are published, or from
files of your own. The numbers are those of the harness's own HF backend on the exported folder; what differs is said in
experiments/shared/harness_model.py. `import experiments.shared.harness_model` makes the model `lemma` known to the
harness in a program of your own.
"""

import importlib
import importlib.metadata
import json
import pathlib
from typing import Any

from absl import flags, logging

from experiments.shared import launch
from foundation import files
from framework import config as config_lib

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
TASKS = flags.DEFINE_list('tasks', [], 'names of tasks')
INCLUDE = flags.DEFINE_string('include_path', None, 'folder of tasks of your own')
OUTPUT = flags.DEFINE_string('output', None, "file of the results; default: harness.json in the run's folder")
FEWSHOT = flags.DEFINE_integer('fewshot', None, 'examples in a context; default: as the task has it', lower_bound=0)
LIMIT = flags.DEFINE_integer('limit', None, 'first documents of a task; default: all', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', 8, 'rows at a time; changes the speed, not the result', lower_bound=1)
STEP = flags.DEFINE_integer('step', None, 'of the checkpoint; default: the newest', lower_bound=0)
LENGTH = flags.DEFINE_integer('max_length', 0, "tokens read at a time; 0: the run's window", lower_bound=0)
OPEN = flags.DEFINE_enum('open', 'auto', ['auto', 'true', 'false'], 'whether a context begins with the token that opens a '
                         "document; auto: as the tokenizer's file says")


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  output = files.expand('--output', OUTPUT.value).resolve() if OUTPUT.value else workdir / 'harness.json'
  if not TASKS.value:
    raise config_lib.ConfigError('--tasks is missing; see --help for an example')
  from framework.training import run
  config = run.read_config(workdir)
  try:
    harness: Any = importlib.import_module('lm_eval')
    tasks: Any = importlib.import_module('lm_eval.tasks')
  except ImportError as error:
    raise config_lib.ConfigError("lm_eval is not installed; expected the extra 'harness': pip install -e '.[harness]'"
                                 ) from error
  launch.start_jax(config, devices=1)
  manager = tasks.TaskManager(include_path=INCLUDE.value)
  if unknown := [task for task in TASKS.value if task not in manager.all_tasks]:
    raise config_lib.ConfigError(f"--tasks has '{unknown[0]}', which the harness does not know; expected one of its "
                                 f'{len(manager.all_tasks):,}{config_lib.nearest(unknown[0], manager.all_tasks)}')
  from experiments.shared import harness_model
  model = harness_model.LemmaLM(str(workdir), STEP.value, BATCH.value, LENGTH.value,
                                '' if OPEN.value == 'auto' else OPEN.value)
  found = harness.simple_evaluate(model=model, tasks=TASKS.value, num_fewshot=FEWSHOT.value, limit=LIMIT.value,
                                  task_manager=manager, bootstrap_iters=0)
  print(importlib.import_module('lm_eval.utils').make_table(found))
  kept = {key: found[key] for key in ('results', 'versions', 'n-shot', 'n-samples') if key in found}
  write(output, {'run': str(workdir), 'step': model.trained.step, 'harness': importlib.metadata.version('lm_eval'),
                 'open': model.open, 'max_length': model.max_length} | kept)
  logging.info('%s', output)
  return 0


def write(path: pathlib.Path, value: dict[str, Any]) -> None:
  """A JSON file; what is no JSON is its text."""
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(path, json.dumps(value, indent=2, default=str) + '\n')


if __name__ == '__main__':
  launch.run(main)
