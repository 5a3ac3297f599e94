"""Mixtures: which text a row reads, that nothing is remembered, that shares and epochs are kept, and what is refused."""

import json

import numpy as np
import pytest

from framework import expressions
from framework.config import Config, ConfigError, Data, resolve
from framework.data import corpus, mixtures, windows
from framework.data.mixtures import RING, Shares, floor_sum
from tests.commands import write_documents


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('mixture')
  for name, letters, count in (('web', 'abcdef', 40), ('code', 'xyz', 30)):
    (root / name).mkdir()
    write_documents(root / name, letters=letters, documents=count, length=120)
  return root


def data(root, mixture='web={0}/web:0.7,code={0}/code:0.3', **more):
  return resolve(Config(data=Data(mixture=mixture.format(root), cache=str(root / 'cache'), window=32, **more))).data


@pytest.fixture(scope='module')
def text(root):
  c = corpus.prepare(data(root))
  return mixtures.trained_on(c.train, c.tokenizer.end, data(root))


@pytest.mark.parametrize('seed', range(4))
def test_sums_of_floors_and_counts_are_those_of_brute_force(seed):
  rng = np.random.default_rng(seed)
  for _ in range(50):
    n, m, a, b = (int(x) for x in (rng.integers(0, 90), rng.integers(1, 50), rng.integers(0, 99), rng.integers(0, 99)))
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))
  weights = rng.dirichlet([1.0, 1.0, 1.0])
  shares = Shares(tuple(weights), seed)
  text_B, rank_B = shares.of(0, 3000)
  for first in (0, 1, 17, 2999):
    np.testing.assert_array_equal(shares.counts(first), [np.sum(text_B[:first] == i) for i in range(3)])
  for i in range(3):
    np.testing.assert_array_equal(rank_B[text_B == i], np.arange((text_B == i).sum()))
  assert abs(shares.counts(10**12) / 10**12 - weights).max() < 1e-6
  np.testing.assert_array_equal(shares.counts(RING), np.diff(shares.bounds))  # every place of the ring once


@pytest.mark.parametrize('batch', [1, 5, 16, 100])
def test_every_batch_has_its_shares(batch):
  shares = Shares((0.6, 0.3, 0.1), 3)
  for step in range(60):
    found = np.bincount(shares.of(step * batch, batch)[0], minlength=3)
    assert abs(found - batch * np.array([0.6, 0.3, 0.1])).max() <= 2.0


def test_rows_are_a_function_of_seed_step_and_row(text):
  whole = [text.drawn(12, 5, step) for step in range(8)]
  parts = [np.concatenate([text.drawn(12, 5, step, slice(h * 4, h * 4 + 4)) for h in range(3)]) for step in range(8)]
  np.testing.assert_array_equal(whole, parts)  # any number of hosts
  late = text.batches(12, 5, start_step=6, prefetch=0)
  every = text.batches(12, 5, prefetch=2)
  for _ in range(6):
    next(every)
  for name, x in next(late).items():
    np.testing.assert_array_equal(x, next(every)[name] if name == 'rows' else x)
  assert not np.array_equal(whole[0], text.drawn(12, 6, 0))


def test_each_text_is_read_epoch_by_epoch(text):
  """Every window of a text once before any of its windows twice."""
  rows = np.concatenate([text.drawn(20, 1, step) for step in range(400)])
  for i, part in enumerate(text.parts):
    mine = rows[(rows >= text.firsts[i]) & (rows < text.firsts[i + 1])]
    whole = len(mine) // part.count
    assert whole >= 1
    for epoch in range(whole):
      assert len(set(mine[epoch * part.count:(epoch + 1) * part.count])) == part.count
    assert text.epochs(len(rows), 1)[text.split.names[i]] == round(len(mine) / part.count, 6)


def test_a_window_is_that_of_its_own_text(text, root):
  alone = [corpus.prepare(resolve(Config(data=Data(path=str(root / name), cache=str(root / 'cache'), window=32))).data)
           for name in ('web', 'code')]
  for i, (part, one) in enumerate(zip(text.parts, alone)):
    np.testing.assert_array_equal(part.split.read(0, 10**6), one.train.read(0, 10**6))
    rows = np.array([0, part.count - 1, 5])
    mixed = text.batch(text.firsts[i] + rows)
    own = windows.Windows(one.train, text.end, 32, 32).batch(rows)
    for name in own:
      shift = text.split.firsts[i] if name == 'start' else 0
      np.testing.assert_array_equal(mixed[name], own[name] + own[name].dtype.type(shift))
  picked = np.array([text.firsts[1], 0, text.firsts[1] + 1, 1])
  for name, x in text.batch(picked).items():
    np.testing.assert_array_equal(x, np.concatenate([text.batch(picked[i:i + 1])[name] for i in range(4)]))


