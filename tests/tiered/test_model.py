"""The tiered rollout model: leaks and their mutants, rollouts against a naive decoder, layouts, stages and controls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework import timestamps
from framework.models import contract
from framework.tiered import generation as tiered_generation
from framework.tiered import model as tiered
from framework.tiered import nodes, rollouts

V, L, P, R, K, B = 11, 20, 6, 4, 2, 2

LAYOUTS = {
    'stream': {},
    'stream_delayed': {'delay': 2},
    'stream_entropy': {'starts': 'entropy', 'entropy': 2.5, 'most_starts': 4},
    'stamp': {'layout': 'stamp', 'both_ways': True},
    'stamp_last': {'layout': 'stamp', 'last': 1, 'across': False},
    'cross': {'layout': 'cross'},
    'cross_hidden': {'layout': 'cross', 'read': 'hidden', 'starts': 'trigger', 'trigger': 3, 'most_starts': 3,
                     'samples': 1},
}


@functools.cache
def made(tiers=2, stage=0, seed=0, position='rope', **settings):
  """A model and its parameters, larger than at initialisation: attention and predictions are far from uniform."""
  config = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=2, width=16, heads=2, position=position, scan=True),
      data=config_lib.Data(window=L), training=config_lib.Training(seed=seed),
      tiered=config_lib.Tiered(**{'tiers': tiers, 'period': P, 'rollout': R, 'samples': K} | settings)))
  model = tiered.build(config, V, stage or tiers)
  params = contract.init(model, jax.random.key(seed))
  def larger(path, x):
    return x + 0.5 if x.ndim < 2 else x * (20 if 'embedding' in jax.tree_util.keystr(path) else 3)
  return model, jax.tree_util.tree_map_with_path(larger, params)


def text(rows=B, seed=0, length=L):
  tokens = np.random.default_rng(seed).integers(0, V, (rows, length + 1)).astype(np.int32)
  return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'weights': np.ones((rows, length), np.float32),
          'positions': np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
          'segments': np.ones((rows, length), np.int32),
          'start': (1000 + 50 * np.arange(rows)).astype(np.uint32), 'rows': np.arange(rows, dtype=np.int32)}


# Half of the time to compile; the arithmetic is the same.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.partial(jit, static_argnums=0)
def logits(model, params, batch):
  return model.logits(params, model.hidden(params, batch))


@functools.partial(jit, static_argnums=0)
def written(model, params, batch):
  starts = model.starts(params, batch)
  return starts, [w.tokens_BxGxKxR for w in model.write(params, batch, starts)]


def leaks(model, params, run=logits):
  """Greatest change of a logit up to i when all tokens after i change and rollouts are written anew."""
  batch = text()
  base, worst = np.asarray(run(model, params, batch)), 0.0
  for i in range(L - 1):
    tokens = batch['tokens'].copy()
    tokens[:, i + 1:] = (tokens[:, i + 1:] + 1 + np.arange(L - 1 - i)) % V
    changed = np.asarray(run(model, params, batch | {'tokens': tokens}))
    worst = max(worst, np.abs(changed - base)[:, :i + 1].max())
    assert np.abs(changed - base)[:, i + 1:].max() > 1e-3  # the change is seen at all
  return worst


@pytest.mark.parametrize('name', LAYOUTS)
def test_no_logit_depends_on_a_later_token(name):
  assert leaks(*made(**LAYOUTS[name])) == 0.0


SLOW = pytest.mark.slow


@pytest.mark.parametrize('layout', ['stream', *(pytest.param(name, marks=SLOW) for name in ('stamp', 'cross'))])
def test_no_stage_of_three_tiers_leaks(layout):
  assert leaks(*made(tiers=3, layout=layout)) == 0.0


def fresh():
  """`logits` of a mutant, which must be traced anew."""
  return jit(lambda model, params, batch: model.logits(params, model.hidden(params, batch)), static_argnums=0)


@pytest.mark.parametrize('name', ['stamp', 'cross'])
def test_the_leak_test_sees_a_mask_off_by_one(name, monkeypatch):
  rule = timestamps.may_read
  monkeypatch.setattr(timestamps, 'may_read', lambda q, k, *segments: rule(q + 1, k, *segments))
  assert leaks(*made(**LAYOUTS[name]), run=fresh()) > 1e-3


@pytest.mark.parametrize('name', ['stream', 'cross'])
def test_the_leak_test_sees_rollouts_that_know_one_token_more(name, monkeypatch):
  right = tiered.Tiered.write
  monkeypatch.setattr(tiered.Tiered, 'write', lambda self, p, b, starts: right(self, p, b, starts + 1))
  assert leaks(*made(**LAYOUTS[name]), run=fresh()) > 1e-3


def test_the_leak_test_sees_a_stream_sorted_one_token_early(monkeypatch):
  right = nodes.stream
  monkeypatch.setattr(nodes, 'stream', lambda real, starts, said, resume, delay: right(real, starts, said, resume, -1))
  assert leaks(*made(), run=fresh()) > 1e-3


def test_the_leak_test_sees_starts_chosen_by_the_future(monkeypatch):
  def surest(self, params, batch):
    """The window's highest tokens: whether a token is among them depends on all others."""
    order = jnp.argsort(-batch['tokens'], axis=1)[:, :3]
    return jnp.sort(order, axis=1).astype(jnp.int32)
  monkeypatch.setattr(tiered.Tiered, 'starts', surest)
  assert leaks(*made(), run=fresh()) > 1e-3


