"""Several processes of one run: what they disagree on, and what the others say when one is killed, stopped or missing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from experiments.shared import roll_call
from framework.training import hosts
from tests.commands import ROOT, environment, write_config, write_documents

STATED = 45.0  # seconds after which no process of a broken run may be left: hosts.LOST, and twice as much for a slow CI


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hosts')
  (folder / 'text').mkdir()
  write_documents(folder / 'text', documents=8, length=100)
  write_config(folder, training='steps=20, batch=4, log_every=5, devices=1', evaluation='windows=8',
               checkpoint='every_steps=10, patience=0.0')
  return folder


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(root, workdir, port, process, processes, *more):
  words = [sys.executable, '-m', 'experiments.train', f'--config={root}/config.py', f'--workdir={workdir}', '--resume',
           f'--coordinator=127.0.0.1:{port}', f'--processes={processes}', f'--process={process}', '--join_timeout=60',
           *more]
  return subprocess.Popen(words, cwd=ROOT, env=environment() | {'JAX_PLATFORMS': 'cpu'}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)


def two(root, workdir, *words):
  """Two processes with the words of each."""
  port = free_port()
  return [start(root, workdir, port, process, 2, *more) for process, more in enumerate(words)]


def ended(process):
  """(exit code, the lines that are no line of the log)."""
  _, err = process.communicate(timeout=120)
  return process.returncode, [line for line in err.splitlines() if not re.match(r'\d\d:\d\d:\d\d ', line)]


def child(process):
  """The process that does the work, whose parent was started."""
  return int(subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True, check=True).stdout)


def wait_for(path, processes):
  while not path.exists():
    assert all(p.poll() is None for p in processes), [ended(p) for p in processes]
    time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_train_and_end_together(root, tmp_path):
  for process in two(root, tmp_path / 'run', (), ()):
    assert ended(process) == (0, [])
  assert (tmp_path / 'run' / 'result.json').exists()


@pytest.mark.parametrize('word, what', [
    ('--config.optimizer.learning_rate=0.5', 'another optimizer.learning_rate than process 0'),
    pytest.param('--config.data.path={root}/config.py', 'another data.path than process 0', marks=pytest.mark.slow),
])
def test_processes_that_disagree_are_refused(root, tmp_path, word, what):
  for process in two(root, tmp_path / 'run', (), (word.format(root=root),)):
    code, lines = ended(process)
    assert code == 2 and len(lines) == 1 and what in lines[0] and 'process 1 has' in lines[0], lines
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_other_text_under_the_same_name_is_refused(root, tmp_path):
  """As of hosts whose disks are their own."""
  home = {name: tmp_path / name for name in ('zero', 'one')}
  for folder in home.values():
    folder.mkdir()
    (folder / 'text.txt').write_text(f'{folder.name} ' * 400)
  port, processes = free_port(), []
  for number, folder in enumerate(home.values()):
    words = ['--config.data.path=text.txt', f'--config.data.cache={tmp_path}/cache']
    processes.append(subprocess.Popen(
        [sys.executable, '-m', 'experiments.train', f'--config={root}/config.py', f'--workdir={tmp_path}/run',
         f'--coordinator=127.0.0.1:{port}', '--processes=2', f'--process={number}', *words], cwd=folder,
        env=environment() | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True))
  for process in processes:
    code, lines = ended(process)
    assert code == 2 and 'process 1 has another corpus than process 0' in lines[0], lines


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.parametrize('process, number', [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_process_ends_the_others_in_one_line(root, tmp_path, process, number):
  endless = ('--config.training.steps=1000000',)
  running = two(root, tmp_path / 'run', endless, endless)
  wait_for(tmp_path / 'run' / 'checkpoints' / '10', running)
  lost = child(running[process])
  os.kill(lost, number)
  begin = time.monotonic()
  code, lines = ended(running[1 - process])
  assert time.monotonic() - begin < STATED
  assert code == 1 and len(lines) == 1, lines
  assert re.match(f'error: .*process {process} .*is gone.*; --resume goes on from the newest checkpoint', lines[0])
  if number == signal.SIGSTOP:
    os.kill(lost, signal.SIGKILL)
  code, lines = ended(running[process])
  assert code == 137 and lines == [f'error: process {process} was killed by SIGKILL; --resume goes on from the newest '
                                   'checkpoint']


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.parametrize('processes, count, named', [
    ([1], 2, 'not all of the 2 processes came to 127.0.0.1'), ([0], 2, 'process 1 of 2 did not come to 127.0.0.1'),
    ([0, 0], 2, 'not all of the 2 processes|process 1 of 2 did not come'),
    ([0, 2], 5, 'process 1, 3, 4 of 5 did not come to 127.0.0.1:')])
def test_a_process_that_never_comes_is_named_and_waited_for_as_long_as_stated(root, tmp_path, processes, count, named):
  port = free_port()
  begin = time.monotonic()
  running = [start(root, tmp_path / 'run', port, number, count, '--join_timeout=15') for number in processes]
  for process in running:
    code, lines = ended(process)
    said = [line for line in lines if not line.startswith('waiting for process')]
    assert code == 1 and len(said) == 1 and re.search(named, said[0]), lines
  assert 15 < time.monotonic() - begin < 15 + STATED


@pytest.mark.slow
def test_fewer_processes_with_as_many_devices_go_on_with_the_same_bits(root, tmp_path):
  for process in two(root, tmp_path / 'whole', (), ()):
    assert ended(process)[0] == 0
  running = two(root, tmp_path / 'run', (), ())
  wait_for(tmp_path / 'run' / 'checkpoints' / '10', running)
  for process in running:
    os.kill(child(process), signal.SIGKILL)
    ended(process)
  alone = subprocess.run(
      [sys.executable, '-m', 'experiments.train', f'--config={root}/config.py', f'--workdir={tmp_path}/run', '--resume'],
      cwd=ROOT, env=environment() | {'JAX_PLATFORMS': 'cpu',
                                     'XLA_FLAGS': '--xla_force_host_platform_device_count=2'},
      capture_output=True, text=True, check=False)
  assert alone.returncode == 0 and '2 cpu devices on 1 hosts' in alone.stderr, alone.stderr
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()


class Store:
  """The coordination service's, in memory."""

  def __init__(self):
    self.values = {'lemma/who/1': 'node1, process id 7'}

  def key_value_dir_get(self, prefix):
    return [item for item in self.values.items() if item[0].startswith(prefix)]

  def key_value_try_get(self, key):
    return self.values[key]