def test_a_mixture_reads_as_its_texts_one_behind_the_other(text):
  split = text.split
  whole = np.concatenate([part.read(0, part.tokens) for part in split.parts])
  assert split.tokens == len(whole)
  edge = int(split.firsts[1])
  np.testing.assert_array_equal(split.read(edge - 5, edge + 7), whole[edge - 5:edge + 7])
  np.testing.assert_array_equal(split.rows(np.array([0, edge - 2]), 4), [whole[:4], whole[edge - 2:edge + 2]])
  assert split.documents == len(split.starts) and (whole[split.starts] == text.end).all()


@pytest.mark.parametrize('tokenizer', ['chars', 'bpe'])
def test_a_tokenizer_is_made_of_all_texts(root, tokenizer):
  settings = data(root, tokenizer=tokenizer, vocabulary=300)
  found = corpus.prepare(settings)
  assert found.tokenizer.size > 257 if tokenizer == 'bpe' else found.tokenizer.alphabet == ' abcdefxyz'
  again = corpus.prepare(settings)
  assert again.digest == found.digest and again.tokenizer.digest == found.tokenizer.digest
  held = corpus.cached(settings, found.digest)
  assert held.digest == found.digest and held.train.tokens == found.train.tokens
  for path in (root / 'cache' / 'tokenizers').iterdir():
    path.write_text('{')
  assert corpus.prepare(settings).digest == found.digest  # damaged: made again
  other = data(root, 'web={0}/web:0.5,code={0}/code:0.5', tokenizer=tokenizer, vocabulary=300)
  assert corpus.prepare(other).digest != found.digest


def test_the_cache_gives_a_mixture_by_its_digest(root):
  found = corpus.prepare(data(root))
  assert corpus.cached(data(root, 'web=gone:0.7,code=too:0.3'), found.digest).digest == found.digest
  path = root / 'cache' / 'mixtures' / f'{found.digest}.json'
  kept = path.read_text()
  path.write_text(json.dumps(json.loads(kept) | {'weights': [0.5, 0.5]}))
  assert corpus.cached(data(root), found.digest) is None
  path.write_text(kept)


@pytest.mark.parametrize('mixture, words', [
    ('web', "data.mixture has 'web'; expected name=path:weight"), ('web=a', "has 'web=a'"), ('web=a:x', "has 'web=a:x'"),
    ('web=a:0', 'a weight above 0'), ('web=a:-1', 'a weight above 0'), ('web=a:nan', 'above 0'), ('web=a:inf', 'above 0'),
    ('web=:1', "has 'web=:1'"), ('=a:1', "has '=a:1'"), ('a=b:1,a=c:1', "names 'a' twice"),
    ('a=b:1,c=d:1e-9', 'below 6e-8'), ('a b=c:1', "has 'a b=c:1'")])
def test_mixtures_that_are_none(root, mixture, words):
  with pytest.raises(ConfigError, match=words):
    data(root, mixture)


def test_a_path_may_hold_colons_and_commas():
  assert expressions.mixture('a=s3://x/y,z.txt:3,b=C:/d:1') == [('a', 's3://x/y,z.txt', 0.75), ('b', 'C:/d', 0.25)]


@pytest.mark.parametrize('key, value', [('path', 'x'), ('validation_path', 'x'), ('task', 'addition'), ('tokens', 9),
                                        ('folds', 3), ('random_phase', True)])
def test_what_a_mixture_does_not_honour_is_refused(root, key, value):
  with pytest.raises(ConfigError, match=f'data.{key} is .* beside data.mixture'):
    data(root, **{key: value})


def test_a_text_that_is_not_there_is_named(root):
  with pytest.raises(ConfigError, match="data.mixture is '.*/wed', which does not exist.*did you mean 'web'"):
    corpus.prepare(data(root, 'web={0}/wed:1'))
