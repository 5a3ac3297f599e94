"""Runs every cell of a sweep, predicts the largest before it starts, and fits scaling laws to what was measured.

Example:
  python -m experiments.sweep --sweep=experiments/sweeps/quick.py
  python -m experiments.sweep --sweep=experiments/sweeps/hour.py --workdir=runs/hour --workers=4 --threads=2
  python -m experiments.sweep --sweep=experiments/sweeps/hour.py --launcher=slurm --slurm=timeout_min=90

A sweep is a folder: cells/NAME is the run of each cell, ledger.jsonl holds the prediction of the largest one and what
was measured, report/ the figures, logs/ what the workers said. The same command goes on where an interrupted one was: a
finished cell is never run again, and a cell that was cut short resumes from its own checkpoints.
"""

import os
import pathlib
import threading

from absl import flags, logging

from experiments.shared import launch
from foundation import files
from framework import config as config_lib

SWEEP = flags.DEFINE_string('sweep', None, 'a file of experiments/sweeps, whose get_sweep() returns a Sweep')
WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the sweep; default: runs/ and the name of the file')
LAUNCHER = flags.DEFINE_enum('launcher', 'local', ['local', 'slurm'], 'where the cells run')
WORKERS = flags.DEFINE_integer('workers', 0, 'local: cells at a time; 0: one a GPU, or as many as the cores allow',
                               lower_bound=0)
THREADS = flags.DEFINE_integer('threads', 1, 'local: cores of each worker, which no other worker uses', lower_bound=1)
SLURM = flags.DEFINE_list('slurm', [], 'slurm: parameters of submitit, as slurm_partition=cpu,timeout_min=90')
CELLS = flags.DEFINE_list('cells', None, 'only run these cells, one after the other, in this process')
CORES = flags.DEFINE_list('cores', None, 'with --cells: the cores of this process')
ATTACHED = flags.DEFINE_bool('attached', False, 'with --cells: end when stdin ends')


def main() -> int:
  path = files.expand('--sweep', launch.shipped(launch.required(SWEEP))).resolve()
  workdir = launch.workdir_path(WORKDIR.value or f'runs/{path.stem}')
  from experiments.sweeping import cells as cells_lib
  sweep = cells_lib.load(path)
  cells = cells_lib.expand(sweep)
  cells_lib.check(sweep, cells)
  if CELLS.value:
    known = {cell.name: cell for cell in cells}
    for name in CELLS.value:
      if name not in known:
        raise config_lib.ConfigError(f"--cells names '{name}', which the sweep has not"
                                     f'{config_lib.nearest(name, known)}')
    return work([known[name] for name in CELLS.value], workdir)
  return manage(sweep, cells, path, workdir)


# A worker


def work(cells, workdir: pathlib.Path) -> int:
  """Runs cells that share their devices one after the other; one that is finished, or becomes so meanwhile, is left."""
  if ATTACHED.value:
    threading.Thread(target=_end_with_parent, daemon=True).start()
  if CORES.value and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, [int(core) for core in CORES.value])
  launch.start_jax(cells[0].config)
  from experiments.reports import figures
  from experiments.sweeping import workers
  from framework import models
  from framework.data import corpus
  from framework.training import branch, loop, run
  for cell in cells:
    folder = workdir / 'cells' / cell.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.parent / f'.{cell.name}.lock'):
      if workers.finished(folder):
        continue
      text = corpus.prepare(cell.config.data)
      loop.check(cell.config, text)
      with run.opened(folder, cell.config, text, resume=True):
        if cell.source and branch.begin(folder, cell.config, workdir / 'cells' / cell.source):
          logging.info('%s begins where %s began its decay', cell.name, cell.source)
        result = loop.train(cell.config, text, folder)
        figures.loss_curves(folder, models.stages(cell.config))
      if result['status'] != 'complete':
        return 130
      logging.info('%s: %.4f nats/token', cell.name, result['loss_nats_per_token'])
  return 0


