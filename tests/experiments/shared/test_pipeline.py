"""A walk of commands: each runs once, whatever is killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.shared import pipeline as steps
from framework.config import ConfigError

ROOT = pathlib.Path(__file__).parents[3]

# Appends its name to a log when it ends, after a moment.
COMMAND = """
import pathlib, sys, time
log, name, seconds = sys.argv[1:]
with open(log + '.started', 'a') as f: f.write(name + '\\n')
time.sleep(float(seconds))
with open(log, 'a') as f: f.write(name + '\\n')
print('did ' + name)
sys.exit(3 if name == 'bad' else 0)
"""

WALK = """
import pathlib, signal, sys
from experiments.shared import pipeline as steps
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
folder, log, *names = sys.argv[1:]
todo = [steps.Step(n, ('command', log, n, '5' if n == 'slow' else '0.6'), 1.0, pathlib.Path(log + '.' + n))
        for n in names]
try:
  steps.walk(pathlib.Path(folder), todo, lambda text: print(text, flush=True))
except steps.Failed as error:
  print(error, file=sys.stderr)
  sys.exit(error.code)
"""


@pytest.fixture
def start(tmp_path):
  (tmp_path / 'command.py').write_text(COMMAND)
  def run(*names, **kwargs):
    return subprocess.Popen(
        [sys.executable, '-c', WALK, tmp_path / 'walk', tmp_path / 'log', *names], text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}', 'JAX_PLATFORMS': 'cpu'}, **kwargs)
  return run


def lines(path):
  return path.read_text().split() if path.exists() else []


def wait_for(path, name):
  end = time.monotonic() + 60
  while name not in lines(path):
    assert time.monotonic() < end, f'{name} did not start'
    time.sleep(0.02)


def test_each_runs_once_and_in_order(start, tmp_path):
  out, err = (first := start('a', 'b', 'c')).communicate(timeout=60)
  assert first.returncode == 0, err
  assert lines(tmp_path / 'log') == ['a', 'b', 'c'] and out.startswith('1 of 3: a; about 0:03 left in all')
  assert 'did b' in out and (tmp_path / 'log.b').read_text() == 'did b\n'
  assert start('a', 'b', 'c', 'd').wait(60) == 0
  assert lines(tmp_path / 'log') == ['a', 'b', 'c', 'd']  # only what is new


def test_a_failure_keeps_what_was_done(start, tmp_path):
  out, err = (first := start('a', 'bad', 'c')).communicate(timeout=60)
  assert first.returncode == 3 and 'exit code 3' in err and lines(tmp_path / 'log') == ['a', 'bad']
  assert (tmp_path / 'log.a').exists() and not (tmp_path / 'log.bad').exists()
  assert [key.split()[2] for key in json.loads((tmp_path / 'walk' / 'steps.json').read_text())] == ['a']


def test_killed_alone_the_next_waits_for_its_orphan(start, tmp_path):
  first = start('slow', 'b')
  wait_for(tmp_path / 'log.started', 'slow')
  first.kill()  # its command lives on
  first.wait()
  out, err = (second := start('slow', 'b')).communicate(timeout=60)
  assert second.returncode == 0, err
  assert 'waiting for it' in out
  # The orphan ended before the command was run again: never two of them at once.
  assert lines(tmp_path / 'log') == ['slow', 'slow', 'b'] and lines(tmp_path / 'log.started') == ['slow', 'slow', 'b']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command(start, tmp_path, number):
  first = start('a', 'b')
  wait_for(tmp_path / 'log.started', 'a')
  first.send_signal(number)
  first.wait(60)
  assert first.returncode in (128 + number, 1) and lines(tmp_path / 'log') == []
  assert start('a', 'b').wait(60) == 0
  assert lines(tmp_path / 'log') == ['a', 'b']


def test_time_left_follows_the_pace():
  todo = [steps.Step('x', ('x',), 10.0), steps.Step('y', ('y',), 30.0), steps.Step('z', ('z',), 60.0)]
  assert steps.remaining(todo, {}) == 100.0
  assert steps.remaining(todo, {'x': 20.0}) == 180.0  # twice as slow as planned
  assert steps.remaining(todo, {'x': 20.0, 'y': 20.0}) == 60.0
  assert steps.remaining(todo, {'x': 1.0, 'y': 1.0, 'z': 1.0}) == 0.0


@pytest.mark.parametrize('content', ['{', '[]', '{"x": "slow"}'])
def test_a_damaged_list_is_refused(tmp_path, content):
  (tmp_path / 'steps.json').write_text(content)
  with pytest.raises(ConfigError, match='steps.json is damaged'):
    steps.walk(tmp_path, [], print)
