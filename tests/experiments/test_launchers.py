"""From flags to a run folder, an evaluation and a sample, as a user would."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from tests.commands import ROOT, environment, write_documents

RESULT_KEYS = (
    'run model params_total params_embedding params_head flops_train_exact flops_6nd tokens tokens_unique epochs '
    'batch_tokens steps window stride lr schedule seed loss_nats_per_token bits_per_byte loss_smoothed '
    'loss_by_position manifest seconds devices status digest').split()


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return write_documents(tmp_path_factory.mktemp('text'), seed=1, letters='abcdé', longest=5, vocabulary=30,
                         documents=30, length=200, name='{}.txt')


@pytest.mark.parametrize('tokenizer,settings', [
    ('chars', ['--config.model.position=learned', '--config.model.norm=layernorm', '--config.model.bias',
               '--config.training.partition=mesh', '--config.training.tensorboard']),
    ('bpe', ['--config.data.vocabulary=300', '--config.model.activation=swiglu', '--config.model.scan',
             '--config.model.remat=full', '--config.optimizer.name=lion', '--config.optimizer.schedule=wsd',
             '--config.model.dtype=bfloat16', '--config.training.accumulation=2', '--config.data.packed=false'])])
def test_train_evaluate_generate(launch, text, tmp_path, tokenizer, settings):
  workdir = tmp_path / 'run'
  done = launch('train', '--config=experiments/configs/bytes_small.py', f'--workdir={workdir}',
                f'--config.data.path={text}', f'--config.data.cache={tmp_path / "cache"}',
                f'--config.data.tokenizer={tokenizer}', '--config.data.window=32', '--config.data.stride=20',
                '--config.model.width=32', '--config.model.layers=2', '--config.training.batch=8',
                '--config.training.steps=60', '--config.evaluation.every_steps=30', *settings)
  assert done.returncode == 0, done.stderr
  result = json.loads((workdir / 'result.json').read_text())
  assert list(result) == RESULT_KEYS and result['status'] == 'complete'
  assert 0.95 * 60 * 8 * 20 < result['tokens'] <= 60 * 8 * 20 and len(result['loss_by_position']) == 32
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows] == list(range(10, 61, 10))
  assert all({'step', 'loss', 'tokens', 'learning_rate'} <= row.keys() for row in rows)
  assert rows[-1]['loss'] < rows[0]['loss'] and 'validation_loss' in rows[2]
  assert (workdir / 'loss.svg').read_text().startswith('<?xml')
  assert bool(list(workdir.glob('tensorboard/*'))) == ('--config.training.tensorboard' in settings)

  evaluated = launch('evaluate', f'--workdir={workdir}', '--stride=4', '--batch=5')
  assert evaluated.returncode == 0, evaluated.stderr
  lines = [json.loads(line) for line in (workdir / 'evaluations.jsonl').read_text().splitlines()]
  assert [line['stride'] for line in lines] == [20, 4]
  assert lines[0]['nats_per_token'] == pytest.approx(result['loss_nats_per_token'],
                                                     rel=1e-2 if 'bfloat16' in str(settings) else 1e-5)
  assert f"{lines[1]['bits_per_byte']:.4f}" in evaluated.stdout

  sampled = launch('generate', f'--workdir={workdir}', '--prompt=ab', '--tokens=50', '--seed=3')
  assert sampled.returncode == 0, sampled.stderr
  assert sampled.stdout.startswith('ab') and len(sampled.stdout) > 10
  again = launch('generate', f'--workdir={workdir}', '--prompt=ab', '--tokens=50', '--seed=3')
  assert again.stdout == sampled.stdout
  two = launch('generate', f'--workdir={workdir}', '--prompt=ab', '--prompt=c d', '--tokens=20', '--temperature=0')
  assert two.stdout.count('-' * 72) == 2, two.stderr

  drawn = launch('attention', f'--workdir={workdir}', '--text=ab cd a', '--tokens=5')
  assert drawn.returncode == 0, drawn.stderr
  assert (workdir / 'attention.svg').read_text().startswith('<?xml')


@pytest.mark.parametrize('name', ['train', 'evaluate', 'generate', 'attention', 'report', 'watch', 'sync'])
def test_help_holds_an_example(launch, name):
  shown = launch(name, '--help')
  assert shown.returncode == 0 and 'Example:' in shown.stdout and f'python -m experiments.{name} --' in shown.stdout
  assert not re.search(r'\S {3}', shown.stdout)  # lines that were joined with the next one's indent
  assert '--workdir' in shown.stdout or '--runs' in shown.stdout


def test_help_waits_for_no_library():
  """What every launcher imports before its flags are known."""
  code = 'import sys, experiments.shared.launch; print({"jax", "optax", "orbax", "matplotlib"} & set(sys.modules))'
  reply = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert reply.stdout == 'set()\n'


def test_a_terminal_shows_one_live_line(text, tmp_path):
  main, other = pty.openpty()
  termios.tcsetwinsize(other, (24, 160))
  process = subprocess.Popen(
      [sys.executable, '-m', 'experiments.train', '--config=experiments/configs/bytes_small.py',
       f'--workdir={tmp_path / "run"}', f'--config.data.path={text}', f'--config.data.cache={tmp_path / "cache"}',
       '--config.data.window=16', '--config.model.width=16', '--config.model.layers=1', '--config.training.batch=4',
       '--config.training.steps=200', '--config.evaluation.every_steps=0', '--config.checkpoint.every_steps=0'],
      cwd=ROOT, env=environment() | {'TERM': 'xterm'}, stdout=other, stderr=other)
  os.close(other)
  shown = b''
  while True:
    try:
      part = os.read(main, 65536)
    except OSError:  # the other end is closed
      break
    if not part:
      break
    shown += part
  assert process.wait() == 0, shown.decode()
  live = [line for line in shown.decode().replace('\n', '\r').split('\r') if '/200 |' in line]
  assert len(live) > 2
  assert all(word in live[-1] for word in ('200/200', 'loss ', 'bits/byte', 'tokens/s', 'epoch ', 'left'))
  assert b'step 10 ' not in shown  # rows are for files
