"""A run on a mixture: killed and resumed bit for bit, evaluated text by text, and its epochs said."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.config import Checkpoint, Config, ConfigError, Data, Evaluation, Model, Optimizer, Training
from framework.data import corpus as corpus_lib
from framework.data import mixtures, windows
from framework.training import evaluation, loop, manifest, run, setup
from tests.commands import ROOT, environment, write_config, write_documents
from tests.training import test_hosts as several


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('mixed')
  for name, letters, count in (('web', 'abcdef', 30), ('code', 'xyz', 24)):
    (root / name).mkdir()
    write_documents(root / name, letters=letters, documents=count, length=60)
  return root


def config(root, **changes):
  return config_lib.changed(Config(
      model=Model(layers=1, width=16, heads=2, dropout=0.1), optimizer=Optimizer(warmup_steps=4, learning_rate=1e-2),
      data=Data(mixture=f'web={root}/web:0.75,code={root}/code:0.25', cache=str(root / 'cache'), window=32),
      training=Training(steps=40, batch=8, log_every=4, devices=1), evaluation=Evaluation(every_steps=20, windows=16),
      checkpoint=Checkpoint(every_steps=10, keep=9)), {k.replace('__', '.'): v for k, v in changes.items()})


def trained(folder, c):
  text = corpus_lib.prepare(c.data)
  run.open_folder(folder, c, text, resume=True)
  return loop.train(c, text, folder)


@pytest.fixture(scope='module')
def whole(root):
  return root / 'whole', trained(root / 'whole', config(root))


class Killed(BaseException):
  pass


@pytest.mark.parametrize('after', [3, 17, 31])
def test_killed_and_resumed(root, whole, tmp_path, monkeypatch, after):
  c, calls = config(root), []
  original = loop.hosts.entered
  def entered(number, *more):
    if not more and number > after:
      raise Killed
    return original(number, *more)
  with monkeypatch.context() as patch:
    patch.setattr(loop.hosts, 'entered', entered)
    with pytest.raises(Killed):
      trained(tmp_path / 'run', c)
  outcome = trained(tmp_path / 'run', c)
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (whole[0] / 'metrics.jsonl').read_bytes()
  assert {key for key in outcome if outcome[key] != whole[1][key]} <= {'run', 'seconds', 'manifest'}
  for x, y in zip(*(jax.tree.leaves(setup.load(path).params) for path in (tmp_path / 'run', whole[0])), strict=True):
    np.testing.assert_array_equal(x, y)


def test_what_a_run_says_of_its_texts(root, whole):
  folder, result = whole
  text = corpus_lib.prepare(config(root).data)
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  shares = mixtures.Shares((0.75, 0.25), 0).counts(320)
  parts = mixtures.trained_on(text.train, text.tokenizer.end, config(root).data).parts
  for i, name in enumerate(('web', 'code')):
    one = result['sources'][name]
    assert one['weight'] == (0.75, 0.25)[i] and one['epochs'] == shares[i] / parts[i].count
    assert rows[-1]['epochs'][name] == pytest.approx(one['epochs'], abs=1e-6)
    assert rows[-1]['validation_losses'][name] == one['nats_per_token']
  losses = [result['sources'][name]['nats_per_token'] for name in ('web', 'code')]
  assert result['loss_nats_per_token'] == pytest.approx(0.75 * losses[0] + 0.25 * losses[1])
  assert losses[0] != losses[1] and 0 < result['tokens_unique'] <= result['tokens']


def test_the_loss_of_each_text_is_that_of_its_own_evaluation(root, whole):
  trained_, c = setup.load(whole[0]), config(root)
  text = corpus_lib.prepare(c.data)
  nats = evaluation.compile_nats(trained_.setup.module, trained_.setup.mesh)
  evaluate = lambda on: evaluation.evaluate(nats, trained_.params, on, trained_.tokenizer, trained_.setup.mesh, batch=8)
  mixed = evaluate(mixtures.evaluated_on(text.validation, text.tokenizer.end, 32, 16, True))
  alone = [evaluate(windows.Windows(part, text.tokenizer.end, 32, 16)) for part in text.validation.parts]
  for name, own in zip(('web', 'code'), alone):
    assert mixed['sources'][name] == {key: own[key] for key in mixed['sources'][name]}
  assert mixed['targets'] == sum(own['targets'] for own in alone) == text.validation.tokens - 2
  bytes_per_token = sum(w * own['bytes'] / own['targets'] for w, own in zip((0.75, 0.25), alone))
  assert mixed['bits_per_byte'] == pytest.approx(mixed['bits_per_token'] / bytes_per_token)


def test_verify_proves_a_mixture(root, whole):
  c = config(root)
  findings = list(manifest.prove(loop.models.stages(c)[0], corpus_lib.prepare(c.data), whole[0], whole[0]))
  assert not [f for f in findings if f.sound is False], findings


def test_its_paths_may_move_and_its_shares_may_not(root, whole, tmp_path):
  for name in ('web', 'code'):
    (tmp_path / name).symlink_to(root / name)
  moved = config(root, data__mixture=f'web={tmp_path}/web:0.75,code={tmp_path}/code:0.25')
  assert trained(whole[0], moved)['steps'] == 40
  other = config(root, data__mixture=f'web={root}/web:0.5,code={root}/code:0.5')
  with pytest.raises(ConfigError, match='holds a run on corpus'):
    trained(whole[0], other)


def test_several_stages_and_short_texts_are_refused(root, tmp_path):
  tiered = config(root, model__name='tiered', model__dropout=0.0, tiered__period=16, tiered__rollout=4)
  text = corpus_lib.prepare(tiered.data)
  with pytest.raises(ConfigError, match='data.mixture is .* for a model of several stages'):
    loop.check(tiered, text)
  (tmp_path / 'a.txt').write_text('short, but two parts')
  short = config(root, data__mixture=f'web={root}/web:0.75,short={tmp_path}/a.txt:0.25')
  with pytest.raises(ConfigError, match='data.window is 32; the corpus has 20 training tokens'):
    loop.check(short, corpus_lib.prepare(short.data))


@pytest.mark.slow
def test_two_processes_killed_and_one_that_goes_on(root, tmp_path):
  """And then more steps for the run of one process, which end as those of two."""
  write_config(tmp_path, training='steps=20, batch=4, log_every=5, devices=1', evaluation='windows=8',
               checkpoint='every_steps=10, patience=0.0')
  words = ('--config.data.path=', f'--config.data.mixture=web={root}/web:0.75,code={root}/code:0.25',
           '--config.optimizer.schedule=constant')
  def alone(*more):
    return subprocess.run(
        [sys.executable, '-m', 'experiments.train', f'--config={tmp_path}/config.py', f'--workdir={tmp_path}/run',
         '--resume', *words, *more], cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment() | {
             'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'})
  for process in several.two(tmp_path, tmp_path / 'whole', words, words):
    assert several.ended(process)[0] == 0
  running = several.two(tmp_path, tmp_path / 'run', words, words)
  several.wait_for(tmp_path / 'run' / 'checkpoints' / '10', running)
  for process in running:
    os.kill(several.child(process), signal.SIGKILL)
    several.ended(process)
  done = alone()
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
  longer = '--config.training.steps=30'
  done = alone(longer)
  assert done.returncode == 0 and 'goes on from step 20' in done.stderr, done.stderr
  for process in several.two(tmp_path, tmp_path / 'whole', (*words, longer), (*words, longer)):
    assert several.ended(process)[0] == 0
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
  assert (tmp_path / 'whole' / 'steps_20' / 'result.json').exists()
