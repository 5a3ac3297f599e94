"""The decoder: causality, packing, cache, scan, remat, dropout and initialisation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework import models, timestamps
from framework.models import contract, decoder, layers
from tests.networks import build

POSITIONS = ('rope', 'learned', 'sinusoidal', 'none')
V, L = 13, 12


def small(**settings) -> config_lib.Model:
  config = config_lib.Config(model=config_lib.Model(**{'layers': 2, 'width': 16, 'heads': 4, 'kv_heads': 2} | settings))
  return config_lib.resolve(config).model


def make(seed=0, **settings):
  module = build(small(**settings), V, L)
  params = contract.init(module, jax.random.key(seed))
  # Larger than at initialisation, so that attention is far from uniform and the position matters.
  return module, jax.tree.map(lambda x: x * 3, params)


def packed_rows(lengths=(5, 7), rows=2, seed=0):
  """Tokens, positions and segments of documents packed into rows of sum(lengths)."""
  tokens = np.random.default_rng(seed).integers(0, V, (rows, sum(lengths))).astype(np.int32)
  positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
  segments = np.repeat(np.arange(len(lengths)) + 1, lengths).astype(np.int32)
  return tokens, np.tile(positions, (rows, 1)), np.tile(segments, (rows, 1))


def unpacked_rows(rows=2, seed=0):
  tokens, _, segments = packed_rows(rows=rows, seed=seed)
  return tokens, np.tile(np.arange(L, dtype=np.int32), (rows, 1)), np.ones_like(segments)


@functools.partial(jax.jit, static_argnums=0)
def logits(module, params, tokens, positions, segments, keys_B=None):
  x, _ = module.apply({'params': params}, tokens, positions, segments, keys_B=keys_B)
  return module.logits(params, x)


@functools.partial(jax.jit, static_argnums=0)
def extend(module, params, tokens, positions, segments, cache):
  x, cache = module.apply({'params': params}, tokens, positions, segments, cache=cache)
  return module.logits(params, x), cache


def token_gradients(module, params, tokens, positions, segments):
  """|d logits(u) / d embedding of token j| summed over channels, [L, L] for row 0.

  Tokens are made distinct, so that the rows of the embedding are the tokens' own; the head is left out.
  """
  def hidden(embedding):
    x, _ = module.apply({'params': params | {'embedding': embedding}}, tokens[:1], positions[:1], segments[:1])
    return x[0]
  jacobian_LxDxVxD = jax.jit(jax.jacrev(hidden))(params['embedding'])
  return np.abs(np.asarray(jacobian_LxDxVxD)).sum((1, 3))[:, tokens[0]]


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('position', POSITIONS)
def test_no_position_reads_what_its_stamp_forbids(position, packed):
  module, params = make(position=position)
  _, positions, segments = packed_rows() if packed else unpacked_rows()
  tokens = np.arange(L, dtype=np.int32)[None]
  reads = token_gradients(module, params, tokens, positions, segments)
  # Written out, not taken from framework.timestamps, which the mutants below change.
  allowed = np.tril(np.ones((L, L), bool)) & (segments[0][:, None] == segments[0][None, :])
  assert (reads[~allowed] == 0).all()
  assert (reads[allowed] > 0).all()


@pytest.mark.parametrize('position', POSITIONS)
def test_the_leak_test_sees_a_mask_off_by_one(position, monkeypatch):
  rule = timestamps.may_read
  monkeypatch.setattr(timestamps, 'may_read', lambda q, k, *segments: rule(q + 1, k, *segments))
  with pytest.raises(AssertionError):
    test_no_position_reads_what_its_stamp_forbids(position, True)


def test_the_leak_test_sees_documents_that_read_each_other(monkeypatch):
  rule = timestamps.may_read
  monkeypatch.setattr(timestamps, 'may_read', lambda q, k, a, b: rule(q, k, a * 0, b * 0))
  with pytest.raises(AssertionError):
    test_no_position_reads_what_its_stamp_forbids('rope', True)


@pytest.mark.parametrize('position', POSITIONS)
def test_a_packed_document_has_the_logits_of_the_document_alone(position):
  module, params = make(position=position)
  tokens, positions, segments = packed_rows()
  both = logits(module, params, tokens, positions, segments)
  for a, b in ((0, 5), (5, 12)):
    alone = logits(module, params, tokens[:, a:b], np.tile(np.arange(b - a), (2, 1)), np.ones_like(tokens[:, a:b]))
    np.testing.assert_allclose(both[:, a:b], alone, atol=2e-4)
  unpacked = logits(module, params, *unpacked_rows())
  assert np.abs(unpacked[:, 5:] - both[:, 5:]).max() > 1e-2


@pytest.mark.parametrize('position', POSITIONS)
def test_positions_matter_except_without_any(position):
  module, params = make(position=position)
  tokens, positions, segments = unpacked_rows()
  swapped = tokens.copy()
  swapped[:, [0, 1]] = tokens[:, [1, 0]]
  change = np.abs(logits(module, params, tokens, positions, segments)[:, -1]
                  - logits(module, params, swapped, positions, segments)[:, -1]).max()
  # One layer of attention without positions is blind to order; with two, the causal mask gives some of it away.
  assert change > 1e-3


@pytest.mark.parametrize('settings', [
    {}, {'position': 'learned', 'norm': 'layernorm', 'bias': True}, {'activation': 'swiglu', 'tied_head': False},
    {'activation': 'relu', 'kv_heads': 1, 'position': 'sinusoidal'},
    {'norm': 'none', 'attention_scale': 'log', 'head_width': 6, 'mask': 'strict', 'loops': 3}])
@pytest.mark.parametrize('scan', [True, False])
def test_cached_logits_equal_uncached(settings, scan):
  module, params = make(scan=scan, **settings)
  tokens, positions, segments = unpacked_rows()
  whole = logits(module, params, tokens, positions, segments)
  cache = module.empty_cache(2, L + 3)
  parts = []
  for a, b in ((0, 4), (4, 5), (5, 12)):
    part, cache = extend(module, params, tokens[:, a:b], positions[:, a:b], segments[:, a:b], cache)
    parts.append(part)
  np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=2e-4)
  assert int(cache.index) == L


def loss_and_gradient(module, params, rows):
  def loss(params):
    return jnp.square(logits(module, params, *rows)).mean()
  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize('change', [{'scan': True}, {'remat': 'full'}, {'remat': 'dots'},
                                    {'scan': True, 'remat': 'full'}])
def test_scan_and_remat_change_nothing(change):
  module, params = make()
  other = dataclasses.replace(module, config=dataclasses.replace(module.config, **change))
  assert other.config != module.config
  one, other_one = (loss_and_gradient(m, params, packed_rows()) for m in (module, other))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), one, other_one)


def test_scan_compiles_one_layer_and_unrolled_all():
  def dots(scan):
    module, params = make(scan=scan, layers=6)
    text = jax.jit(lambda p: logits(module, p, *unpacked_rows())).lower(params).as_text()
    return text.count('stablehlo.dot_general')
  assert dots(False) > 4 * dots(True)


def test_remat_keeps_less():
  def saved(remat):
    module, params = make(remat=remat, layers=4)
    _, pullback = jax.vjp(lambda p: logits(module, p, *packed_rows(rows=8)).sum(), params)
    return sum(x.size for x in jax.tree.leaves(pullback) if hasattr(x, 'size'))
  assert saved('full') < saved('dots') < saved('none')


def test_grouped_heads_equal_repeated_heads():
  module, params = make(kv_heads=2)
  full = dataclasses.replace(module, config=dataclasses.replace(module.config, kv_heads=4))
  blocks = dict(params['blocks'])
  for name in ('key', 'value'):
    blocks[name] = {'weight': jnp.repeat(blocks[name]['weight'], 2, axis=2)}
  np.testing.assert_allclose(logits(full, params | {'blocks': blocks}, *packed_rows()),
                             logits(module, params, *packed_rows()), atol=2e-5)


def test_a_strict_token_reads_all_before_it_but_not_itself():
  module, params = make(mask='strict', layers=1, norm='none')
  params = params | {'blocks': jax.tree.map(jnp.zeros_like, params['blocks']) | {
      name: params['blocks'][name] for name in ('value', 'out')}}
  tokens, positions, segments = unpacked_rows(rows=1)
  x, _ = module.apply({'params': params}, tokens, positions, segments)
  embedded = np.asarray(params['embedding'])[tokens[0]]
  value = np.repeat(np.asarray(params['blocks']['value']['weight'][0]), 2, axis=1)
  out = np.asarray(params['blocks']['out']['weight'][0])
  for i in range(L):
    mean = embedded[:i].mean(0) if i else np.zeros(16)
    np.testing.assert_allclose(x[0, i] - embedded[i], np.einsum('d,dhk,hke->e', mean, value, out), atol=1e-4)


def test_a_bidirectional_token_reads_its_document_and_nothing_else():
  module, params = make(mask='bidirectional')
  _, positions, segments = packed_rows()
  reads = token_gradients(module, params, np.arange(L, dtype=np.int32)[None], positions, segments)
  assert ((reads > 0) == (segments[0][:, None] == segments[0])).all()
  with pytest.raises(ValueError, match="'bidirectional'; expected 'causal'"):
    module.apply({'params': params}, *unpacked_rows(), cache=module.empty_cache(2, L))


@pytest.mark.parametrize('mask', ['causal', 'bidirectional'])
def test_relative_bias_shifts_the_logits_of_its_distance(mask):
  module, params = make(mask=mask, relative_bias=3, position='none', layers=1)
  rows = unpacked_rows()
  assert params['blocks']['relative_bias'].shape == (1, 4, 7)
  assert not np.any(params['blocks']['relative_bias'])
  plain, _ = make(mask=mask, position='none', layers=1)
  unbiased = params | {'blocks': {name: p for name, p in params['blocks'].items() if name != 'relative_bias'}}
  np.testing.assert_array_equal(logits(module, params, *rows), logits(plain, unbiased, *rows))
  # A large bias on distance 1 makes every head copy the token before: the output no longer depends on the others.
  table = params['blocks']['relative_bias'].at[:, :, 3 + 1].set(1e4)
  params = params | {'blocks': params['blocks'] | {'relative_bias': table}}
  reads = token_gradients(module, params, np.arange(L, dtype=np.int32)[None], rows[1], rows[2])
  assert ((reads > 1e-6)[1:] == (np.eye(L) + np.eye(L, k=-1) > 0)[1:]).all()


def test_relative_bias_with_a_cache_equals_without():
  module, params = make(relative_bias=4)
  table = jax.random.normal(jax.random.key(5), (2, 4, 9))
  params = params | {'blocks': params['blocks'] | {'relative_bias': table}}
  whole = logits(module, params, *unpacked_rows())
  cache, parts = module.empty_cache(2, L), []
  for a, b in ((0, 4), (4, 5), (5, 12)):
    part, cache = extend(module, params, *(x[:, a:b] for x in unpacked_rows()), cache)
    parts.append(part)
  np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=2e-4)
  assert np.abs(whole - logits(*make(), *unpacked_rows())).max() > 0.1


def test_log_scale_keeps_the_weight_of_one_key_among_many():
  """Hahn's lemma (Chiang and Cholak 2022, section 5.3): a fixed logit is drowned by n keys, log n times it is not."""
  def weight(scale, n):
    module = build(small(mask='bidirectional', attention_scale=scale, norm='none', layers=1, width=2, heads=1,
                                kv_heads=1, position='none', tied_head=False), 2, n)
    params = jax.tree.map(jnp.zeros_like, contract.init(module, jax.random.key(0)))
    blocks = params['blocks'] | {name: {'weight': jnp.zeros_like(params['blocks'][name]['weight'])}
                                 for name in ('query', 'key', 'value', 'out')}
    set_one = lambda name, i, j, v: blocks[name]['weight'].at[(0, i, *((0, j) if name != 'out' else (j, 1)))].set(v)
    blocks['query'] = {'weight': set_one('query', 0, 0, 2.0 * 2 ** 0.5)}
    blocks['key'] = {'weight': set_one('key', 1, 0, 1.0)}
    blocks['value'] = {'weight': set_one('value', 1, 0, 1.0)}
    blocks['out'] = {'weight': blocks['out']['weight'].at[0, 0, 0, 1].set(1.0)}
    params = params | {'embedding': jnp.array([[1.0, 0.0], [1.0, 1.0]]), 'blocks': blocks}
    tokens = np.zeros((1, n), np.int32)
    tokens[0, 0] = 1
    x, _ = module.apply({'params': params}, tokens, np.zeros_like(tokens), np.ones_like(tokens))
    return float(x[0, 1, 1])
  assert weight('sqrt', 1000) == pytest.approx(np.exp(2) / (np.exp(2) + 999), rel=1e-4)
  assert weight('one', 1000) == pytest.approx(np.exp(2 * 2 ** 0.5) / (np.exp(2 * 2 ** 0.5) + 999), rel=1e-4)
  assert weight('log', 1000) == pytest.approx(1000 ** 2 / (1000 ** 2 + 999), rel=1e-4)