class Ended(Exception):
  pass


@pytest.fixture
def watch(monkeypatch):
  made = object.__new__(hosts.Watch)
  made._store, made._rank, made._stall, made._seen, made.over = Store(), 0, 100.0, {}, False
  def end(message):
    raise Ended(message)
  made._end = end
  monkeypatch.setattr(hosts.time, 'sleep', lambda seconds: None)
  clock = [0.0]
  monkeypatch.setattr(hosts.time, 'monotonic', lambda: clock[0])
  def look(second, **beats):
    clock[0] = second
    made._look({int(name[1:]): value.split() for name, value in beats.items()})
  return made, look


def test_a_beat_that_stands_still_is_a_lost_process(watch):
  _, look = watch
  look(0, p0='1 5.0', p1='1 5.0')
  look(hosts.LOST, p0='21 6.0', p1='2 5.0')
  look(2 * hosts.LOST - 1, p0='41 7.0', p1='2 5.0')
  with pytest.raises(Ended, match=r'process 1 \(node1, process id 7\) is gone: last heard of 21 s ago at step 5$'):
    look(2 * hosts.LOST + 1, p0='43 7.0', p1='2 5.0')


def test_beats_without_steps_are_a_stall_of_the_last_behind(watch):
  _, look = watch
  for second in range(0, 100, 10):
    look(second, p0=f'{second} 12.0', p1=f'{second} 11.3')
  look(100, p0='100 12.0', p1='100 11.4')  # a batch of an evaluation is progress
  look(150, p0='150 12.0', p1='150 11.4')
  with pytest.raises(Ended, match=r'no process has made a step for 100 s; last is process 1 \(node1.*\) at step 11$'):
    look(201, p0='201 12.0', p1='201 11.4')


def test_what_a_process_said_at_its_end_is_passed_on(watch):
  made, look = watch
  made._store.values['lemma/end/1'] = 'the disk is full'
  with pytest.raises(Ended, match=r'process 1 \(node1, process id 7\) ended: the disk is full'):
    look(0, p0='1 1.0', p1='1 1.0')


def test_agreement_names_process_and_entry(monkeypatch):
  monkeypatch.setattr(hosts.jax, 'process_count', lambda: 3)
  def gather(mine):
    import numpy as np
    others = np.stack([mine] * 3)
    others[2, 1, 0] ^= 1
    return others
  monkeypatch.setattr(hosts.multihost_utils, 'process_allgather', gather)
  with pytest.raises(hosts.Disagreement, match='^process 2 has another b than process 0'):
    hosts.agree({'a': 1, 'b': [2]}, hosts.Disagreement)


