"""The workers of a sweep: what is run, in which order, and what is said of those that fail. Jobs here are pretended."""

import json
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

from experiments.sweeping import cells as cells_lib
from experiments.sweeping import workers
from experiments.sweeping.cells import Sweep, expand, over, product
from framework.config import Checkpoint, Config, ConfigError, Data, Model, Optimizer, Training

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def cells():
  base = Config(model=Model(layers=1, heads=2), data=Data(task='zipf_pairs', window=24),
                optimizer=Optimizer(schedule='wsd', warmup_steps=4), training=Training(batch=4),
                checkpoint=Checkpoint(at_decay=True))
  sweep = Sweep(base, product(over('model.width', [16, 32, 64]), over('training.steps', [200, 400])))
  corpus = types.SimpleNamespace(tokenizer=types.SimpleNamespace(size=193))
  return cells_lib.with_costs(expand(sweep), lambda config: corpus)


def finish(folder, name, status='complete'):
  (folder / name).mkdir(parents=True, exist_ok=True)
  (folder / name / 'result.json').write_text(json.dumps({'status': status}))


class Pretended:
  """Two jobs at a time; each ends after a few polls, having finished its cells, but for those named in `bad`."""
  slots = 2

  def __init__(self, folder, bad=()):
    self.folder, self.bad, self.started, self.alive, self.most = folder, bad, [], 0, 0

  def ready(self):
    return self.alive < 2

  def start(self, words, log):
    names = words[-1].removeprefix('--cells=').split(',')
    self.started.append(names)
    self.alive += 1
    self.most = max(self.most, self.alive)
    log.write_text('one line\nerror: no reason\n')
    return types.SimpleNamespace(names=names, polls=0)

  def poll(self, job):
    job.polls += 1
    if job.polls < 3:
      return None
    self.alive -= 1
    for name in job.names:
      if name in self.bad:
        return -9
      finish(self.folder, name)
    return 0

  def stop(self, jobs):
    pass


def run(cells, launcher, folder, monkeypatch):
  monkeypatch.setattr(workers, 'POLL', 0.0)
  progress = workers.Progress(cells, folder, 2)
  folder.mkdir(exist_ok=True)
  return workers.run(cells_lib.trunks(cells), launcher, ['-m', 'x'], folder, progress, folder, {})


def test_costly_trunks_first_and_two_at_a_time(cells, tmp_path, monkeypatch):
  launcher = Pretended(tmp_path)
  assert run(cells, launcher, tmp_path, monkeypatch) == []
  assert launcher.started == [[f'width{w}_steps200', f'width{w}_steps400'] for w in (64, 32, 16)]
  assert launcher.most == 2


def test_a_finished_cell_is_never_run_again(cells, tmp_path, monkeypatch):
  finish(tmp_path, 'width16_steps200')
  finish(tmp_path, 'width64_steps200')
  finish(tmp_path, 'width64_steps400')
  finish(tmp_path, 'width32_steps200', status='stopped by SIGTERM')  # begun, not finished
  launcher = Pretended(tmp_path)
  assert run(cells, launcher, tmp_path, monkeypatch) == []
  assert launcher.started == [['width32_steps200', 'width32_steps400'], ['width16_steps400']]
  again = Pretended(tmp_path)
  assert run(cells, again, tmp_path, monkeypatch) == [] and again.started == []


def test_a_failed_trunk_is_told_and_the_others_end(cells, tmp_path, monkeypatch):
  launcher = Pretended(tmp_path, bad=['width32_steps400'])
  failures = run(cells, launcher, tmp_path, monkeypatch)
  assert len(failures) == 1 and 'width32_steps400: killed by signal 9, error: no reason' in failures[0]
  assert {n for names in launcher.started for n in names} == {c.name for c in cells}
  assert workers.finished(tmp_path / 'width32_steps200') and not workers.finished(tmp_path / 'width32_steps400')