def test_loops_run_the_same_layers_again():
  """Twice the layers in a row, with the same parameters, is two loops; in training the loops share a gradient."""
  module, params = make(loops=2)
  twice = dataclasses.replace(module, config=dataclasses.replace(module.config, loops=1, layers=4))
  doubled = params | {'blocks': jax.tree.map(lambda x: jnp.concatenate([x, x]), params['blocks'])}
  np.testing.assert_allclose(logits(module, params, *packed_rows()), logits(twice, doubled, *packed_rows()), atol=2e-5)


def test_dropout_of_a_row_depends_on_its_key_alone():
  module, params = make(dropout=0.5)
  rows = packed_rows(rows=4)
  keys = jax.random.split(jax.random.key(1), 4)
  whole = logits(module, params, *rows, keys_B=keys)
  half = logits(module, params, *(x[2:] for x in rows), keys_B=keys[2:])
  np.testing.assert_allclose(whole[2:], half, atol=2e-5)
  assert np.abs(whole - logits(module, params, *rows)).max() > 0.1
  assert np.abs(whole[0] - logits(module, params, *(x[[0, 0, 0, 0]] for x in rows), keys_B=keys)[1]).max() > 0.1


def test_dropout_keeps_the_mean():
  x = jnp.ones((64, 10, 50))
  out = decoder.dropout(x, jax.random.split(jax.random.key(0), 64), 0.3, 0)
  assert abs(float(out.mean()) - 1) < 0.01
  assert abs(float((out == 0).mean()) - 0.3) < 0.01