@pytest.fixture
def agreeing(monkeypatch):
  """Three watches on one store, whose threads look when they are told to."""
  values: dict[str, str] = {}
  class Shared(Store):
    def key_value_set(self, key, value, allow_overwrite=False):
      values[key] = value
  monkeypatch.setattr(hosts.jax, 'process_count', lambda: 3)
  made = []
  for rank in range(3):
    one = object.__new__(hosts.Watch)
    one._store, one._rank, one._turn = Shared(), rank, threading.Lock()
    one._store.values = values
    one._asked, one._calls, one._stop_at, one._stop = False, 0, 0, ''
    made.append(one)
  return made


def test_all_processes_stop_at_one_call_however_far_each_has_come(agreeing):
  for calls, one in zip((5, 7, 6), agreeing):
    assert [one.stopping() for _ in range(calls)] == [''] * calls
  agreeing[2].ask_for_stop('SIGTERM')
  for one in agreeing:
    one._agree_on_stop()
  assert agreeing[0]._turn.locked() and not agreeing[2]._turn.locked()  # the last to look knows already
  for one in agreeing:
    one._agree_on_stop()
  found = [[one.stopping() for _ in range(9 - calls)] for calls, one in zip((5, 7, 6), agreeing)]
  assert found == [['', '', 'SIGTERM', 'SIGTERM'], ['SIGTERM', 'SIGTERM'], ['', 'SIGTERM', 'SIGTERM']]


def test_nobody_makes_a_step_while_the_others_have_not_answered(agreeing):
  agreeing[0].ask_for_stop('SIGINT')
  agreeing[0]._agree_on_stop()
  waiting = threading.Thread(target=agreeing[0].stopping, daemon=True)
  waiting.start()
  waiting.join(0.2)
  assert waiting.is_alive()
  for one in (*agreeing[1:], *agreeing):
    one._agree_on_stop()
  waiting.join(5)
  assert not waiting.is_alive()


