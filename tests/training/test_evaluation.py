"""Held-out loss: the same for every batch size and device count, with a ragged end; stride; bits per byte."""

import math

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.models import contract
from framework.training import evaluation, layout
from tests.networks import build


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for n in range(30):
    (folder / f'{n}.txt').write_text(''.join(rng.choice(list('abcdé \n'), rng.integers(20, 90))))
  config = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(layers=1, width=16, heads=2),
      data=config_lib.Data(path=str(folder), window=16, cache=str(folder / 'cache'))))
  corpus = corpus_lib.prepare(config.data)
  module = build(config.model, corpus.tokenizer.size, 16)
  params = contract.init(module, jax.random.key(0))
  return corpus, module, jax.tree.map(lambda x: x * 2, params)


def evaluate(parts, batch=4, devices=1, stride=16, packed=True, **kwargs):
  corpus, module, params = parts
  mesh = layout.make_mesh(jax.devices()[:devices])
  text = windows.Windows(corpus.validation, corpus.tokenizer.end, 16, stride, packed)
  return evaluation.evaluate(evaluation.compile_nats(module, mesh), params, text, corpus.tokenizer, mesh, batch=batch,
                             **kwargs)


@pytest.fixture(scope='module')
def one(parts):
  return evaluate(parts)


@pytest.mark.parametrize('batch,devices', [(1, 1), (3, 1), (7, 1), (1000, 1), (4, 4), (6, 4), (8, 2)])
def test_batch_and_devices_change_nothing(parts, one, batch, devices):
  other = evaluate(parts, batch, devices)
  for key in ('nats_per_token', 'bits_per_byte', 'perplexity', 'bits_per_token'):
    assert other[key] == pytest.approx(one[key], rel=2e-6)
  assert other['targets'] == one['targets'] and other['bytes'] == one['bytes']
  np.testing.assert_allclose(other['loss_by_position'], one['loss_by_position'], rtol=1e-5)


def test_every_token_is_counted_once(parts, one):
  corpus = parts[0]
  assert one['targets'] == corpus.validation.tokens - 1
  assert one['bytes'] == corpus.validation.bytes
  assert one['targets'] % 16  # there is a ragged end


def test_by_hand(parts, one):
  """Window by window, in NumPy, from the text itself."""
  corpus, module, params = parts
  tokens = corpus.validation.read(0, corpus.validation.tokens).astype(np.int32)
  apply = jax.jit(lambda t, p, s: module.logits(params, module.apply({'params': params}, t, p, s)[0]))
  total = 0.0
  for first in range(1, len(tokens), 16):
    last = min(first + 15, len(tokens) - 1)
    start = max(0, last - 16)
    inputs = tokens[start:start + 16]
    opens = inputs == corpus.tokenizer.end
    opens[0] = True
    segments = np.cumsum(opens)
    positions = np.concatenate([np.arange(n) for n in np.bincount(segments)[1:]])
    logits = np.asarray(apply(inputs[None], positions[None], segments[None])[0], np.float64)
    for target in range(first, last + 1):
      row = logits[target - 1 - start]
      total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[tokens[target]]
  assert one['nats_per_token'] == pytest.approx(total / (len(tokens) - 1), rel=1e-5)
  assert one['bits_per_byte'] == pytest.approx(total / math.log(2) / corpus.validation.bytes, rel=1e-5)
  assert one['perplexity'] == pytest.approx(math.exp(one['nats_per_token']))


def test_dividing_batch_by_batch_would_be_seen(parts, one):
  """The usual mistake: the mean of the batches' means, which weighs a ragged batch like a full one."""
  corpus, module, params = parts
  mesh = layout.make_mesh(jax.devices()[:1])
  nats = evaluation.compile_nats(module, mesh)
  means = []
  for batch in windows.Windows(corpus.validation, corpus.tokenizer.end, 16, 16).each(7):
    n = np.asarray(nats(params, layout.split_rows(batch, mesh)))
    means.append((n * batch['weights']).sum() / batch['weights'].sum())
  assert abs(np.mean(means) - one['nats_per_token']) > 1e-4


def test_stride_gives_context_and_counts_the_same_tokens(parts, one):
  strided = evaluate(parts, stride=4)
  assert strided['targets'] == one['targets'] and strided['stride'] == 4 and strided['window'] == 16
  assert strided['nats_per_token'] != one['nats_per_token']


def test_limit_takes_windows_over_the_whole_text(parts, one):
  limited = evaluate(parts, limit=5)
  assert limited['targets'] <= 5 * 16
  assert evaluate(parts, limit=10**6)['targets'] == one['targets']
