"""The decoder's settings that published families need, each crossed with cache, scan, packing, leaks and refusals."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.config import ConfigError
from framework.models import contract, rope
from tests.models import test_decoder as plain
from tests.networks import build

SETTINGS = {
    'neox': {'rope_share': 0.5, 'parallel': True, 'norm': 'layernorm', 'bias': True, 'activation': 'gelu_exact'},
    'olmo2': {'norm_place': 'after', 'query_norm': 'whole', 'bias': True, 'bias_on': 'qkv', 'rope_base': 30.0,
              'rope_scaling': 'yarn:factor=4,length=16,fast=2,slow=1,scale=1.2'},
    'gemma3': {'sliding_window': 3, 'global_every': 2, 'rope_base_local': 7.0, 'rope_scaling': 'linear:factor=2',
               'norm_place': 'both', 'query_norm': 'head', 'activation': 'geglu', 'embedding_scale': 4.0},
    'mistral': {'sliding_window': 3, 'norm_scale': False},
}


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
def test_cached_and_scanned_logits_equal_the_others(settings):
  module, params = plain.make(**settings)
  rows = plain.unpacked_rows()
  whole = plain.logits(module, params, *rows)
  scanned = dataclasses.replace(module, config=dataclasses.replace(module.config, scan=True))
  cache, parts = scanned.empty_cache(2, plain.L + 3), []
  for a, b in ((0, 6), (6, 12)):
    part, cache = plain.extend(scanned, params, *(x[:, a:b] for x in rows), cache)
    parts.append(part)
  np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=2e-4)
  cache = module.empty_cache(2, plain.L)
  for at in range(2):
    part, cache = plain.extend(module, params, *(x[:, 6 * at:6 * at + 6] for x in rows), cache)
    np.testing.assert_allclose(part, whole[:, 6 * at:6 * at + 6], rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
def test_nobody_reads_what_is_forbidden(settings):
  """Two layers of a window of w tokens reach 2 (w - 1) back; the one that reads all comes last here."""
  module, params = plain.make(**settings)
  _, positions, segments = plain.packed_rows()
  reads = plain.token_gradients(module, params, np.arange(plain.L, dtype=np.int32)[None], positions, segments)
  back = np.arange(plain.L)[:, None] - np.arange(plain.L)
  allowed = (back >= 0) & (segments[0][:, None] == segments[0])
  if settings.get('sliding_window') and not settings.get('global_every'):
    allowed &= back <= 2 * (settings['sliding_window'] - 1)
  assert (reads[~allowed] == 0).all() and (reads[allowed] > 0).all()


@pytest.mark.parametrize('settings', [SETTINGS['gemma3']])
def test_parameters_say_what_they_are_and_remat_changes_nothing(settings):
  module, params = plain.make(**settings)
  assert set(contract.describe(module)) == {jax.tree_util.keystr(path) for path, _ in
                                            jax.tree_util.tree_leaves_with_path(params)}
  other = dataclasses.replace(module, config=dataclasses.replace(module.config, remat='full'))
  one, two = (plain.loss_and_gradient(m, params, plain.packed_rows()) for m in (module, other))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), one, two)


def test_a_window_is_the_same_for_a_backend_that_is_told_the_rule():
  rows = plain.packed_rows()
  for scan in (False, True):
    module, params = plain.make(scan=scan, sliding_window=3, global_every=2)
    chunked = dataclasses.replace(module, config=dataclasses.replace(module.config, attention='xla_chunked'))
    np.testing.assert_allclose(plain.logits(chunked, params, *rows), plain.logits(module, params, *rows), atol=2e-5)


def test_only_the_parts_of_bias_on_have_one():
  def biased(**settings):
    return {path.split("']['")[-2] for path in contract.describe(plain.make(**settings)[0]) if 'bias' in path}
  layer = {'bias': True, 'norm': 'layernorm', 'activation': 'geglu'}
  assert biased(**layer | {'bias_on': 'qkv'}) == {'query', 'key', 'value'}
  assert biased(**layer | {'bias_on': 'out,norm'}) == {'out', 'attention_norm', 'feedforward_norm', "['norm"}
  assert biased(**layer | {'bias_on': 'feedforward'}) == {'up', 'gate', 'down'}


def test_frequencies_are_those_of_the_papers():
  plain_K, factor = rope.frequencies(8, 10000.0)
  np.testing.assert_allclose(plain_K, [1, 0.1, 0.01, 0.001], rtol=1e-6)
  assert factor == 1.0
  np.testing.assert_allclose(rope.frequencies(8, 10000.0, 'linear:factor=4')[0], plain_K / 4, rtol=1e-6)
  near, far = 2 * math.pi * 100, 2 * math.pi * 10  # tokens in which the wave of 0.01 turns once, and a tenth
  scaled, _ = rope.frequencies(8, 10000.0, f'llama3:factor=8,low=1,high=4,length={near}')
  np.testing.assert_allclose(scaled, plain_K * np.array([1, 1, 1 / 8, 1 / 8]), rtol=1e-6)
  scaled, _ = rope.frequencies(8, 10000.0, f'llama3:factor=8,low=1,high=4,length={10 * far * 2.5}')
  np.testing.assert_allclose(scaled[2] / plain_K[2], 0.5 + 0.5 / 8, rtol=1e-6)
  assert rope.rotated(80, 0.4) == 32 and rope.rotated(4, 0.01) == 2


@pytest.mark.parametrize('settings, words', [
    ({'rope_scaling': 'lineer:factor=4'}, "'lineer:factor=4'; expected one of linear, llama3, yarn.*did you mean"),
    ({'rope_scaling': 'linear:factor=x'}, "expected positive numbers, as 'linear:factor=4'"),
    ({'rope_scaling': 'linear'}, "expected positive numbers, as 'linear:factor=4'"),
    ({'rope_scaling': 'linear:factor=inf'}, 'expected positive numbers'),
    ({'rope_scaling': 'llama3:factor=4,low=4,high=4,length=8'}, 'expected low below high'),
    ({'rope_scaling': 'linear:factor=2', 'position': 'none'}, "model.position 'none'; expected 'rope'"),
    ({'rope_share': 0.0}, 'model.rope_share is 0.0; expected 0.01 to 1.0'),
    ({'rope_base_local': 0.5, 'sliding_window': 4}, 'expected 0, or at least 1'),
    ({'rope_base_local': 50.0}, 'without model.sliding_window; expected 0'),
    ({'global_every': 2}, 'without model.sliding_window; expected 0'),
    ({'sliding_window': 2, 'mask': 'bidirectional'}, "model.mask 'bidirectional'; expected 0"),
    ({'bias': True, 'bias_on': 'kqv'}, "expected all, or some of qkv,out,feedforward,norm.*did you mean 'qkv'"),
    ({'bias': True, 'bias_on': 'qkv,qkv'}, 'expected all, or some of'),
    ({'bias_on': 'qkv'}, 'expected model.bias=True'),
    ({'name': 'tiered', 'sliding_window': 3}, 'model.sliding_window is 3'),
])
def test_what_does_not_go_together_is_one_line(settings, words):
  with pytest.raises(ConfigError, match=words) as error:
    config_lib.resolve(config_lib.Config(model=config_lib.Model(**{'width': 16, 'heads': 4} | settings),
                                         data=config_lib.Data(window=64)))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['masked', 'encoder_decoder'])
def test_a_model_with_masks_of_its_own_refuses_a_window(name):
  config = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name=name, layers=1, width=16, heads=2, sliding_window=3),
      data=config_lib.Data(window=8, stride=4), encoder=config_lib.Encoder(kind='right_to_left_scan')))
  from framework import models
  model = models.build(config, plain.V)
  rows = dict(zip(('tokens', 'positions', 'segments'), plain.unpacked_rows()))
  batch = {name: x[:, :8] for name, x in rows.items()} | {'weights': np.ones((2, 8), np.float32)}
  with pytest.raises(ConfigError, match="model.sliding_window is 3 with model.name '.*', which says itself"):
    jax.eval_shape(lambda: model.hidden(contract.init(model, jax.random.key(0)), batch))


def test_the_norm_of_queries_is_what_it_says():
  module = build(plain.small(query_norm='whole'), plain.V, plain.L)
  params = contract.init(module, jax.random.key(0))
  assert params['blocks']['query_norm']['scale'].shape == (2, 4, 4)
  assert params['blocks']['key_norm']['scale'].shape == (2, 2, 4)
  described = contract.describe(module)["['blocks']['query_norm']['scale']"]
  assert described.role == 'scale' and not contract.decays(described)
