"""Schedules by their definition, AdamW against a step written out, decay and clipping."""

import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from framework import config as config_lib
from framework.models import contract
from framework.training import losses, optimizer, optimizers, state, step
from framework.training.optimizers import muon
from tests.networks import build

FORKS = pathlib.Path(__file__).parents[1] / 'forks'


def settings(**kwargs):
  return config_lib.Optimizer(**{'learning_rate': 0.1, 'final_learning_rate': 0.01, 'warmup_steps': 10} | kwargs)


def rates(c, steps=100):
  schedule = optimizer.schedule(c, steps)
  return np.array([float(schedule(n)) for n in range(steps)])


@pytest.mark.parametrize('name', ['cosine', 'linear', 'wsd', 'constant'])
def test_warm_up_is_linear_and_ends_at_the_peak(name):
  r = rates(settings(schedule=name))
  np.testing.assert_allclose(r[:10], 0.1 * np.arange(1, 11) / 10, rtol=1e-5)
  assert r.max() == pytest.approx(0.1)


def test_cosine():
  r = rates(settings())
  expected = [0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * (n - 10) / 90)) for n in range(10, 100)]
  np.testing.assert_allclose(r[10:], expected, rtol=1e-4)


def test_linear_ends_just_above_the_final_rate():
  r = rates(settings(schedule='linear'))
  np.testing.assert_allclose(np.diff(r[10:]), -0.09 / 90, rtol=1e-3)
  assert r[-1] == pytest.approx(0.011, rel=1e-3)


def test_warm_up_stable_decay():
  r = rates(settings(schedule='wsd', decay_fraction=0.2))
  np.testing.assert_allclose(r[10:80], 0.1, rtol=1e-6)
  assert (np.diff(r[80:]) < 0).all() and r[-1] == pytest.approx(0.01 + 0.09 / 20, rel=1e-3)


def test_no_warm_up_starts_at_the_peak():
  assert rates(settings(warmup_steps=0))[0] == pytest.approx(0.1)


KINDS = {'weight': ('hidden', ('layers', 'width', 'feedforward'), ('width',)),
         'bias': ('bias', ('layers', 'width'), ()),
         'scale': ('scale', ('layers', 'width'), ()), 'embedding': ('embedding', ('vocabulary', 'width'), ())}


def described(params):
  """What a model would say of these parameters."""
  def one(path, leaf):
    role, axes, inputs = KINDS[path[-1].key]
    return contract.Parameter(leaf, axes, role, inputs)
  return {jax.tree_util.keystr(path): one(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def tree():
  return {'blocks': {'up': {'weight': jnp.full((2, 3, 4), 2.0), 'bias': jnp.full((2, 4), 2.0)},
                     'attention_norm': {'scale': jnp.full((2, 3), 2.0)}}, 'embedding': jnp.full((5, 3), 2.0)}


def test_adamw_equals_the_step_written_out():
  c = settings(schedule='constant', warmup_steps=0, clip_norm=0.0, beta1=0.9, beta2=0.99, epsilon=1e-8,
               weight_decay=0.5)
  update = optimizer.build(c, 10, described(tree()))
  params, rng = tree(), np.random.default_rng(0)
  state = update.init(params)
  expected = jax.tree.map(np.asarray, params)
  m = jax.tree.map(np.zeros_like, expected)
  v = jax.tree.map(np.zeros_like, expected)
  decays = {'blocks': {'up': {'weight': 1, 'bias': 0}, 'attention_norm': {'scale': 0}}, 'embedding': 1}
  for t in range(1, 4):
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    updates, state = update.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, grads)
    expected = jax.tree.map(
        lambda p, m, v, d: p - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.5 * d * p),
        expected, m, v, decays)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params, expected)


@pytest.mark.parametrize('name', ['adamw', 'lion', 'muon'])
def test_weight_decay_is_on_matrices_only(name):
  c = settings(name=name, schedule='constant', warmup_steps=0, weight_decay=0.5)
  update = optimizer.build(c, 10, described(tree()))
  params = tree()
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = update.update(zero, update.init(params), params)
  after = optax.apply_updates(params, updates)
  assert np.allclose(after['blocks']['up']['weight'], 2 - 0.1 * 0.5 * 2)
  assert np.allclose(after['embedding'], 2 - 0.1 * 0.5 * 2)
  assert (after['blocks']['up']['bias'] == 2).all() and (after['blocks']['attention_norm']['scale'] == 2).all()


def test_clipping_is_by_the_norm_of_the_whole_gradient():
  c = settings(schedule='constant', warmup_steps=0, name='lion', clip_norm=1.0)
  update = optimizer.build(c, 10, described(tree()))
  params = tree()
  grads = jax.tree.map(lambda p: jnp.full(p.shape, 7.0), params)
  _, state = update.update(grads, update.init(params), params)
  momentum = optax.tree.norm(optax.tree.get(state, 'mu'))
  assert float(momentum) == pytest.approx((1 - c.beta2) * 1.0, rel=1e-4)


def test_muon_orthogonalises_every_hidden_matrix_by_itself():
  model = config_lib.resolve(config_lib.Config(model=config_lib.Model(layers=3, width=16, heads=2, kv_heads=1))).model
  module = build(model, 11, 8)
  params = contract.init(module, jax.random.key(0))
  c = settings(name='muon', schedule='constant', warmup_steps=0, weight_decay=0.0, clip_norm=0.0)
  update = optimizer.build(c, 10, contract.describe(module))
  grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)
  updates, _ = jax.jit(update.update)(grads, update.init(params), params)
  for name, shape in (('query', (16, 16)), ('key', (16, 8)), ('out', (16, 16)), ('up', (16, 64)), ('down', (64, 16))):
    for layer in range(3):
      singular = np.linalg.svd(np.asarray(updates['blocks'][name]['weight'][layer]).reshape(shape), compute_uv=False)
      # All directions alike, up to the width of five Newton-Schulz steps; a random matrix has a ratio above 10.
      assert singular.max() / singular.min() < 2.5, (name, layer, singular)
      assert np.sqrt((singular**2).sum() / np.prod(shape)) == pytest.approx(0.1 * 0.2, rel=0.35)