def _end_with_parent() -> None:
  """Ends this process at once when the pipe from the launcher breaks; a checkpoint has what it was doing."""
  while os.read(0, 1):  # not the buffered stdin, whose lock would be held at exit
    pass
  os._exit(1)


# The launcher


def manage(sweep, cells, path: pathlib.Path, workdir: pathlib.Path) -> int:
  """Runs all cells but the largest, predicts that, runs it, compares, and fits all."""
  from experiments.shared import progress
  from experiments.sweeping import cells as cells_lib
  from experiments.sweeping import forecast, workers
  from framework.data import corpus
  from framework.training import branch
  from scaling.table import TableError
  logs = workdir / 'logs'
  logs.mkdir(parents=True, exist_ok=True)
  with progress.bar() as show:
    corpora = {data: corpus.prepare(data, show) for data in {cell.config.data for cell in cells}}
  with files.lock(workdir / '.lock'):
    cells = cells_lib.with_costs(cells, lambda config: corpora[config.data])
    largest = max(cells, key=lambda cell: cell.whole_cost)
    parameters = dict(word.partition('=')[::2] for word in SLURM.value)
    launcher = workers.Slurm(logs, parameters) if LAUNCHER.value == 'slurm' else workers.Local(WORKERS.value,
                                                                                             THREADS.value)
    start = {cell.source: branch.branch_step(next(c.config for c in cells if c.name == cell.source))
             for cell in cells if cell.source}
    bar = workers.Progress(cells, workdir / 'cells', launcher.slots)
    words = ['-m', 'experiments.sweep', f'--sweep={path}', f'--workdir={workdir}']
    runner = lambda trunks: workers.run(trunks, launcher, words, logs, bar, workdir / 'cells', start)
    sizes = {cell.name: _size(cell.config, corpora[cell.config.data].tokenizer.size) for cell in cells}
    forecast.check_design(cells, sizes, largest, sweep.law, sweep.allow)
    logging.info('%s', bar.line([], start))
    try:
      held = forecast.held_back(cells, sizes, largest)
      failures = runner([[c for c in trunk if c not in held] for trunk in cells_lib.trunks(cells)])
      if failures:
        raise config_lib.ConfigError(f'{len(failures)} trunks of cells failed, first {failures[0]}; the same command '
                                     'tries them again')
      forecast.predict(workdir, largest.name, *sizes[largest.name], sweep.law, sweep.allow)
      logging.info('%s', forecast.compared(workdir)[-1])
      failures = runner([[c for c in trunk if c in held] for trunk in cells_lib.trunks(cells)])
      if failures:
        raise config_lib.ConfigError(f'the largest cell failed, {failures[0]}; the same command tries it again')
      forecast.measure(workdir, largest.name, [cell.name for cell in held])
      summary, page = forecast.conclude(workdir, sweep.law, sweep.allow, sweep.base.data)
    except KeyboardInterrupt:
      logging.info('interrupted; the same command goes on, %s', bar.line([], start))
      return 130
    except TableError as error:
      raise config_lib.ConfigError(f'{error}') from None
    finally:
      bar.close()
  print(summary)
  for line in forecast.compared(workdir):
    print(line)
  print(f'report {page}')
  return 0


def _size(config: config_lib.Config, vocabulary: int) -> tuple[float, float]:
  """(N, D) of a run as the table will count them, before it starts: those of the last stage of its training."""
  import jax
  jax.config.update('jax_platforms', 'cpu')  # accelerators are the workers'
  from framework import models
  from framework.models import contract
  from scaling import table
  c = models.stages(config)[-1].config
  counts = contract.counts(models.build(c, vocabulary))
  N = table.count_parameters('no_input', counts['total'], counts['embedding'], counts['head'])
  scored = c.data.stride if c.data.scored == 'stride' else c.data.window
  return float(N), float(c.training.steps * c.training.batch * scored)


if __name__ == '__main__':
  launch.run(main)
