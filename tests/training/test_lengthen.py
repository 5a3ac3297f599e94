"""A run goes on with more steps and other settings: bit for bit the run that was begun so, and nothing is lost.

But for another kind of schedule, or one of two parts: XLA rounds its rates another way in another program.
"""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from foundation import files
from framework import config as config_lib
from framework.config import Checkpoint, Config, ConfigError, Data, Evaluation, Model, Optimizer, Training
from framework.data import corpus
from framework.training import history, loop, manifest, optimizer, result, resume, run, setup


def config(steps, schedule='wsd', **changes):
  return config_lib.changed(Config(
      model=Model(layers=1, width=16, heads=2, dropout=0.1), data=Data(task='zipf_pairs:symbols=4', window=24),
      optimizer=Optimizer(schedule=schedule, warmup_steps=4, learning_rate=1e-2, final_learning_rate=1e-3),
      training=Training(steps=steps, batch=4, log_every=3, devices=1), evaluation=Evaluation(windows=16, every_steps=7),
      checkpoint=Checkpoint(every_steps=8, keep=3)), {k.replace('__', '.'): v for k, v in changes.items()})


def trained(folder, c):
  text = corpus.prepare(c.data)
  run.open_folder(folder, c, text, resume=True)
  return loop.train(c, text, folder)


def arrays(folder):
  return jax.tree.leaves(setup.load(folder).params)


def same(one, other, results, exact=True):
  if not exact:
    return [np.testing.assert_allclose(x, y, rtol=2e-2, atol=2e-4) for x, y in zip(arrays(one), arrays(other), strict=True)]
  assert (one / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes()
  assert {key for key in results[0] if results[0][key] != results[1][key]} <= {'run', 'seconds', 'manifest'}
  for x, y in zip(arrays(one), arrays(other), strict=True):
    np.testing.assert_array_equal(x, y)


def copied(source, target):
  shutil.copytree(source, target)
  return target


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
  """Finished runs of 20 steps, by schedule; checkpoints at 8, 16 and 20, the decay of wsd begins at 16."""
  root = tmp_path_factory.mktemp('ended')
  for schedule in ('wsd', 'constant', 'cosine'):
    trained(root / schedule, config(20, schedule))
  return root


@pytest.fixture(scope='module')
def longer(tmp_path_factory):
  """Runs of 40 steps by schedule, each in one go, and their results."""
  root = tmp_path_factory.mktemp('longer')
  whole = {'wsd': config(40), 'constant': config(40, 'constant'),
           'cosine': config(40, 'cosine', optimizer__rewarm='20')}
  return root, whole, {name: trained(root / name, c) for name, c in whole.items()}


@pytest.mark.parametrize('schedule, begin', [('wsd', 16), ('constant', 20), ('cosine', 20)])
def test_a_longer_run_is_the_one_that_was_begun_so(ended, longer, tmp_path, schedule, begin):
  root, whole, results = longer
  folder = copied(ended / schedule, tmp_path / 'run')
  before, was = arrays(folder), (folder / 'metrics.jsonl').read_bytes()
  same(folder, root / schedule, (trained(folder, whole[schedule]), results[schedule]), schedule != 'cosine')
  row = history.starts(folder)[-1]
  assert row['step'] == begin and row['changed']['training.steps'] == [20, 40]
  # What it was is a run of its own.
  kept = folder / 'steps_20'
  assert result.read(kept)['steps'] == 20 and (kept / 'metrics.jsonl').read_bytes() == was
  assert run.read_config(kept) == config(20, schedule)
  for x, y in zip(arrays(kept), before, strict=True):
    np.testing.assert_array_equal(x, y)
  findings = list(manifest.prove(loop.models.stages(whole[schedule])[0], corpus.prepare(whole[schedule].data), folder,
                                 folder))
  assert not [f for f in findings if f.sound is False], findings


@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['wsd', 'constant'])
def test_three_hundred_steps_become_six_hundred(tmp_path, schedule):
  trained(tmp_path / 'run', config(300, schedule, checkpoint__every_steps=100))
  pair = [trained(tmp_path / name, config(600, schedule, checkpoint__every_steps=100)) for name in ('run', 'whole')]
  same(tmp_path / 'run', tmp_path / 'whole', pair)