def test_progress_counts_what_a_branch_takes_over(cells, tmp_path):
  progress = workers.Progress(cells, tmp_path, 2)
  start = {'width16_steps200': 160}
  only = [c for c in cells if c.name.startswith('width16')]
  progress._cells = only
  finish(tmp_path, 'width16_steps200')
  assert progress.line([], start).startswith('1/2 cells, 45 % of the FLOPs')  # 200 of 200 + 240 steps
  (tmp_path / 'width16_steps400').mkdir()
  rows = ''.join(json.dumps({'step': step}) + '\n' for step in (160, 280))
  (tmp_path / 'width16_steps400' / 'timing.jsonl').write_text(rows + '{"step": 39')  # a row that is being written
  assert workers.newest(tmp_path / 'width16_steps400') == {'step': 280}
  assert progress.line([], start).startswith('1/2 cells, 73 % of the FLOPs')  # 200 + 120 of 440


def test_progress_says_when_all_will_be_done(cells, tmp_path):
  progress = workers.Progress(cells, tmp_path, 2)
  assert 'left' not in progress.line([], {})
  (tmp_path / 'width64_steps200').mkdir()
  (tmp_path / 'width64_steps200' / 'timing.jsonl').write_text('{"step": 100, "tokens_per_second": 9.6}\n')
  begun = next(c for c in cells if c.name == 'width64_steps200')
  rate = begun.cost / 200 * 9.6 / (4 * 24)  # a tenth of a step a second
  left = sum(c.cost for c in cells) - begun.cost / 2
  chain = sum(c.cost for c in cells if 'width64' in c.name) - begun.cost / 2
  expected = max(left / 2, chain) / rate
  minutes, seconds = divmod(int(expected + 0.5), 60)
  hours = f'{minutes // 60}:{minutes % 60:02d}' if minutes > 59 else f'{minutes}'
  assert f'{hours}:{seconds:02d} left' in progress.line([], {})


def test_more_threads_than_cores_are_refused():
  with pytest.raises(ConfigError, match='--threads is 4096; expected at most'):
    workers.Local(0, 4096)


def test_workers_are_pinned_and_end_with_their_launcher(tmp_path):
  code = ('import os, sys, time; from experiments.sweeping import workers; launcher = workers.Local(2, 1); '
          'print(launcher.start(["-c", "import os, sys; print(os.getpid(), sys.argv[1:], flush=True); '
          'sys.stdin.buffer.read(); print(7, flush=True)"], "log").pid, flush=True); time.sleep(600)')
  code = code.replace('"log"', repr(str(tmp_path / 'log')))
  parent = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  worker = int(parent.stdout.readline())
  deadline = time.monotonic() + 300
  while not (tmp_path / 'log').exists() or not (tmp_path / 'log').read_text():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  cores = sorted(os.sched_getaffinity(0))
  assert (tmp_path / 'log').read_text().split('\n')[0] == f"{worker} ['--attached', '--cores={cores[0]}']"
  parent.kill()
  parent.wait()
  while not (tmp_path / 'log').read_text().endswith('7\n'):  # its stdin ended with the launcher
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.parametrize('slots,seen', [(0, ['3', '5']), (2, ['3', '5']), (3, ['3 0.450', '5 0.450', '3 0.450'])])
def test_workers_share_gpus_only_if_they_must(monkeypatch, tmp_path, slots, seen):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(workers.importlib.util, 'find_spec', lambda name: name == 'jax_cuda13_plugin')
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(8), raising=False)
  launcher = workers.Local(slots, 1)
  show = 'import os; print(*(os.environ[k] for k in ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION") ' \
         'if k in os.environ))'
  jobs = [launcher.start(['-c', show], tmp_path / str(n)) for n in range(launcher.slots)]
  assert not any(job.wait(60) for job in jobs)
  assert [(tmp_path / str(n)).read_text().strip() for n in range(launcher.slots)] == seen
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert workers.gpus() == []


def test_slurm_without_submitit_is_one_clear_line(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(ConfigError, match='needs submitit; install the extra: pip install -e'):
    workers.Slurm(tmp_path, {})
