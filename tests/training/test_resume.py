"""Exact resume: a run killed at any moment ends with the bytes of one that was not."""

import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from foundation import files
from framework import config as config_lib
from framework.training import history
from tests.commands import ROOT, environment, write_documents

STEPS = 120


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return write_documents(tmp_path_factory.mktemp('text'))


def command(text, workdir, *more):
  return [sys.executable, '-m', 'experiments.train', '--config=experiments/configs/bytes_small.py',
          f'--workdir={workdir}', f'--config.data.path={text}', f'--config.data.cache={text.parent / "cache"}',
          '--config.model.layers=2', '--config.model.width=32', '--config.model.dropout=0.1',
          '--config.data.window=32', '--config.data.stride=24', '--config.training.batch=8',
          f'--config.training.steps={STEPS}', '--config.training.log_every=3', '--config.checkpoint.every_steps=10',
          '--config.evaluation.every_steps=25', '--config.evaluation.windows=8', '--resume', *more]


def start(text, workdir, *more):
  return subprocess.Popen(command(text, workdir, *more), cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def finish(process):
  output, _ = process.communicate(timeout=300)
  return output, process.returncode


def final_arrays(workdir):
  with ocp.CheckpointManager(workdir / 'checkpoints', options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
    assert manager.latest_step() == STEPS

    state = manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.fixture(scope='module')
def uninterrupted(text, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run') / 'whole'
  output, code = finish(start(text, workdir))
  assert code == 0, output
  return (workdir / 'metrics.jsonl').read_bytes(), final_arrays(workdir)


def same(workdir, uninterrupted):
  metrics, arrays = uninterrupted
  assert (workdir / 'metrics.jsonl').read_bytes() == metrics
  found = final_arrays(workdir)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def reached(workdir, step):
  rows = files.read_rows(workdir / 'metrics.jsonl')
  return bool(rows) and rows[-1]['step'] >= step


def kill_when(process, condition, delay):
  """Waits for the condition, then `delay` seconds, then SIGKILL. Returns whether the process was still running."""
  while process.poll() is None and not condition():
    time.sleep(0.002)
  time.sleep(delay)
  running = process.poll() is None
  process.send_signal(signal.SIGKILL)
  finish(process)
  return running


def killed_and_resumed(text, workdir, seed, uninterrupted):
  """One run: killed once or twice, half of the times while a checkpoint is being written, then run to its end."""
  rng = random.Random(seed)
  kills = []
  for _ in range(rng.randint(1, 2)):
    if rng.random() < 0.5:
      after = rng.randrange(0, STEPS - 20, 10)
      def writing():
        return reached(workdir, after) and any((workdir / 'checkpoints').glob('*tmp*'))
      kills.append(('checkpoint', after, kill_when(start(text, workdir), writing, rng.random() * 0.05)))
    else:
      after = rng.randrange(0, STEPS - 5)
      kills.append(('step', after, kill_when(start(text, workdir), lambda: reached(workdir, after),
                                             rng.random() * 0.3)))
  output, code = finish(start(text, workdir))
  assert code == 0, (kills, output)
  same(workdir, uninterrupted)
  return kills


@pytest.mark.parametrize('seed', [0, 1])
def test_killed_runs_end_the_same(text, tmp_path, seed, uninterrupted):
  killed_and_resumed(text, tmp_path / 'run', seed, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(100, 120))
def test_twenty_killed_runs_end_the_same(text, tmp_path, seed, uninterrupted):
  killed_and_resumed(text, tmp_path / 'run', seed, uninterrupted)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_so(text, tmp_path, number, uninterrupted):
  workdir = tmp_path / 'run'
  process = start(text, workdir)
  while process.poll() is None and not reached(workdir, 30):
    time.sleep(0.002)
  process.send_signal(number)
  output, code = finish(process)
  assert code == 128 + number, output
  last = output.strip().splitlines()[-1]
  assert f'stopped by {signal.Signals(number).name} at step' in last and 'continue with --resume' in last
  step = int(last.split('at step ')[1].split()[0])
  assert (workdir / 'checkpoints' / str(step)).is_dir()
  output, code = finish(start(text, workdir))
  assert code == 0 and f'start at step {step}' in output, output
  same(workdir, uninterrupted)


def test_another_seed_is_seen_by_the_comparison(text, tmp_path, uninterrupted):
  output, code = finish(start(text, tmp_path / 'run', '--config.training.seed=1'))
  assert code == 0, output
  with pytest.raises(AssertionError):
    same(tmp_path / 'run', uninterrupted)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(text, tmp_path, uninterrupted):
  workdir = tmp_path / 'run'
  process = start(text, workdir)
  kill_when(process, lambda: (workdir / 'checkpoints' / '40').is_dir(), 0.0)
  newest = max(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
  data = max((p for p in (workdir / 'checkpoints' / str(newest) / 'state').rglob('*') if p.is_file()),
             key=lambda p: p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 0x40  # one bit
  data.write_bytes(bytes(content))
  output, code = finish(start(text, workdir))
  assert code == 0, output
  assert f'checkpoint {newest} cannot be used' in output
  assert f'start at step {newest - 10}' in output
  assert (workdir / 'checkpoints' / f'damaged-{newest}').is_dir()
  same(workdir, uninterrupted)


def test_a_finished_run_is_left_as_it_is(text, tmp_path, uninterrupted):
  workdir = tmp_path / 'run'
  assert finish(start(text, workdir))[1] == 0
  before = (workdir / 'result.json').read_bytes()
  output, code = finish(start(text, workdir))
  assert code == 0, output
  assert (workdir / 'result.json').read_bytes() == before
  same(workdir, uninterrupted)


BLOW_UP = ['--config.optimizer.learning_rate=100', '--config.optimizer.clip_norm=0', '--config.optimizer.name=lion',
           '--config.optimizer.weight_decay=90', '--config.optimizer.warmup_steps=0']


def test_a_step_that_is_not_finite_stops_the_run(text, tmp_path):
  output, code = finish(start(text, tmp_path / 'run', *BLOW_UP))
  last = output.strip().splitlines()[-1]
  assert code == 3, output
  assert last.startswith('error: step ') and 'windows ' in last and 'last good checkpoint: ' in last
  assert 'skipped' not in last


def test_skipping_is_counted_and_capped(text, tmp_path):
  output, code = finish(start(text, tmp_path / 'run', *BLOW_UP, '--config.training.skip_nonfinite=7'))
  last = output.strip().splitlines()[-1]
  assert code == 3, output
  assert '8 steps skipped, training.skip_nonfinite is 7' in last
  rows = files.read_rows(tmp_path / 'run' / 'metrics.jsonl')
  assert rows[-1]['skipped'] in range(1, 8) and rows[-1]['loss'] is None


def test_a_run_goes_on_with_another_mesh_and_says_so(tmp_path):
  """How a run is computed may change: its numbers are the same to rounding, and verify knows why not to the bit."""
  config = config_lib.resolve(config_lib.Config())
  other = config_lib.changed(config, {'training.partition': 'mesh', 'training.mesh': 'fsdp=4', 'model.scan': True})
  for one in (config, other, other):
    history.add(tmp_path, one, {'code': 'x'})
  assert [row['settings']['training.mesh'] for row in history.starts(tmp_path)] == ['data=-1', 'fsdp=4', 'fsdp=4']
  assert history.differing(tmp_path, other) == [
      'model.scan False, True', 'training.partition mesh, pmap', 'training.mesh data=-1, fsdp=4']
  assert history.differing(tmp_path / 'old', other) == []  # a run that is older than the file
  lines = (tmp_path / history.HISTORY).read_text()
  (tmp_path / history.HISTORY).write_text(lines.replace('fsdp=4', 'fsdp=2', 1))
  with pytest.raises(config_lib.ConfigError, match='history.jsonl:2 was changed'):
    history.starts(tmp_path)