def naive_rollout(tier, params, query, speaker, keys_K, sampler):
  """[K, R] from the nodes of one row up to a start, read again from the beginning for every token, without a cache."""
  out, size = [], query.tokens.shape[1] + R
  pad = lambda x: jnp.pad(x, ((0, 0), (0, size - x.shape[1])))
  padded, n = jax.tree.map(pad, query), query.tokens.shape[1]
  for key in keys_K:
    row, last = padded, speaker
    for step in range(R):
      x, _ = naive_read(tier, params, row)
      token = sampler(key[None, None], step, tier.logits(params, x[:, last][:, None]))[0, 0]
      position = query.positions[0, -1] + 1 + step
      last = n + step
      row = row.replace(tokens=row.tokens.at[0, last].set(token), positions=row.positions.at[0, last].set(position),
                        segments=row.segments.at[0, last].set(1))
      out.append(int(token))
  return np.array(out).reshape(len(keys_K), R)


@functools.partial(jit, static_argnums=0)
def naive_read(tier, params, query):
  return tier.read(params, query)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_rollouts_equal_naive_decoding_of_each_start(temperature):
  """Of tier 1 and of a middle tier, whose nodes hold the rollouts of tier 1 and resume nodes."""
  model, params = made(tiers=3, temperature=temperature)
  batch = text()
  starts, found = written(model, params, batch)
  sampler = rollouts.Sampler(temperature)
  compared = 0
  for b in range(B):
    real = nodes.tokens_only(*(jnp.asarray(batch[name][b:b + 1]) for name in ('tokens', 'positions', 'segments')))
    for g, s in enumerate(np.asarray(starts)[b]):
      if s == nodes.NEVER:
        continue
      place = jnp.asarray([[batch['start'][b] + np.uint32(s)]])
      until = jax.tree.map(lambda x: x[:, :s + 1], real)
      one = naive_rollout(model.tiers[0], params['tier_1'], until, s, rollouts.keys(0, 1, place, K)[0], sampler)
      np.testing.assert_array_equal(found[0][b, g], one)
      # By hand: the text up to s with the rollouts so far and resume nodes in it.
      parts = []
      for h, t in enumerate(np.asarray(starts)[b][:g + 1]):
        begin = 0 if h == 0 else int(starts[b, h - 1]) + 1
        parts.append(jax.tree.map(lambda x: x[:, begin:t + 1], real))
        said = np.asarray(found[0][b, h])
        ahead = int(t) + 1 + np.tile(np.arange(R), K)
        zero = jnp.zeros((1, K * R), jnp.int32)
        parts.append(nodes.Nodes(jnp.asarray(said.reshape(1, -1)), jnp.asarray(ahead[None]), zero + 1, zero, zero + 1,
                                 zero, zero))
        parts.append(nodes.Nodes(*(jnp.array([[x]], jnp.int32) for x in (V, t, 1, t, 2, 0, 0))))
      annotated = nodes.concatenate(*parts)
      two = naive_rollout(model.tiers[1], params['tier_2'], annotated, annotated.tokens.shape[1] - 1,
                          rollouts.keys(0, 2, place, K)[0], sampler)
      np.testing.assert_array_equal(found[1][b, g], two)
      compared += 2 * K * R
  assert compared >= 60 and len(np.unique(found[1])) > 2


@pytest.mark.parametrize('name,tiers', [
    ('stream', 3), ('stamp_last', 2), ('cross_hidden', 2), pytest.param('stream_delayed', 2, marks=SLOW),
    pytest.param('stamp_last', 3, marks=SLOW)])
def test_token_by_token_equals_training(name, tiers):
  model, params = made(tiers=tiers, random_phase=False, **LAYOUTS[name])
  batch = text(rows=1)
  whole = logits(model, params, batch)
  reader = tiered_generation.Reader(model, params, int(batch['start'][0]))
  parts = [reader.read([token]) for token in batch['tokens'][0]]
  np.testing.assert_allclose(np.concatenate(parts), whole[0], atol=2e-4)
  assert len(reader.starts) >= 1 and reader.starts[0] < L - R


def test_blocks_of_tokens_equal_single_ones():
  model, params = made(random_phase=False)
  batch = text(rows=1)
  reader = tiered_generation.Reader(model, params, int(batch['start'][0]))
  np.testing.assert_allclose(reader.read(batch['tokens'][0])[0], logits(model, params, batch)[0, -1], atol=2e-4)


def test_entropy_starts_are_found_token_by_token():
  model, params = made(**LAYOUTS['stream_entropy'])
  batch = text(rows=1)
  starts, _ = written(model, params, batch)
  reader = tiered_generation.Reader(model, params, int(batch['start'][0]))
  reader.read(batch['tokens'][0])
  expected = [int(s) for s in starts[0] if s < nodes.NEVER]
  assert reader.starts == expected and 0 < len(expected)


def test_incremental_test_sees_a_rollout_of_other_keys():
  model, params = made(random_phase=False)
  batch = text(rows=1)
  reader = tiered_generation.Reader(model, params, int(batch['start'][0]) + 1)
  last = reader.read(batch['tokens'][0])[0]
  assert np.abs(last - logits(model, params, batch)[0, -1]).max() > 1e-3
