"""The encoder in front of the decoder: what each direction reads, leaks, their mutants, recurrence, blocks, memory."""

import functools

from flax.core import meta
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework import models, timestamps
from framework.data import windows
from framework.models import contract, encoder_decoder
from framework.training.losses import cross_entropy

V, L, S = 11, 14, 5
H = L - S
KINDS = ('bidirectional', 'right_to_left', 'right_to_left_scan', 'prefix')
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def made(kind):
  c = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='encoder_decoder', layers=2, width=16, heads=2, scan=True),
      data=config_lib.Data(window=L, stride=S), encoder=config_lib.Encoder(kind=kind)))
  module = models.build(c, V)
  params = contract.init(module, jax.random.key(0))
  return module, jax.tree_util.tree_map_with_path(
      lambda path, x: x * (20 if 'embedding' in jax.tree_util.keystr(path) else 3) if x.ndim > 1 else x + 0.3, params)


def window(seed=0, start=0, end=L):
  """One row of which the targets of inputs [end - S, end) are scored."""
  tokens = np.random.default_rng(seed).integers(0, V, (1, L + 1)).astype(np.int32)
  place = np.arange(L)
  return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:],
          'weights': ((place >= end - S) & (place < end)).astype(np.float32)[None],
          'positions': place[None].astype(np.int32), 'segments': np.ones((1, L), np.int32)}


@functools.partial(jit, static_argnums=0)
def logits(module, params, batch):
  return module.logits(params, module.hidden(params, batch))


def leak(module, params, run, end=L):
  """Greatest change of a scored logit when every token after its node changes."""
  batch = window(end=end)
  base, worst = np.asarray(run(module, params, batch)), 0.0
  for i in range(end - S, end):
    tokens = batch['tokens'].copy()
    tokens[:, i + 1:] = (tokens[:, i + 1:] + 1) % V
    found = np.asarray(run(module, params, batch | {'tokens': tokens}))
    worst = max(worst, np.abs(found - base)[:, end - S:i + 1].max())
  return worst


@pytest.mark.parametrize('end', [L, S + 2])
@pytest.mark.parametrize('kind', KINDS)
def test_no_scored_logit_depends_on_a_later_token(kind, end):
  assert leak(*made(kind), logits, end) == 0.0


@pytest.mark.parametrize('kind', ['prefix', 'bidirectional'])
def test_the_leak_test_sees_a_prefix_one_token_too_long(kind, monkeypatch):
  right = timestamps.may_read
  monkeypatch.setattr(timestamps, 'may_read', lambda q, k, *segments: right(q + 1, k, *segments))
  fresh = jit(lambda module, params, batch: module.logits(params, module.hidden(params, batch)), static_argnums=0)
  assert leak(*made(kind), fresh) > 1e-3


@pytest.mark.parametrize('kind', KINDS[:3])
def test_each_direction_reads_what_it_says(kind):
  """Which tokens of the history each encoded one depends on, and that the decoder reads the whole history."""
  module, _ = made(kind)
  params = contract.init(module, jax.random.key(0))  # as drawn: attention that is nowhere exactly 0
  tokens = np.random.default_rng(1).integers(0, V, (1, H)).astype(np.int32)
  place, one = np.arange(H, dtype=np.int32)[None], np.ones((1, H), np.int32)
  run = jit(lambda params, tokens: module.encode(params, tokens, place, one))
  base, reads = np.asarray(run(params, tokens)), np.zeros((H, H), bool)
  for j in range(H):
    changed = tokens.copy()
    changed[0, j] = (changed[0, j] + 1) % V
    reads[:, j] = np.abs(np.asarray(run(params, changed)) - base)[0].max(-1) > 0
  expected = np.ones((H, H), bool) if kind == 'bidirectional' else np.triu(np.ones((H, H), bool))
  np.testing.assert_array_equal(reads, expected)
  batch = window()
  for j in range(H):
    tokens = batch['tokens'].copy()
    tokens[0, j] = (tokens[0, j] + 1) % V
    change = np.abs(logits(module, params, batch | {'tokens': tokens}) - logits(module, params, batch))
    assert change[0, H:].max() > 0


def test_documents_do_not_read_each_other():
  for kind in KINDS:
    module, params = made(kind)
    batch = window()
    batch['segments'] = np.repeat([[1, 2]], [4, L - 4], axis=1).astype(np.int32)
    tokens = batch['tokens'].copy()
    tokens[0, :4] = (tokens[0, :4] + 1) % V
    found = logits(module, params, batch | {'tokens': tokens}) - logits(module, params, batch)
    assert (found[0, H:] == 0).all(), kind