def test_a_cosine_is_refused_without_a_declared_rewarm(ended, tmp_path):
  folder = copied(ended / 'cosine', tmp_path / 'run')
  before = (folder / 'config.json').read_bytes()
  with pytest.raises(ConfigError, match='training.steps is 20; this config has 40.*same for 5 steps.*checkpoint is at 8'
                     '.*or optimizer.rewarm=20, which warms up again'):
    trained(folder, config(40, 'cosine'))
  assert (folder / 'config.json').read_bytes() == before and not (folder / 'steps_20').exists()
  with pytest.raises(ConfigError, match='rewarm.*expected numbers of steps'):
    config(40, 'cosine', optimizer__rewarm='x')
  with pytest.raises(ConfigError, match='which leaves 3 steps from 37 on'):
    config(40, 'cosine', optimizer__rewarm='20,37')


def test_a_rewarm_begins_at_the_last_rate():
  c = config(60, 'cosine', optimizer__rewarm='20').optimizer
  rates = np.asarray(optimizer.schedule(c, 60)(np.arange(60)))
  np.testing.assert_array_equal(rates[:20], optimizer.schedule(config(20, 'cosine').optimizer, 20)(np.arange(20)))
  np.testing.assert_allclose(rates[20:24], 1e-3 + 9e-3 * np.arange(1, 5) / 4, rtol=1e-6)
  np.testing.assert_allclose(rates[24:], optimizer.schedule(config(40, 'cosine').optimizer, 40)(np.arange(4, 40)),
                             rtol=1e-6)


def test_a_constant_run_may_end_in_a_decay(ended, tmp_path):
  whole = config(25, 'wsd', optimizer__decay_fraction=0.2)
  folder = copied(ended / 'constant', tmp_path / 'run')
  same(folder, tmp_path / 'whole', (trained(folder, whole), trained(tmp_path / 'whole', whole)), exact=False)


def test_killed_while_it_is_lengthened(ended, longer, tmp_path, monkeypatch):
  """At each change of a file in turn: the same command again gives the same run, and the old one is never gone."""
  root, whole, results = longer
  class Killed(BaseException):
    pass
  def killing(name, owner, number):
    original, calls = getattr(owner, name), []
    def call(*words, **named):
      calls.append(1)
      if len(calls) > number:
        raise Killed
      return original(*words, **named)
    return call
  places = [(os, 'rename', 0), (os, 'rename', 1), (shutil, 'rmtree', 1), (shutil, 'rmtree', 2), (files, 'write_sealed', 0)]
  for owner, name, number in places:
    folder = copied(ended / 'wsd', tmp_path / f'{name}{number}')
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, killing(name, owner, number))
      with pytest.raises(Killed):
        run.open_folder(folder, whole['wsd'], corpus.prepare(whole['wsd'].data), resume=True)
    assert (folder / 'checkpoints' / '20').exists() or (folder / 'steps_20' / 'checkpoints' / '20').exists()
    run.open_folder(folder, whole['wsd'], corpus.prepare(whole['wsd'].data), resume=True)
    assert json.loads((folder / 'config.json').read_text())['config']['training.steps'] == 40
    assert sorted(p.name for p in (folder / 'checkpoints').iterdir()) == ['16', '8']
    assert result.read(folder) is None and result.read(folder / 'steps_20')['steps'] == 20
  same(folder, root / 'wsd', (loop.train(whole['wsd'], corpus.prepare(whole['wsd'].data), folder), results['wsd']))


def test_what_is_beside_the_training_may_change(ended, tmp_path):
  """A run stopped at step 16 goes on with other rows, evaluations and checkpoints: the same parameters."""
  folder = copied(ended / 'constant', tmp_path / 'run')
  (folder / 'result.json').unlink()
  shutil.rmtree(folder / 'checkpoints' / '20')
  other = config(20, 'constant', training__log_every=1, evaluation__every_steps=0, evaluation__windows=8,
                 checkpoint__keep=1, data__cache=str(tmp_path / 'cache'))
  outcome = trained(folder, other)
  assert outcome['status'] == 'complete' and run.read_config(folder) == other
  for x, y in zip(arrays(folder), arrays(ended / 'constant'), strict=True):
    np.testing.assert_array_equal(x, y)
  assert [row['step'] for row in files.read_rows(folder / 'metrics.jsonl')][-5:] == [15, 17, 18, 19, 20]
  assert history.starts(folder)[-1]['changed']['training.log_every'] == [3, 1]
  begun = json.loads((folder / 'config.json').read_text())['begun']
  assert begun['checkpoint.keep'] == 3 and 'model.width' not in begun


