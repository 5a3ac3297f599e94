"""A run that is stopped at its worst moments: in a compilation, an evaluation, after its last save, twice at once."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from foundation import files
from tests.commands import ROOT, environment, write_config, write_documents



@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('interrupted')
  text = folder / 'text'
  text.mkdir()
  write_documents(text)
  write_config(folder, training='steps=40, batch=4, log_every=3, devices=1', evaluation='every_steps=10, batch=1',
               checkpoint='every_steps=0, patience=0.0')
  output, code = finish(start(folder, folder / 'whole'))
  assert code == 0, output
  return folder


def start(root, workdir, *more):
  return subprocess.Popen([sys.executable, '-m', 'experiments.train', f'--config={root}/config.py',
                           f'--workdir={workdir}', '--resume', *more], cwd=ROOT, env=environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
  output, _ = process.communicate(timeout=300)
  return output, process.returncode


def read_until(process, words):
  """Reads lines until one has `words`; the lines."""
  lines = []
  for line in process.stdout:
    lines.append(line)
    if words in line:
      return lines
  raise AssertionError(''.join(lines))


def numbers(workdir):
  """All that is a function of the config."""
  outcome = json.loads((workdir / 'result.json').read_text())
  outcome = {key: value for key, value in outcome.items() if key not in ('run', 'seconds', 'digest', 'manifest')}
  return outcome, (workdir / 'metrics.jsonl').read_bytes()


def stopped(process, number, before):
  process.send_signal(number)
  output, code = finish(process)
  assert code == 128 + number, ''.join(before) + output
  return output


def test_a_signal_in_a_compilation_ends_the_run_at_once(root, tmp_path):
  process = start(root, tmp_path / 'run')
  before = read_until(process, 'start at step 0')
  begin = time.monotonic()
  output = stopped(process, signal.SIGUSR1, before)
  assert 'stopped by SIGUSR1 between checkpoints; nothing was lost' in output
  assert 'step 3 ' not in output and time.monotonic() - begin < 20
  output, code = finish(start(root, tmp_path / 'run'))
  assert code == 0 and numbers(tmp_path / 'run') == numbers(root / 'whole'), output


@pytest.mark.parametrize('number', [signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_an_evaluation_is_heard_between_batches(root, tmp_path, number):
  """The row of step 10 is written when its evaluation has been done again."""
  process = start(root, tmp_path / 'run')
  before = read_until(process, 'step 9 ')
  output = stopped(process, number, before)
  assert f'{signal.Signals(number).name}: stopping after this step' in output
  assert f'stopped by {signal.Signals(number).name} at step 10 of 40; checkpoint saved' in output
  assert files.read_rows(tmp_path / 'run' / 'metrics.jsonl')[-1]['step'] == 9
  output, code = finish(start(root, tmp_path / 'run'))
  assert code == 0 and 'start at step 10' in output, output
  assert numbers(tmp_path / 'run') == numbers(root / 'whole')


def test_a_run_killed_in_its_last_evaluation_has_lost_nothing(root, tmp_path):
  """Of a run that saves only at its end."""
  process = start(root, tmp_path / 'run')
  read_until(process, 'step 39 ')
  while not (tmp_path / 'run' / 'checkpoints' / '40').exists():
    assert process.poll() is None
    time.sleep(0.002)
  process.kill()
  process.communicate()
  assert files.read_rows(tmp_path / 'run' / 'metrics.jsonl')[-1]['step'] == 39
  output, code = finish(start(root, tmp_path / 'run'))
  assert code == 0 and 'start at step 40' in output, output
  assert numbers(tmp_path / 'run') == numbers(root / 'whole')


def test_a_second_training_in_a_folder_is_refused_by_name(root, tmp_path):
  process = start(root, tmp_path / 'run')
  read_until(process, 'start at step 0')
  output, code = finish(start(root, tmp_path / 'run'))
  assert code == 2, output
  assert f'{tmp_path}/run is in use by process {process.pid} on ' in output and 'train.py --config=' in output
  assert len([line for line in output.splitlines() if 'error:' in line]) == 1
  output, code = finish(process)
  assert code == 0 and numbers(tmp_path / 'run') == numbers(root / 'whole'), output


def test_a_finished_run_without_its_checkpoints_is_left_as_it_is(root, tmp_path):
  shutil.copytree(root / 'whole', tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  before = numbers(tmp_path / 'run')
  output, code = finish(start(root, tmp_path / 'run'))
  assert code == 0 and numbers(tmp_path / 'run') == before and 'done: ' in output, output


def test_a_stopped_run_without_its_checkpoints_is_refused(root, tmp_path):
  process = start(root, tmp_path / 'run')
  stopped(process, signal.SIGTERM, read_until(process, 'step 15 '))
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  rows = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()
  output, code = finish(start(root, tmp_path / 'run'))
  assert code == 2 and 'was stopped by SIGTERM at step' in output and 'without its checkpoints' in output, output
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == rows


def test_an_emptied_tokenizer_is_written_again(root, tmp_path):
  shutil.copytree(root / 'whole', tmp_path / 'run')
  whole = (tmp_path / 'run' / 'tokenizer.json').read_bytes()
  (tmp_path / 'run' / 'tokenizer.json').write_bytes(b'')
  output, code = finish(start(root, tmp_path / 'run'))
  assert code == 0 and 'tokenizer.json is damaged; it is written again' in output, output
  assert (tmp_path / 'run' / 'tokenizer.json').read_bytes() == whole
