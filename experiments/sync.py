"""Sends the rows of runs to a tracker, as often as you like: what is there is not sent again.

Example:
  python -m experiments.sync --runs=runs --to=wandb --project=novels
  python -m experiments.sync --runs=runs/first,runs/second --to=mlflow

Training knows no tracker: this reads what a run has written (config.json, metrics.jsonl, timing.jsonl, result.json),
while it is still written or long after. A run is known to the tracker by a digest of its name, its settings and its
text, so that one that was given more steps is another there. How many rows were sent stands in the run's .synced.json.

  wandb     as WANDB_MODE and WANDB_DIR say; WANDB_MODE=offline needs no account
  trackio   as TRACKIO_DIR says
  mlflow    as MLFLOW_TRACKING_URI says
"""

from absl import flags, logging

from experiments.shared import launch
from foundation import files
from framework import config as config_lib

RUNS = flags.DEFINE_list('runs', None, 'folders of runs, or folders of such folders')
TO = flags.DEFINE_enum('to', None, ['wandb', 'trackio', 'mlflow'], 'tracker')
PROJECT = flags.DEFINE_string('project', 'lemma', 'of the tracker (mlflow: experiment)')


def main() -> int:
  to, project = launch.required(TO), launch.required(PROJECT)
  roots = [files.expand('--runs', name).resolve() for name in launch.required(RUNS)]
  from experiments.reports import runs as folders
  from experiments.shared import trackers
  open_sink = trackers.opener(to, project)
  runs, wrong = folders.gather(roots)
  for line in wrong:
    logging.warning('left out: %s', line)
  if not runs:
    raise config_lib.ConfigError(wrong[0] if wrong else f'--runs: nothing below {roots[0]} is a run; expected a folder '
                                 'with config.json')
  for run in runs:
    sent = trackers.send(run, to, project, open_sink)
    print(f"{run['name']}: {sent} of {len(run['rows'])} rows sent" if sent else f"{run['name']}: nothing new", flush=True)
  return 0


if __name__ == '__main__':
  launch.run(main)
