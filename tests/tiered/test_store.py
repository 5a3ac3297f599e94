"""Rollouts on disk: those that would be written on the fly, whatever was cut off; others refused; folds kept apart."""

import copy
import dataclasses
import functools
import random

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.data import corpus as corpora
from framework.data import windows
from framework.models import contract
from framework.tiered import stages
from framework.tiered import store as written
from framework.training import loop, setup


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  rng = random.Random(0)
  for n in range(30):
    (folder / f'{n:02d}.txt').write_text(''.join(rng.choices('abcdefgh ', k=rng.randint(20, 200))))
  return corpora.prepare(config_lib.Data(path=str(folder), cache=str(tmp_path_factory.mktemp('cache'))))


def config(**settings):
  return config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=1, width=16, heads=2, scan=True),
      data=config_lib.Data(window=32, stride=20), training=config_lib.Training(batch=8),
      tiered=config_lib.Tiered(**{'period': 12, 'rollout': 4, 'cached': True} | settings)))


@functools.cache
def params(seed):
  """Of a model whose predictions are far from uniform."""
  module = setup.set_up(config(), 257).module
  made = contract.init(module, jax.random.key(seed))
  return jax.tree_util.tree_map_with_path(lambda path, x: x * (20 if 'embedding' in str(path) else 3), made)


def prepare(corpus, folder, models, **settings):
  c = config(**settings)
  return written.prepare(c, corpus, setup.set_up(c, 257).module, models, folder)


@functools.partial(jax.jit, static_argnums=0)
def on_the_fly(module, params, batch):
  starts = module.starts(params, batch)
  return starts, module.write(params, batch, starts)[0].tokens_BxGxKxR


def batch_of(corpus, picked):
  return windows.Windows(corpus.train, 256, 32, 20, True).batch(picked)


def test_cached_rollouts_are_those_on_the_fly(corpus, tmp_path):
  found = prepare(corpus, tmp_path, [params(0)])
  total = windows.count(corpus.train.tokens, 20)
  assert total > 100 and (tmp_path / 'rollouts.bin').stat().st_size == total * (2 * 4 + 2 * 4 * 2)
  module = setup.set_up(config(), 257).module
  seen = set()
  for picked in (np.array([3, 100, 7]), np.array([total - 1, 0, 50])):
    starts, said = on_the_fly(module, params(0), batch_of(corpus, picked))
    cached = found(picked)
    np.testing.assert_array_equal(cached['starts'], starts)
    np.testing.assert_array_equal(cached['rollouts'][:, 0], said)
    seen |= set(np.asarray(said).ravel().tolist())
  assert len(seen) > 5
  other = found(picked + np.array([-1, 1, 1]))  # of other windows
  assert (other['rollouts'][:, 0] != said).mean() > 0.5
  # What the model reads from a batch is what it would write.
  batch = batch_of(corpus, picked)
  hidden = jax.jit(module.hidden)
  np.testing.assert_array_equal(hidden(params(0), batch | found(picked)), hidden(params(0), batch))
  assert np.abs(hidden(params(0), batch | other) - hidden(params(0), batch)).max() > 1e-3


def test_a_write_that_was_cut_off_goes_on(corpus, tmp_path):
  prepare(corpus, tmp_path, [params(0)])
  path = tmp_path / 'rollouts.bin'
  whole = path.read_bytes()
  for size in (0, 24 * 9 + 5, len(whole) - 24):
    path.write_bytes(whole[:size])
    prepare(corpus, tmp_path, [params(0)])
    assert path.read_bytes() == whole
  path.write_bytes(whole[:24] + bytes(24) + whole[48:])
  with pytest.raises(config_lib.ConfigError, match='rollouts.bin was changed after it was written'):
    prepare(corpus, tmp_path, [params(0)])
  path.write_bytes(whole + b'more')
  with pytest.raises(config_lib.ConfigError, match=f'has {len(whole) + 4} bytes; expected {len(whole)}'):
    prepare(corpus, tmp_path, [params(0)])


