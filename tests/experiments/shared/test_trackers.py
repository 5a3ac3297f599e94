"""Rows at a tracker: each once, whatever is killed between, and none of another run."""

import json
import os
import subprocess
import sys

import pytest

from experiments.reports import runs as folders
from experiments.shared import trackers
from foundation import files
from foundation.errors import ConfigError
from framework import config as config_lib
from tests.commands import ROOT


def write_run(folder, steps, status='', **settings):
  folder.mkdir(parents=True, exist_ok=True)
  flat = config_lib.flatten(config_lib.resolve(config_lib.Config())) | settings
  files.write_sealed(folder / 'config.json', {'config': flat, 'corpus': 'c' * 32})
  rows = [{'step': n, 'loss': 5.0 / n, 'tokens': 10 * n, 'epochs': {'web': n / 9}, 'gradient_norm': None}
          for n in range(1, steps + 1)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (folder / 'timing.jsonl').write_text(''.join(json.dumps({'step': n, 'seconds': n / 2}) + '\n' for n in range(1, steps)))
  if status:
    files.write_sealed(folder / 'result.json', {'status': status, 'steps': steps, 'bits_per_byte': 1.5})
  return folder


class Fake:
  """A tracker that remembers everything that it is told, duplicates too."""

  def __init__(self):
    self.runs, self.closed, self.fail_after, self.forgets = {}, [], 10**9, False

  def open(self, mark, name, settings):
    self.mark = mark
    self.runs.setdefault(mark, [])
    return self

  def last(self):
    return -1 if self.forgets else max((step for step, _, _ in self.runs[self.mark]), default=-1)

  def rows(self, rows):
    for row in rows:
      if len(self.runs[self.mark]) >= self.fail_after:
        raise OSError('the network is gone')
      self.runs[self.mark].append(row)

  def close(self, summary):
    self.closed.append(summary)


@pytest.fixture
def fake():
  return Fake()


def send(folder, fake):
  return trackers.send(folders.load(folder, folder.name), 'fake', 'p', fake.open)


@pytest.mark.parametrize('forgets', [False, True])
def test_each_row_once(tmp_path, fake, forgets):
  fake.forgets = forgets
  folder = write_run(tmp_path / 'run', 4)
  assert send(folder, fake) == 4 and send(folder, fake) == 0
  write_run(folder, 7)
  assert send(folder, fake) == 3
  write_run(folder, 7, 'complete')
  assert send(folder, fake) == 0 and fake.closed[-1] == {'status': 'complete', 'steps': 7, 'bits_per_byte': 1.5}
  assert send(folder, fake) == 0 and len(fake.closed) == 3
  (mark, rows), = fake.runs.items()
  assert [step for step, _, _ in rows] == list(range(1, 8))
  assert rows[0] == (1, 0.5, {'loss': 5.0, 'tokens': 10.0, 'epochs/web': 1 / 9, 'timing/seconds': 0.5})
  assert rows[6][1] == 3.5 or rows[6][1] == 7.0  # a row whose timing is not written yet


def test_broken_off_and_again(tmp_path, fake):
  folder, fake.fail_after = write_run(tmp_path / 'run', 6, 'complete'), 3
  with pytest.raises(ConfigError, match='--to=fake: the network is gone; expected a tracker that answers'):
    send(folder, fake)
  fake.fail_after = 10**9
  assert send(folder, fake) == 3
  assert [step for step, _, _ in next(iter(fake.runs.values()))] == list(range(1, 7))


def test_a_folder_that_is_not_to_be_written_to(tmp_path, fake, monkeypatch, caplog):
  folder = write_run(tmp_path / 'run', 5, 'complete')
  def refuse(*_):
    raise OSError(30, 'Read-only file system')
  monkeypatch.setattr(files, 'write_json', refuse)
  assert send(folder, fake) == 5 and send(folder, fake) == 0
  assert len(next(iter(fake.runs.values()))) == 5 and 'Read-only file system' in caplog.text


def test_another_run_in_the_same_folder_is_another(tmp_path, fake):
  folder = write_run(tmp_path / 'run', 5, 'complete')
  send(folder, fake)
  write_run(folder, 8, 'complete', **{'training.steps': 8})
  assert send(folder, fake) == 8 and len(fake.runs) == 2
  marks = {trackers.identity(folders.load(write_run(tmp_path / 'run', 1, **settings), 'run')) for settings in (
      {}, {'data.cache': 'x'}, {'checkpoint.keep': 9}, {'training.devices': 3})}
  assert len(marks) == 1  # how a run is computed and kept is no other run
  (folder / trackers.STATE).write_text('{"fake:p": 3}')
  assert send(folder, fake) >= 0  # damaged: the tracker is asked


SEND = ('import sys, pathlib\nfrom experiments.reports import runs\nfrom experiments.shared import trackers\n'
        'folder = pathlib.Path(sys.argv[1])\n'
        "print(trackers.send(runs.load(folder, 'run'), sys.argv[2], 'lemma', trackers.opener(sys.argv[2], 'lemma')))")


def sent(folder, to, env):
  done = subprocess.run([sys.executable, '-c', SEND, str(folder), to], cwd=ROOT, env=os.environ | env | {'HOME': str(
      folder.parent)}, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr[-800:]
  return next(int(line) for line in done.stdout.splitlines() if line.isdecimal())  # a client may speak as well


@pytest.mark.peers
def test_mlflow(tmp_path):
  mlflow = pytest.importorskip('mlflow')
  folder, env = write_run(tmp_path / 'run', 12), {
      'MLFLOW_TRACKING_URI': f'file://{tmp_path}/store', 'MLFLOW_ALLOW_FILE_STORE': 'true'}
  assert sent(folder, 'mlflow', env) == 12
  (folder / trackers.STATE).unlink()
  assert sent(folder, 'mlflow', env) == 0  # it was asked
  write_run(folder, 15, 'complete')
  assert sent(folder, 'mlflow', env) == 3
  os.environ['MLFLOW_ALLOW_FILE_STORE'] = 'true'
  client = mlflow.MlflowClient(f'file://{tmp_path}/store')
  run, = client.search_runs([client.get_experiment_by_name('lemma').experiment_id])
  history = client.get_metric_history(run.info.run_id, 'loss')
  assert sorted((row.step, row.value) for row in history) == [(n, 5.0 / n) for n in range(1, 16)]
  assert run.data.params['model.layers'] == '4' and run.data.tags['result.bits_per_byte'] == '1.5'


@pytest.mark.peers
def test_trackio(tmp_path):
  pytest.importorskip('trackio')
  folder, env = write_run(tmp_path / 'run', 12), {'TRACKIO_DIR': str(tmp_path / 'store'), 'HF_HUB_OFFLINE': '1'}
  assert sent(folder, 'trackio', env) == 12
  (folder / trackers.STATE).unlink()
  assert sent(folder, 'trackio', env) == 0
  write_run(folder, 15, 'complete')
  assert sent(folder, 'trackio', env) == 3


@pytest.mark.peers
def test_wandb_offline(tmp_path):
  pytest.importorskip('wandb')
  folder, env = write_run(tmp_path / 'run', 12), {'WANDB_MODE': 'offline', 'WANDB_DIR': str(tmp_path)}
  assert sent(folder, 'wandb', env) == 12 and sent(folder, 'wandb', env) == 0
  write_run(folder, 15, 'complete')
  assert sent(folder, 'wandb', env) == 3
  assert len(list((tmp_path / 'wandb').glob('offline-run-*'))) == 2


def test_a_missing_client_is_one_line(monkeypatch):
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ConfigError, match=r"--to=wandb needs wandb; expected pip install -e '.\[track\]'"):
    trackers.opener('wandb', 'p')
