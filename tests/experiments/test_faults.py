"""The n-th change of a file fails, finds a full disk, or is the last thing a process does; the same command again ends
with the bytes of an undisturbed one. For every command that writes, and every n."""

import json
import pathlib
import shutil

import pytest

from tests.commands import write_config, write_documents

UNLIKE = ('seconds', 'manifest', 'digest', 'tokens_per_second', 'eta_seconds')  # depend on the clock


@pytest.fixture(scope='module')
def root(tmp_path_factory, server):
  folder = tmp_path_factory.mktemp('faults')
  (folder / 'text').mkdir()
  write_documents(folder / 'text', documents=20, length=60)
  write_config(folder, training='steps=6, batch=4, log_every=1, devices=1', evaluation='every_steps=3, windows=8',
               checkpoint='every_steps=2, patience=0.0')
  reply = server('train', f'--config={folder}/config.py', f'--workdir={folder}/run', env=FLAGS)
  assert reply['code'] == 0, reply
  return folder


FLAGS = {'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=1'}


def content(path: pathlib.Path):
  """What is the same in every run of a command: numbers without times, other files to the byte."""
  if path.suffix in ('.json', '.jsonl'):
    values = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == '.jsonl' else [
        json.loads(path.read_text())]
    return [{key: v for key, v in value.items() if key not in UNLIKE} for value in values]
  return path.read_bytes()


def contents(folder: pathlib.Path, names):
  return {name: content(folder / name) for name in names}


# name: (command, words with {root} and {out}, files that have to be the same, the folder whose files are broken)
COMMANDS = {
    'train': ('train', ['--config={root}/config.py', '--workdir={out}/run', '--resume'],
              ['run/metrics.jsonl', 'run/result.json', 'run/tokenizer.json', 'run/loss.svg'], '{out}'),
    'tokenise': ('train', ['--config={root}/config.py', '--workdir={out}/run', '--resume',
                           '--config.data.cache={out}/cache', '--config.training.steps=3'],
                 ['run/metrics.jsonl', 'run/tokenizer.json'], '{out}/cache'),
    'evaluate': ('evaluate', ['--workdir={out}/run', '--windows=4'], ['run/loss_by_position.svg'], '{out}'),
}


def prepare(name, root, out):
  shutil.rmtree(out, ignore_errors=True)
  out.mkdir(parents=True)
  if name == 'evaluate':
    shutil.copytree(root / 'run', out / 'run')


def command(name, server, root, out, **how):
  module, words, _, _ = COMMANDS[name]
  return server(module, *(word.format(root=root, out=out) for word in words), env=FLAGS, timeout=120, **how)


@pytest.fixture(scope='module')
def undisturbed(root, server):
  """By command: the number of changes of files, and what they come to."""
  found = {}
  for name, (_, _, files, where) in COMMANDS.items():
    out = root / 'out'
    prepare(name, root, out)
    reply = command(name, server, root, out, fault=['count', -1, where.format(out=out)])
    assert reply['code'] == 0, reply
    found[name] = reply['touched']['events'], contents(out, files)
  return found


def check(name, mode, number, server, root, undisturbed):
  events, wanted = undisturbed[name]
  out = root / 'out'
  prepare(name, root, out)
  reply = command(name, server, root, out, fault=[mode, number, COMMANDS[name][3].format(out=out)])
  what = f'{name}, {mode} at {number}: {events[number]}\n{reply}'
  if mode == 'kill':
    assert reply['code'] == -9, what
  elif reply['code']:
    assert 'Traceback' not in reply['err'] and 'error: ' in reply['err'].strip().splitlines()[-1], what
  again = command(name, server, root, out)
  assert again['code'] == 0, f'{what}\nagain: {again}'
  assert contents(out, COMMANDS[name][2]) == wanted, what
  assert not [path for path in out.rglob('*tmp*') if 'evaluations' not in path.name], what


@pytest.mark.parametrize('mode', ['kill', 'fail', 'full'])
def test_a_fault_here_and_there(mode, server, root, undisturbed):
  for name in COMMANDS:
    events = undisturbed[name][0]
    for number in sorted({len(events) // 5, len(events) - 2}):
      check(name, mode, number, server, root, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('mode', ['kill', 'fail', 'full'])
def test_every_fault(name, mode, server, root, undisturbed):
  """In every command at every change of a file, but where the same file is changed many times alike."""
  events = undisturbed[name][0]
  for number in range(len(events)):
    check(name, mode, number, server, root, undisturbed)