def test_other_rollouts_are_refused(corpus, tmp_path):
  prepare(corpus, tmp_path, [params(0)])
  one = copy.copy(params(0)['tier_1'])
  one['decoder'] = one['decoder'] | {'embedding': one['decoder']['embedding'].at[3, 1].add(1e-6)}
  changes = [({}, [params(0) | {'tier_1': one}], corpus, 'params'),
             ({'temperature': 0.5}, [params(0)], corpus, 'temperature'),
             ({'samples': 2}, [params(0)], corpus, 'samples'),
             ({}, [params(0)], dataclasses.replace(corpus, digest='other'), 'corpus'),
             ({}, [params(0)] * 2, corpus, 'folds')]
  for settings, models, text, key in changes:
    with pytest.raises(config_lib.ConfigError, match=f'tells of rollouts whose {key} is'):
      prepare(text, tmp_path, models, **settings)
  prepare(corpus, tmp_path, [params(0) | {'tier_2': params(1)['tier_2']}])  # the tier above decides nothing


def writers_of(corpus, folder):
  """For every start of the text, by its place, which of the models 0 and 1 has written its rollout."""
  found = prepare(corpus, folder, [params(0), params(1)], folds=2)
  module = setup.set_up(config(), 257).module
  out = []
  for first in range(0, windows.count(corpus.train.tokens, 20) - 8, 8):
    picked = np.arange(first, first + 8)
    batch = batch_of(corpus, picked)
    starts, zero = on_the_fly(module, params(0), batch)
    _, one = on_the_fly(module, params(1), batch)
    cached = found(picked)['rollouts'][:, 0]
    for b, g in np.ndindex(starts.shape):
      if starts[b, g] < 2**30:
        same = [bool((cached[b, g] == x[b, g]).all()) for x in (zero, one)]
        out.append((int(batch['start'][b]) + int(starts[b, g]), same))
  return out


def test_no_document_is_both_trained_on_and_continued(corpus, tmp_path):
  """Cross-fitting: the rollouts of a fold are those of the model that was trained without it."""
  boundary = int(windows.folds(corpus.train, 2)[1])
  assert boundary in corpus.train.starts and 0.3 < boundary / corpus.train.tokens < 0.7
  told_apart = 0
  for place, (zero, one) in writers_of(corpus, tmp_path):
    assert zero if place < boundary else one
    told_apart += zero != one
  assert told_apart > 100
  for number, (first, end) in enumerate([(0, boundary), (boundary, corpus.train.tokens)]):
    c = config(folds=2)
    low, high = loop.left_out(stages.fold(c, 1, number), corpus)
    for w in set(range(windows.count(corpus.train.tokens, 20))) - set(range(low, high)):
      start = int(batch_of(corpus, np.array([w]))['start'][0])
      assert start + 32 < first or start >= end


def test_the_fold_test_sees_folds_cut_one_window_late(corpus, tmp_path, monkeypatch):
  right = windows.folds
  monkeypatch.setattr(windows, 'folds', lambda split, parts: right(split, parts) + np.array([0, 20, 0]))
  boundary = int(right(corpus.train, 2)[1])
  assert not all(zero if place < boundary else one for place, (zero, one) in writers_of(corpus, tmp_path))


@pytest.mark.parametrize('settings,words', [
    ({'folds': 1}, 'tiered.folds is 1'), ({'folds': 2, 'starts': 'entropy', 'most_starts': 2}, 'starts of its own'),
    ({'layout': 'cross', 'read': 'hidden'}, "tiered.read is 'hidden'; tiered.cached keeps the tokens")])
def test_refused_settings(settings, words):
  with pytest.raises(config_lib.ConfigError, match=words):
    config(**settings)


def test_more_folds_than_documents_are_refused_before_training(corpus):
  with pytest.raises(config_lib.ConfigError, match='data.folds is 50; the training text has'):
    loop.check(config(folds=50), corpus)
