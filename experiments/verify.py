"""Proves a run: that nothing in its folder was changed, and that its numbers come out again.

Example:
  python -m experiments.verify --workdir=runs/first

Compares config, tokenizer, text, metrics, result and every checkpoint with the digests that the run itself has kept;
then does the steps from a checkpoint to the next logged row again, and the last evaluation, which have to give the same
bits on the same machine with the same versions. Nothing is written. Exit code 0: nothing differs; 1: something does.
"""

from absl import flags

from experiments.shared import launch

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run')
MARKS = {True: 'ok', False: 'DIFFERS', None: '-'}


def main() -> int:
  workdir = launch.workdir_path(launch.required(WORKDIR))
  from framework.training import run
  config = run.read_config(workdir)
  launch.start_jax(config)

  from experiments.shared import progress
  from framework import models
  from framework.training import manifest
  with progress.bar() as show:
    text = run.corpus_of(workdir, config, show)
  differs = seen = 0
  for stage in models.stages(config):
    folder = workdir / stage.name
    if not (folder / run.CONFIG).exists():
      print(f'{stage.name}: not begun')
      continue
    for finding in manifest.prove(stage, text, workdir, folder):
      place = f'{stage.name}/' if stage.name else ''
      print(f'{MARKS[finding.sound]:8}{place}{finding.what}: {finding.words}', flush=True)
      differs += finding.sound is False
      seen += 1
  print(f'{differs} of {seen} things differ' if differs else f'nothing differs in {seen} things')
  return int(differs > 0)


if __name__ == '__main__':
  launch.run(main)
