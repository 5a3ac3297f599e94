"""Five formulas in minutes: a walk through everything, which ends in one page.

Example:
  python -m experiments.quickstart --workdir=runs/quickstart

Perplexity: every predictor on the same text. Attention: a decoder is trained, drawn, sampled. GEMM: the roofline of
this machine. Chinchilla: a small sweep, its law, a prediction and what came. RASP: a program compiled to weights, and
the tiered model's word problem. Stop it at any moment with Ctrl-C; the same command goes on, and shows a finished walk
at once. --parts leaves out what one does not want to wait for.
"""

import pathlib
import sys

from absl import flags

from experiments.shared import launch
from framework import config as config_lib

PARTS = ('attention', 'perplexity', 'gemm', 'chinchilla', 'rasp', 'thinking')

WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the walk; new, or one to go on with')
PARTS_FLAG = flags.DEFINE_list('parts', list(PARTS), 'which parts; perplexity needs attention')

CONFIG = 'experiments/configs/quickstart.py'


def plan(root: pathlib.Path, parts: list[str]):
  """The steps of the parts, with the seconds that each took on 2 cores of a Xeon."""
  from experiments.shared.pipeline import Step
  run, ladder, rasp = root / 'decoder', root / 'ladder', root / 'rasp'
  steps = {
      'attention': [
          Step('training a decoder', ('experiments.train', f'--config={CONFIG}', f'--workdir={run}', '--resume'), 195),
          Step('evaluating it', ('experiments.evaluate', f'--workdir={run}', '--stride=32', '--windows=1024'), 9),
          Step('drawing its attention', ('experiments.attention', f'--workdir={run}'), 4),
          Step('sampling from it', ('experiments.generate', f'--workdir={run}', '--prompt=def main(', '--tokens=400'),
               7, run / 'sample.txt')],
      'perplexity': [
          Step('the ladder of predictors', ('experiments.ladder', f'--config={CONFIG}', f'--output={ladder}',
                                            f'--runs={run}', '--orders=3,4,5,6', '--stride=32'), 70)],
      'gemm': [Step('measuring the roofline', ('experiments.gemm', f"--output={root / 'gemm'}"), 9)],
      'chinchilla': [
          Step('a sweep and its law', ('experiments.sweep', '--sweep=experiments/sweeps/first.py',
                                       f"--workdir={root / 'sweep'}"), 60, root / 'sweep' / 'law.txt')],
      'rasp': [
          Step('compiling an adder', ('rasp', 'run', '--program=adder', '--input=683+345='), 2, rasp / 'adder.txt'),
          Step('drawing it', ('rasp', 'draw', '--program=adder', '--input=85+47=', f"--out={rasp / 'adder.svg'}"), 4)],
      'thinking': [
          Step('thinking in text', ('experiments.study', '--name=tiered_word_problem', '--scale=quick', '--seeds=1',
                                    f"--workdir={root / 'word_problem'}"), 56)],
  }
  return [step for part in PARTS if part in parts for step in steps[part]]


def write_page(root: pathlib.Path, parts: list[str]) -> pathlib.Path:
  """Writes report.html of the parts, which are done."""
  from experiments.reports import chapters
  from foundation import files, page
  made = {'perplexity': (chapters.perplexity, 'ladder'), 'attention': (chapters.attention, 'decoder'),
          'gemm': (chapters.gemm, 'gemm'), 'chinchilla': (chapters.chinchilla, 'sweep'),
          'rasp': (chapters.rasp, 'rasp'), 'thinking': (chapters.thinking, 'word_problem')}
  clauses, sections = zip(*(chapter(root / name, root) for part, (chapter, name) in made.items() if part in parts))
  summary = f"In minutes on this machine: {'; '.join(clauses)}."
  sections += (chapters.made(root, plan(root, parts)),)
  files.write_atomically(root / 'report.html', page.render('Five formulas', summary, sections))
  return root / 'report.html'


def main() -> int:
  root = launch.workdir_path(launch.required(WORKDIR))
  for part in PARTS_FLAG.value:
    if part not in PARTS:
      raise config_lib.ConfigError(f"--parts has '{part}'; expected some of {', '.join(PARTS)}"
                                   f'{config_lib.nearest(part, PARTS)}')
  if 'perplexity' in PARTS_FLAG.value and 'attention' not in PARTS_FLAG.value:
    raise config_lib.ConfigError("--parts has 'perplexity' without 'attention', whose decoder it needs")
  strangers = [p.name for p in root.iterdir() if not p.name.startswith('.')] if root.is_dir() else []
  if strangers and not (root / '.lock').exists():
    raise config_lib.ConfigError(f'workdir {root} is not empty and holds no walk (found {sorted(strangers)[0]}); give '
                                 'an empty or a new folder')
  from experiments.shared import pipeline as steps
  try:
    steps.walk(root, plan(root, PARTS_FLAG.value), lambda text: print(f'== {text}', flush=True))
  except steps.Failed as error:
    print(f'stopped: {error}; the same command goes on from there', file=sys.stderr)
    return error.code
  print(f'== done: {write_page(root, PARTS_FLAG.value)}')
  return 0


if __name__ == '__main__':
  launch.run(main)