def local(root, workdir, *words, processes=3):
  """experiments.local of a training."""
  return subprocess.Popen(
      [sys.executable, '-m', 'experiments.local', f'--processes={processes}', 'train', f'--config={root}/config.py',
       f'--workdir={workdir}', '--resume', '--config.training.batch=6', *words], cwd=ROOT,
      env=environment() | {'JAX_PLATFORMS': 'cpu'}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(launcher, processes):
  """The processes that do the work, by rank: a launcher's children are the parents of these."""
  found = {}
  while len(found) < processes:
    for parent in subprocess.run(['pgrep', '-P', str(launcher.pid)], capture_output=True, text=True,
                                 check=False).stdout.split():
      words = open(f'/proc/{parent}/cmdline', encoding='utf-8').read()
      inner = subprocess.run(['pgrep', '-P', parent], capture_output=True, text=True, check=False).stdout.split()
      if inner:
        found[int(re.search(r'--process=(\d+)', words)[1])] = int(inner[0])
    time.sleep(0.1)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('rank, number', [(2, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_the_launcher_of_three_names_who_is_gone(root, tmp_path, rank, number):
  launcher = local(root, tmp_path / 'run', '--config.training.steps=1000000')
  wait_for(tmp_path / 'run' / 'checkpoints' / '10', [launcher])
  pids = workers(launcher, 3)
  begin = time.monotonic()
  os.kill(pids[rank], number)
  if number == signal.SIGSTOP:
    time.sleep(hosts.LOST + 10)  # the others have named it; it is waited for no longer
    os.kill(pids[rank], signal.SIGKILL)
  _, err = launcher.communicate(timeout=120)
  assert time.monotonic() - begin < 60 and launcher.returncode not in (0, None)
  lines = [line for line in err.splitlines() if not re.match(r'(\[\d\] )?\d\d:\d\d:\d\d ', line)]
  assert any(f'process {rank}' in line for line in lines[-2:]), lines
  held = {path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()}
  again = local(root, tmp_path / 'run', '--config.training.steps=1000000')
  while {path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()} <= held:
    assert again.poll() is None, ended(again)
    time.sleep(0.1)
  again.send_signal(signal.SIGTERM)
  _, err = again.communicate(timeout=120)
  assert again.returncode == 128 + signal.SIGTERM and 'checkpoint saved' in err, err[-2000:]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_and_they_go_on_with_the_same_bits(root, tmp_path):
  steps = ('--config.training.steps=400', '--config.checkpoint.every_steps=10', '--config.training.log_every=1')
  whole = local(root, tmp_path / 'whole', *steps, processes=2)
  whole.communicate(timeout=200)
  assert whole.returncode == 0
  part = local(root, tmp_path / 'run', *steps, processes=2)
  wait_for(tmp_path / 'run' / 'checkpoints' / '10', [part])
  os.kill(workers(part, 2)[1], signal.SIGTERM)
  _, err = part.communicate(timeout=120)
  stopped = re.search(r'stopped by SIGTERM at step (\d+) of 400; checkpoint saved', err)
  assert stopped and part.returncode == 128 + signal.SIGTERM, err[-2000:]
  assert (tmp_path / 'run' / 'checkpoints' / stopped[1]).is_dir()
  rest = local(root, tmp_path / 'run', *steps, processes=2)
  rest.communicate(timeout=200)
  assert rest.returncode == 0
  lines = [(tmp_path / name / 'metrics.jsonl').read_text().splitlines() for name in ('run', 'whole')]
  assert len(lines[0]) == 400 and [pair for pair in zip(*lines) if pair[0] != pair[1]][:1] == [], stopped[1]


@pytest.mark.parametrize('words, message', [([], 'expected the name of a command, train or evaluate'),
                                            (['trian'], r"command is 'trian'.*did you mean 'train'")])
def test_the_launcher_refuses_in_one_line(words, message):
  done = subprocess.run([sys.executable, '-m', 'experiments.local', '--processes=2', *words], cwd=ROOT,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 2 and re.search(message, done.stderr) and len(done.stderr.splitlines()) == 1


def rows_of(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', ['fsdp=2', 'tensor=2', 'sequence=2'])
def test_a_run_over_processes_goes_on_with_fewer_and_more(root, tmp_path, mesh):
  """Also where processes need each other's rows, as with tensor and sequence; a checkpoint knows neither mesh nor
  processes."""
  steps = ('--config.training.batch=8', '--config.training.log_every=1', '--config.training.partition=mesh')
  alone = local(root, tmp_path / 'whole', *steps, '--config.training.mesh=data=1', processes=1)
  assert alone.wait(timeout=200) == 0
  begun = local(root, tmp_path / 'begun', *steps, f'--config.training.mesh={mesh}', processes=2)
  wait_for(tmp_path / 'begun' / 'checkpoints' / '10', [begun])
  for pid in workers(begun, 2).values():
    os.kill(pid, signal.SIGKILL)
  begun.communicate(timeout=120)
  for processes, other in ((1, 'data=1'), (2, mesh), (4, 'data=2,fsdp=2')):
    folder = tmp_path / str(processes)
    shutil.copytree(tmp_path / 'begun', folder)
    rest = local(root, folder, *steps, f'--config.training.mesh={other}', processes=processes)
    _, err = rest.communicate(timeout=300)
    assert rest.returncode == 0, err[-2000:]
    for row, true in zip(rows_of(folder), rows_of(tmp_path / 'whole'), strict=True):
      assert row['tokens'] == true['tokens'] and abs(row['loss'] - true['loss']) < 1e-5
    assert len((folder / 'history.jsonl').read_text().splitlines()) == 2


@pytest.mark.parametrize('numbers, words', [([], ''), ([3], '3'), ([1, 2], '1, 2'), ([0, 4, 5, 6, 9], '0, 4 to 6, 9')])
def test_numbers_are_listed(numbers, words):
  assert roll_call.listed(numbers) == words


def test_the_roll_names_who_has_not_come(monkeypatch, capsys):
  monkeypatch.setattr(roll_call, 'PAUSE', 0.05)
  monkeypatch.setattr(roll_call, 'SAID', 0.3)
  address = f'127.0.0.1:{free_port()}'
  rolls = [roll_call.attend(address, 4, number, 30) for number in (0, 1, 3)]
  deadline = time.monotonic() + 20
  while [roll.missing for roll in rolls] != [[2]] * 3 and time.monotonic() < deadline:
    time.sleep(0.02)
  assert {roll.name for roll in rolls} == {'process 2 of 4'}
  with socket.create_connection(('127.0.0.1', int(address.split(':')[1]) + 1)) as stranger:  # is no process
    stranger.sendall(b'GET / HTTP/1.1')
  while 'waiting for process 2 of 4' not in capsys.readouterr().err and time.monotonic() < deadline:
    time.sleep(0.1)
  last = roll_call.attend(address, 4, 2, 30)
  while [roll.missing for roll in (*rolls, last)] != [[]] * 4 and time.monotonic() < deadline:
    time.sleep(0.02)
  assert time.monotonic() < deadline and {roll.name for roll in rolls} == {''}