@pytest.mark.parametrize('shape', [(16, 16), (16, 20), (16, 64), (64, 16), (1, 8)])
@pytest.mark.parametrize('rank', [1, 2, 16])
def test_orthogonalisation_is_optaxs(shape, rank):
  rng = np.random.default_rng(0)
  x = sum(rng.normal(size=(3, shape[0], 1)) * rng.normal(size=(3, 1, shape[1])) for _ in range(rank))
  x = jnp.asarray(x + 1e-4 * rng.normal(size=x.shape), jnp.float32)  # most singular values are tiny where rank < 16
  theirs = optax.contrib.scale_by_muon(beta=0.0, nesterov=False,
                                       weight_dimension_numbers=optax.contrib.MuonDimensionNumbers((1,), (2,)))
  np.testing.assert_allclose(muon.orthogonalize(x), theirs.update(x, theirs.init(x))[0], atol=2e-4)
  low = x.astype(jnp.bfloat16)  # only the result is rounded
  np.testing.assert_allclose(muon.orthogonalize(low).astype(jnp.float32),
                             muon.orthogonalize(low.astype(jnp.float32)), rtol=5e-3)
  assert np.isfinite(muon.orthogonalize(0 * x)).all()


INJECTED = '''
import optax
def build(c, rate, parameters):
  return optax.inject_hyperparams(lambda learning_rate: optax.scale(-learning_rate))(learning_rate=rate)
'''
WITHOUT_COUNT = '''
import jax, optax
def build(c, rate, parameters):
  return optax.stateless(lambda updates, params: jax.tree.map(lambda x: -rate(0) * x, updates))
'''


@pytest.mark.parametrize('name', ['adamw', 'lion', 'muon', 'sgd', 'injected', 'without_count'])
def test_the_rate_that_is_logged_is_applied_after_skips(name, tmp_path, monkeypatch):
  """A parameter that only decays, or has a gradient of 1, shows the rate of every step; every third is skipped."""
  paths = {'sgd': FORKS / 'sgd.py'}
  for fork, text in (('injected', INJECTED), ('without_count', WITHOUT_COUNT)):
    paths[fork] = tmp_path / f'{fork}.py'
    paths[fork].write_text(text)
  decaying = name not in paths
  c = settings(name=str(paths.get(name, name)), schedule='linear', warmup_steps=3, weight_decay=0.5, clip_norm=0.0,
               beta1=0.0)
  monkeypatch.setattr(losses, 'find', lambda _: types.SimpleNamespace(
      sum_loss=lambda module, params, batch, keys: (not decaying) * optax.tree.sum(params) + batch['weights'].sum()))
  steps, params = 12, {'blocks': {'up': {'weight': jnp.full((1, 2, 2), 2.0)}}}
  update = optimizer.build(c, steps, described(params))
  t = config_lib.Training(skip_nonfinite=9)
  gradient = step.make_gradient(types.SimpleNamespace(stochastic=False), t)
  train_step = jax.jit(step.make(gradient, update, optimizer.schedule(c, steps), t))
  zero = jnp.zeros((), jnp.int32)
  now = state.State(zero, zero, params, update.init(params))
  applied, logged = [], []
  for number in range(steps):
    before = now.params['blocks']['up']['weight'][0, 0, 0]
    now, metrics = train_step(now, {'weights': jnp.full((1, 1), jnp.nan if number % 3 == 1 else 1.0)})
    moved = float(before - now.params['blocks']['up']['weight'][0, 0, 0])
    applied.append(moved / (0.5 * float(before)) if decaying else moved)
    logged.append(float(metrics['learning_rate']) * (number % 3 != 1))
  assert int(now.skipped) == 4
  np.testing.assert_allclose(logged, rates(c, steps) * (np.arange(steps) % 3 != 1), rtol=1e-6)
  np.testing.assert_allclose(applied, logged, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'lion', 'muon'])
def test_the_state_is_that_of_the_optimizer(name):
  """So checkpoints of before can be read."""
  c, known = settings(name=name), described(tree())
  plain = optax.chain(optax.clip_by_global_norm(1.0), optimizers.find(name).build(c, lambda count: 0.1, known))
  assert jax.tree.structure(optimizer.build(c, 9, known).init(tree())) == jax.tree.structure(plain.init(tree()))


def test_every_optimizer_learns():
  target = jax.random.normal(jax.random.key(0), (8, 8))
  for name, rate in (('adamw', 0.1), ('lion', 0.03), ('muon', 0.3)):
    params = {'blocks': {'up': {'weight': jnp.zeros((1, 8, 8))}}}
    update = optimizer.build(settings(name=name, learning_rate=rate, weight_decay=0.0), 100, described(params))
    state = update.init(params)
    loss = lambda p: jnp.square(p['blocks']['up']['weight'][0] - target).mean()
    first = loss(params)
    @jax.jit
    def one(params, state):
      updates, state = update.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state
    for _ in range(100):
      params, state = one(params, state)
    assert loss(params) < 0.1 * first, name