def test_recurrence_equals_flax():
  E, D, B, length = 8, 8, 3, 23
  params = jax.tree.map(lambda x: x + 0.1, meta.unbox(encoder_decoder.init_scan(jax.random.key(0), D, 'float32')))
  params['gates']['bias'] = params['gates']['bias'].at[1, :2 * D].set(0)  # flax has one bias for these gates
  x = jax.random.normal(jax.random.key(1), (B, length, E))
  names = ('r', 'z', 'n')
  cell = {f'i{n}': {'kernel': w, 'bias': b} for n, w, b in zip(
      names, jnp.split(params['input']['weight'], 3, 1), jnp.split(params['gates']['bias'][0], 3))}
  cell |= {f'h{n}': {'kernel': w} for n, w in zip(names, jnp.split(params['state']['weight'], 3, 1))}
  cell['hn']['bias'] = params['gates']['bias'][1, 2 * D:]
  expected = nn.RNN(nn.GRUCell(D), reverse=True, keep_order=True).apply({'params': {'cell': cell}}, x)
  found = encoder_decoder.scan_right_to_left(params, x, jnp.ones((B, length), jnp.int32))
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_every_target_is_predicted_once_by_a_block():
  """Over all windows of a text: scored hidden states are never the zeros of the history, whatever the window."""
  class Text:
    tokens = 33
    def rows(self, starts, length):
      return np.stack([np.arange(s, s + length) % V for s in starts])
  count = windows.count(33, S)
  batch = windows.Windows(Text(), V, L, S, False).batch(np.arange(count))
  for kind in KINDS:
    module, params = made(kind)
    norm = np.abs(jit(module.hidden)(params, batch)).max(-1)
    assert (norm[batch['weights'] > 0] > 0).all(), kind
    assert batch['weights'].sum() == 32


@pytest.mark.parametrize('kind', KINDS)
def test_it_learns_to_copy_the_history_reversed(kind):
  """The block is the history from its end on: only a reader of the history can tell it."""
  module, params = made(kind)
  import optax
  update = optax.adam(3e-3)
  params = jax.tree.map(lambda x: x / 2, params)
  def batch(number):
    key = jax.random.fold_in(jax.random.key(0), number)
    text = jax.random.randint(key, (32, H + 1), 0, V)
    tokens = jnp.concatenate([text, text[:, ::-1][:, :S]], axis=1)
    base = {name: jnp.tile(jnp.asarray(x), (32, 1)) for name, x in window().items()}
    return base | {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:]}
  def loss(params, number):
    b = batch(number)
    return cross_entropy.sum_loss(module, params, b, None) / b['weights'].sum()
  def one(carry, number):
    params, opt = carry
    value, grads = jax.value_and_grad(loss)(params, number)
    updates, opt = update.update(grads, opt, params)
    return (optax.apply_updates(params, updates), opt), value
  _, losses = jax.jit(lambda params: jax.lax.scan(one, (params, update.init(params)), jnp.arange(300)))(params)
  assert losses[-20:].mean() < 0.9 * np.log(V)


@pytest.mark.parametrize('settings,words', [
    ({'data': config_lib.Data(window=8)}, 'data.stride is 8.*nearest is 7'),
    ({'encoder': config_lib.Encoder(kind='left')}, "encoder.kind is 'left'"),
    ({'encoder': config_lib.Encoder(width=30)}, 'encoder.width is 30.*nearest is 32')])
def test_refusals(settings, words):
  base = {'model': config_lib.Model(name='encoder_decoder', width=32, heads=4),
          'data': config_lib.Data(window=8, stride=4)}
  with pytest.raises(config_lib.ConfigError, match=words):
    config_lib.resolve(config_lib.Config(**(base | settings)))


@pytest.mark.slow
def test_a_scan_over_9000_tokens_keeps_few_states():
  """The gradient of 9000 steps needs about 2 sqrt(9000) states at a time, besides its inputs and outputs."""
  D = 64
  params = meta.unbox(encoder_decoder.init_scan(jax.random.key(0), D, 'float32'))
  def loss(params, x):
    return jnp.square(encoder_decoder.scan_right_to_left(params, x, jnp.ones(x.shape[:2], jnp.int32))).mean()
  x = jax.ShapeDtypeStruct((1, 9000, D), 'float32')
  memory = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 8 * 9000 * D * 4  # a state of every gate of every step would be over 12
