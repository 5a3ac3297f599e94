"""Processes that run the trunks of a sweep, here or under Slurm, and the one line that shows how far they all are."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import logging
import tqdm

from experiments.sweeping.cells import Cell
from foundation import reading
from foundation.printable import printable
from framework import config as config_lib
from framework.training import clock

ROOT = pathlib.Path(__file__).parents[2]
POLL = 0.5  # seconds
NOTE = 30.0  # seconds between lines where there is no terminal
Trunk = list[Cell]


def python_path() -> str:
  """PYTHONPATH with which a worker finds this code from the user's own folder, to which the paths of a sweep belong."""
  return os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


def gpus() -> list[str]:
  """The GPUs that JAX would use here, as CUDA_VISIBLE_DEVICES names them."""
  if os.environ.get('JAX_PLATFORMS', 'cuda') not in ('', 'cuda', 'gpu') or not any(
      importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
    return []
  names = os.environ.get('CUDA_VISIBLE_DEVICES')
  if names is None:
    return sorted((path.name[6:] for path in pathlib.Path('/dev').glob('nvidia[0-9]*')), key=int)
  return [name for name in names.split(',') if name not in ('', '-1')]


class Local:
  """At most `slots` processes at a time, each on cores of its own; they end when this process ends, however it ends.

  Where there are GPUs each process has one, shared with others only if there are more processes than GPUs.
  """

  def __init__(self, slots: int, threads: int):
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))
    if threads > len(cores):
      raise config_lib.ConfigError(f'--threads is {threads}; expected at most the {len(cores)} cores of this machine')
    self._gpus = gpus()
    self.slots = slots or min(len(cores) // threads, len(self._gpus) or len(cores))
    groups = [cores[i:i + threads] for i in range(0, len(cores) - threads + 1, threads)]
    self._groups = [groups[slot % len(groups)] for slot in range(self.slots)]
    self._free = list(range(self.slots))
    self._taken: dict[int, int] = {}

  def ready(self) -> bool:
    return bool(self._free)

  def start(self, words: Sequence[str], log: pathlib.Path) -> subprocess.Popen:
    """Starts `python words`; the log is appended to. The open pipe to its stdin tells the worker that we live."""
    slot = self._free.pop(0)
    pinned = ['--attached', f"--cores={','.join(map(str, self._groups[slot]))}"]
    environment = os.environ | {'OMP_NUM_THREADS': str(len(self._groups[slot])), 'PYTHONPATH': python_path()}
    environment |= self._gpu(slot)
    with open(log, 'ab') as file:
      job = subprocess.Popen([sys.executable, *words, *pinned], stdin=subprocess.PIPE, stdout=file, stderr=file,
                             env=environment)
    self._taken[job.pid] = slot
    return job

  def _gpu(self, slot: int) -> dict[str, str]:
    if not self._gpus:
      return {}
    sharing = -(-self.slots // len(self._gpus))
    memory = {} if sharing == 1 else {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / sharing:.3f}'}
    return {'CUDA_VISIBLE_DEVICES': self._gpus[slot % len(self._gpus)]} | memory

  def poll(self, job: subprocess.Popen) -> int | None:
    """The exit code of a job, None while it runs."""
    code = job.poll()
    if code is not None and job.pid in self._taken:
      job.stdin.close()  # type: ignore[union-attr]  # a pipe
      self._free.append(self._taken.pop(job.pid))
    return code

  def stop(self, jobs) -> None:
    """Asks every job to save and end, and waits for them."""
    for job in jobs:
      job.terminate()
    for job in jobs:
      job.wait()


class Slurm:
  """One Slurm job a trunk, through submitit; jobs outlive this process, and a later one takes up what they wrote."""

  def __init__(self, folder: pathlib.Path, parameters: dict[str, str]):
    try:
      import submitit
    except ImportError:
      raise config_lib.ConfigError("--launcher=slurm needs submitit; install the extra: pip install -e '.[slurm]'"
                                   ) from None
    if not shutil.which('sbatch'):
      raise config_lib.ConfigError('--launcher=slurm: this machine has no sbatch; nearest is --launcher=local')
    self._command = submitit.helpers.CommandFunction
    try:
      self._executor = submitit.AutoExecutor(folder=folder, cluster='slurm')
      self._executor.update_parameters(**{k: int(v) if v.isdigit() else v for k, v in parameters.items()})
    except (NameError, TypeError, ValueError) as error:  # a parameter that is none
      raise config_lib.ConfigError(f"--launcher=slurm: {' '.join(str(error).split())}") from None
    self.slots = 1000  # as many as the cluster gives

  def ready(self) -> bool:
    return True

  def start(self, words: Sequence[str], log: pathlib.Path):
    return self._executor.submit(self._command(
        ['env', f'PYTHONPATH={python_path()}', sys.executable, *words], cwd=pathlib.Path.cwd()))

  def poll(self, job) -> int | None:
    if not job.done():
      return None
    return 0 if job.state in ('COMPLETED', 'FINISHED') and job.exception() is None else 1

  def stop(self, jobs) -> None:
    """Leaves the jobs to the cluster."""


def finished(folder: pathlib.Path) -> bool:
  """Whether the run in `folder` is complete."""
  try:
    return reading.value(folder / 'result.json', {'status': str})['status'] == 'complete'
  except (OSError, config_lib.ConfigError):
    return False


def newest(folder: pathlib.Path) -> dict[str, float]:
  """The last row of timing.jsonl that the run in `folder` wrote; {} if there is none."""
  try:
    with reading.opened(folder / 'timing.jsonl') as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
      row = reading.loads(file.read(4096).split(b'\n')[-2])
  except (OSError, ValueError, IndexError):
    return {}
  return {} if reading.misfit(row, {'step': int, 'tokens_per_second': (float, None)}) else row


def steps_done(folder: pathlib.Path, cell: Cell) -> int:
  """Steps that a cell has taken below the folder of cells, in all stages of its training."""
  return int(sum(newest(folder / cell.name / stage).get('step', 0) for stage in cell.stages))


class Progress:
  """How many cells are done, and when all will be: seconds follow from the speed of the begun cells most like each."""

  def __init__(self, cells: Sequence[Cell], folder: pathlib.Path, slots: int):
    self._cells, self._folder, self._slots = list(cells), folder, slots
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=100, file=sys.stderr, dynamic_ncols=True, bar_format='{desc}')
    self._noted = time.monotonic()

  def _left(self, cell: Cell, start: dict[str, int]) -> float:
    """FLOPs of a cell that are still to be done."""
    if finished(self._folder / cell.name):
      return 0.0
    done = steps_done(self._folder, cell) - start.get(cell.source, 0)
    return cell.cost * (1.0 - max(0, done) / cell.own_steps)

  def line(self, running: Sequence[str], start: dict[str, int]) -> str:
    """One line for people. start: the step at which each cell that is a source decays."""
    left = {cell.name: self._left(cell, start) for cell in self._cells}
    total = sum(cell.cost for cell in self._cells)
    done = sum(value == 0.0 for value in left.values())
    text = f'{done}/{len(self._cells)} cells, {100 * (1 - sum(left.values()) / total):.0f} % of the FLOPs'
    seconds = self._seconds(left)
    text += f', {clock.duration(seconds)} left' if seconds is not None else ''
    steps = {cell.name: steps_done(self._folder, cell) for cell in self._cells if cell.name in running}
    return text + ''.join(f'  {name}: step {steps[name]}' for name in running)

  def _seconds(self, left: dict[str, float]) -> float | None:
    step = {cell.name: self.step_flops(cell) for cell in self._cells}
    rates = {}  # FLOP/s
    for cell in self._cells:
      begun = [newest(self._folder / cell.name / stage) for stage in cell.stages]
      if speed := next((row['tokens_per_second'] for row in reversed(begun) if row.get('tokens_per_second')), None):
        rates[cell.name] = speed * step[cell.name] / (cell.config.training.batch * cell.config.data.window)
    if not rates:
      return None
    def seconds(cell):
      return left[cell.name] / rates[min(rates, key=lambda name: abs(step[name] - step[cell.name]))]
    each = {cell.name: seconds(cell) for cell in self._cells}
    chains: dict[str, float] = {}
    for cell in self._cells:  # a source comes before the cells that begin at it
      chains[cell.name] = chains.get(cell.source, 0.0) + each[cell.name]
    return max(sum(each.values()) / self._slots, max(chains.values()))

  def step_flops(self, cell: Cell) -> float:
    """FLOPs of a training step."""
    return cell.cost / cell.own_steps

  def show(self, running: Sequence[str], start: dict[str, int]) -> None:
    """Says how far all is, on a terminal at once and elsewhere now and then."""
    if self._bar is not None:
      self._bar.set_description_str(self.line(running, start))
    elif time.monotonic() - self._noted > NOTE:
      self._noted = time.monotonic()
      logging.info('%s', self.line(running, start))

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def run(trunks: list[Trunk], launcher: Local | Slurm, words: Sequence[str], logs: pathlib.Path, progress: Progress,
        folder: pathlib.Path, start: dict[str, int]) -> list[str]:
  """Runs every unfinished cell, the costliest trunk first; returns a line for each trunk that failed.

  Args:
    words: of the worker's command; `--cells=` is added.
    start: the step at which each cell that is a source decays.
  """
  trunks = [[cell for cell in trunk if not finished(folder / cell.name)] for trunk in trunks]
  waiting = sorted((l for l in trunks if l), key=lambda l: -sum(cell.cost for cell in l))
  running: list[tuple[Any, Trunk, pathlib.Path]] = []
  failures: list[str] = []
  unannounced = {cell.name for trunk in trunks for cell in trunk}
  try:
    while waiting or running:
      while waiting and launcher.ready():
        trunk = waiting.pop(0)
        log = logs / f'{trunk[0].name}.log'
        running.append((launcher.start([*words, f"--cells={','.join(c.name for c in trunk)}"], log), trunk, log))
      time.sleep(POLL)
      for item in list(running):
        job, trunk, log = item
        for cell in trunk:
          if cell.name in unannounced and finished(folder / cell.name):
            unannounced.remove(cell.name)
            if not sys.stderr.isatty():
              logging.info('%s is done; %s', cell.name, progress.line([], start))
        code = launcher.poll(job)
        if code is not None:
          running.remove(item)
          unfinished = [cell.name for cell in trunk if not finished(folder / cell.name)]
          if code or unfinished:
            failures.append(f"{', '.join(unfinished) or trunk[-1].name}: {_ending(code)}, {_last_line(log)} ({log})")
            logging.warning('%s', failures[-1])
      at_work = [next((c.name for c in trunk if not finished(folder / c.name)), '') for _, trunk, _ in running]
      progress.show([name for name in at_work if name], start)
  except BaseException:
    launcher.stop([job for job, _, _ in running])
    raise
  return failures


def _ending(code: int) -> str:
  return f'killed by signal {-code}' if code < 0 else f'exit code {code}'


def _last_line(log: pathlib.Path) -> str:
  try:
    lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
  except OSError:
    lines = []
  return printable(lines[-1][:300]) if lines else 'which wrote nothing'
