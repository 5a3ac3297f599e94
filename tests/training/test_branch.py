"""A run that begins where a shorter one began its decay ends with the bytes of a run of its own."""

import copy
import json

import jax
import numpy as np
import pytest

from foundation import files
from framework.config import Checkpoint, Config, ConfigError, Data, Evaluation, Model, Optimizer, Training, resolve
from framework.data import corpus
from framework.training import branch, loop, optimizer, run, setup


def config(steps, **changes):
  made = Config(
      model=Model(layers=1, width=16, heads=2, dropout=0.1), data=Data(task='zipf_pairs:symbols=4', window=24),
      optimizer=Optimizer(schedule='wsd', warmup_steps=4, learning_rate=1e-2, final_learning_rate=1e-3),
      training=Training(steps=steps, batch=4, log_every=3, devices=1), evaluation=Evaluation(windows=16, every_steps=5),
      checkpoint=Checkpoint(every_steps=0, keep=1, at_decay=True))
  for key, value in changes.items():
    section, name = key.split('__')
    setattr(getattr(made, section), name, value)
  return resolve(made)


def trained(folder, c, source=None):
  text = corpus.prepare(c.data)
  run.open_folder(folder, c, text, resume=True)
  branched = source is not None and branch.begin(folder, c, source)
  assert branched == (source is not None)
  return loop.train(c, text, folder)


@pytest.fixture(scope='module')
def ladder(tmp_path_factory):
  """Runs of 20, 40 and 70 steps as a ladder, and one of 70 steps by itself."""
  folder = tmp_path_factory.mktemp('ladder')
  trained(folder / '20', config(20))
  trained(folder / '40', config(40), folder / '20')
  return folder, trained(folder / '70', config(70), folder / '40'), trained(folder / '70-alone', config(70))


def test_a_branched_run_is_a_run_of_its_own(ladder):
  folder, result, own = ladder
  one, alone = folder / '70', folder / '70-alone'
  assert (one / 'metrics.jsonl').read_bytes() == (alone / 'metrics.jsonl').read_bytes()
  assert {key for key in result if result[key] != own[key]} <= {'run', 'seconds', 'manifest'} and result['status'] == 'complete'
  arrays = [jax.tree.leaves(setup.load(path).params) for path in (one, alone)]
  for x, y in zip(*arrays, strict=True):
    np.testing.assert_array_equal(x, y)
  assert (one / 'config.json').exists() and json.loads((one / 'result.json').read_text())['steps'] == 70


def test_the_branch_saves_the_trunk(ladder):
  folder = ladder[0]
  rows = files.read_rows(folder / '70' / 'timing.jsonl')
  theirs = {row['step']: row for row in files.read_rows(folder / '40' / 'timing.jsonl')}
  trunk = branch.branch_step(config(40))
  assert trunk == 32 and all(row == theirs[row['step']] for row in rows if row['step'] <= trunk)
  assert any(row['step'] > trunk for row in rows)


def test_the_decay_begins_where_the_rate_first_differs():
  for steps in (20, 40, 70, 244):
    for fraction in (0.0, 0.05, 0.2, 0.9, 1.0):
      c = config(steps, optimizer__decay_fraction=fraction)
      longer = config(10 * steps, optimizer__decay_fraction=fraction)
      rates, other = (optimizer.schedule(x.optimizer, x.training.steps) for x in (c, longer))
      same = np.asarray(rates(np.arange(steps)) == other(np.arange(steps)))
      trunk = branch.branch_step(c)
      assert all(same[:trunk]), (steps, fraction)
      assert trunk + 1 >= steps or not same[trunk + 1], (steps, fraction)


@pytest.mark.parametrize('changes', [{'optimizer__learning_rate': 2e-2}, {'training__seed': 1}, {'model__width': 32}])
def test_only_runs_of_one_trunk_branch(ladder, tmp_path, changes):
  folder = ladder[0]
  c = config(70, **changes)
  assert not branch.shares_trunk(config(20), c)
  run.open_folder(tmp_path / 'new', c, corpus.prepare(c.data), resume=True)
  with pytest.raises(ConfigError, match='differ only in training.steps'):
    branch.begin(tmp_path / 'new', c, folder / '20')


def test_a_longer_run_is_no_trunk_and_a_cosine_neither():
  assert not branch.shares_trunk(config(70), config(20))
  cosine = [config(s, optimizer__schedule='cosine', checkpoint__at_decay=False) for s in (20, 40)]
  assert not branch.shares_trunk(*cosine)
  with pytest.raises(ConfigError, match="a stable phase, such as 'wsd'"):
    config(20, optimizer__schedule='cosine')


def test_a_run_with_checkpoints_of_its_own_keeps_them(ladder):
  folder = ladder[0]
  before = (folder / '70' / 'metrics.jsonl').read_bytes()
  assert not branch.begin(folder / '70', config(70), folder / '40')
  assert (folder / '70' / 'metrics.jsonl').read_bytes() == before


def test_a_branch_that_a_kill_cut_short_begins_again(ladder, tmp_path):
  folder = ladder[0]
  c, new = config(70), tmp_path / 'new'
  run.open_folder(new, c, corpus.prepare(c.data), resume=True)
  (new / '.branch.1.tmp').mkdir()  # the copy was under way
  (new / '.branch.1.tmp' / 'half').write_text('')
  files.write_atomically(new / 'metrics.jsonl', (folder / '40' / 'metrics.jsonl').read_text())
  assert branch.begin(new, copy.deepcopy(c), folder / '40') and not list(new.glob('.branch*'))
  assert loop.train(c, corpus.prepare(c.data), new)['status'] == 'complete'
  assert (new / 'metrics.jsonl').read_bytes() == (folder / '70-alone' / 'metrics.jsonl').read_bytes()