def test_initial_deviations_follow_depth():
  module = build(small(layers=8, width=128, heads=4, kv_heads=4), 257, 64)
  blocks = contract.init(module, jax.random.key(0))['blocks']
  for name, fan_in, gain in (('query', 128, 1), ('up', 128, 1), ('out', 128, 16 ** -0.5), ('down', 512, 16 ** -0.5)):
    assert np.std(blocks[name]['weight']) == pytest.approx(gain * fan_in ** -0.5, rel=0.02)
    assert not np.allclose(blocks[name]['weight'][0], blocks[name]['weight'][1])


def test_bfloat16_arithmetic_keeps_float32_parameters():
  module, params = make(dtype='bfloat16')
  x, _ = jax.jit(module.apply)({'params': params}, *packed_rows())
  assert x.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  exact = dataclasses.replace(module, config=dataclasses.replace(module.config, dtype='float32'))
  error = np.abs(logits(module, params, *packed_rows()) - logits(exact, params, *packed_rows()))
  assert 0 < error.max() < 0.5


def test_gradient_of_unstack_is_the_stack_of_gradients():
  tree = {'a': jnp.arange(6.0).reshape(3, 2)}
  gradient = jax.grad(lambda t: sum((i + 1) * part['a'].sum() for i, part in enumerate(layers.unstack(t))))(tree)
  np.testing.assert_array_equal(gradient['a'], [[1, 1], [2, 2], [3, 3]])


def test_unknown_model_names_the_nearest():
  with pytest.raises(config_lib.ConfigError, match="'decodr'.*did you mean 'decoder'"):
    build(small(name='decodr'), V, L)


@pytest.mark.parametrize('settings', [
    {}, {'scan': True, 'loops': 2}, {'remat': 'full', 'head_width': 5, 'position': 'none'}])
def test_attention_weights_can_be_watched(settings):
  module, params = make(**settings)
  tokens, positions, segments = packed_rows()
  watched = jax.jit(lambda p: module.apply({'params': p}, tokens, positions, segments, mutable='intermediates'))
  (x, _), seen = watched(params)
  weights, = seen['intermediates']['attention']
  assert weights.shape == (2 * settings.get('loops', 1), 2, 4, L, L)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  allowed = (np.arange(L)[:, None] >= np.arange(L)) & (segments[0][:, None] == segments[0])
  assert (np.asarray(weights)[..., ~allowed] == 0).all() and (np.asarray(weights)[..., allowed] > 0.01).mean() > 0.1
  assert np.ptp(weights, axis=-1).max() > 0.5  # not uniform
  np.testing.assert_array_equal(module.logits(params, x), logits(module, params, tokens, positions, segments))