@pytest.mark.parametrize('key, value', [('training.seed', 1), ('model.width', 32), ('data.stride', 12),
                                        ('optimizer.learning_rate', 1e-3), ('training.batch', 8)])
def test_what_decides_the_training_may_not_change(ended, tmp_path, key, value):
  c = config_lib.changed(config(20), {key: value})
  with pytest.raises(ConfigError, match=f'holds a run whose {key} is .*; this config has {value}'):
    run.open_folder(ended / 'wsd', c, corpus.prepare(c.data), resume=True)


def test_settings_that_another_version_knew(ended, tmp_path, caplog):
  """What is absent has its default, what is unknown is said."""
  folder = copied(ended / 'wsd', tmp_path / 'run')
  saved = json.loads((folder / 'config.json').read_text())
  saved['config'] = {k: v for k, v in saved['config'].items() if k not in ('optimizer.rewarm', 'evaluation.batch')}
  files.write_sealed(folder / 'config.json', saved | {'config': saved['config'] | {'model.wings': 2}})
  assert run.read_config(folder) == config(20)
  assert 'model.wings=2, which this version does not know' in caplog.text
  assert trained(folder, config(20)) == result.read(folder)
  assert trained(folder, config(40))['steps'] == 40
  assert json.loads((folder / 'config.json').read_text())['config']['model.wings'] == 2


def test_every_setting_is_of_one_kind():
  kinds = config_lib.HOW, config_lib.BESIDE, config_lib.RATE
  assert sum(map(len, kinds)) == len(set().union(*kinds)) and not set().union(*kinds) - set(
      config_lib.flatten(Config()))
  assert 'training.steps' in config_lib.RATE and 'data.path' in config_lib.BESIDE
  assert resume.CONFIG == run.CONFIG and resume.RESULT == result.RESULT and resume.CHECKPOINTS == loop.CHECKPOINTS


def test_a_run_of_several_stages_keeps_its_steps(tmp_path):
  whole = dict(model__name='tiered', model__dropout=0.0, tiered__period=8, tiered__rollout=4, checkpoint__at_decay=False)
  c = config(20, **whole)
  run.open_folder(tmp_path, c, corpus.prepare(c.data), resume=True)
  longer = config(40, **whole)
  run.open_folder(tmp_path, longer, corpus.prepare(c.data), resume=True)  # nothing is trained yet
  (tmp_path / 'tier_1').mkdir()
  with pytest.raises(ConfigError, match='training.steps is 20; this config has 40, and is trained in several stages'):
    run.open_folder(tmp_path, longer, corpus.prepare(c.data), resume=True)


def test_a_run_that_was_stopped_may_get_more_steps(ended, longer, tmp_path):
  """Before its rates differ nothing is kept aside, and nothing is done again."""
  root, whole, results = longer
  folder = copied(ended / 'wsd', tmp_path / 'run')
  (folder / 'result.json').unlink()
  shutil.rmtree(folder / 'checkpoints' / '20')
  same(folder, root / 'wsd', (trained(folder, whole['wsd']), results['wsd']))
  assert not (folder / 'steps_20').exists() and history.starts(folder)[-1]['step'] == 16


@pytest.mark.parametrize('schedule', ['wsd', 'constant'])
def test_the_command_of_before_takes_nothing_back(longer, tmp_path, schedule):
  """The shorter command once more, by mistake, on a run that has been given more steps."""
  folder = copied(longer[0] / schedule, tmp_path / 'run')
  before = sorted(path.name for path in folder.iterdir())
  with pytest.raises(ConfigError, match='training.steps is 40; this config has 20, fewer than it has made'):
    trained(folder, config(20, schedule))
  assert sorted(path.name for path in folder.iterdir()) == before and result.read(folder)['steps'] == 40
