"""RNN, LSTM, the two-sided models and the neural Markov model: what each may read, caches, training and FLOPs."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from framework import config as config_lib
from framework import generation, models
from framework.models import birnn, contract, masked, recurrent
from framework.training import optimizer, state, step
from tests.networks import build

V, L = 13, 10
AUTOREGRESSIVE = ('rnn', 'lstm', 'markov')
TWO_SIDED = ('birnn', 'masked')


def make(name, seed=0, **settings):
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(
      **{'name': name, 'layers': 2, 'width': 8, 'heads': 2} | settings)))
  module = build(config.model, V, L)
  params = contract.init(module, jax.random.key(seed))
  return module, jax.tree.map(lambda x: x * 3, params)


def rows(lengths=(4, 6), count=2, seed=0):
  """Tokens, positions and segments of documents packed into windows of sum(lengths)."""
  tokens = np.random.default_rng(seed).integers(0, V, (count, sum(lengths))).astype(np.int32)
  positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
  segments = np.repeat(np.arange(len(lengths)) + 1, lengths).astype(np.int32)
  return tokens, np.tile(positions, (count, 1)), np.tile(segments, (count, 1))


@functools.partial(jax.jit, static_argnums=0)
def hidden(module, params, tokens, positions, segments, cache=None):
  return module.apply({'params': params}, tokens, positions, segments, cache=cache)


def reads(name):
  """|d hidden(i) / d embedding of token j| summed over channels, [L, L]."""
  module, params = make(name)
  _, positions, segments = rows(count=1)
  tokens = np.arange(L, dtype=np.int32)[None]  # distinct, so that the rows of the embedding are the tokens' own
  def body(embedding):
    return module.apply({'params': params | {'embedding': embedding}}, tokens, positions, segments)[0][0]
  return np.abs(np.asarray(jax.jit(jax.jacrev(body))(params['embedding']))).sum((1, 3))[:, :L]


def allowed(name):
  """Node i predicts token i+1; written out from what each model promises."""
  i, j = np.mgrid[:L, :L]
  same = (i < 4) == (j < 4)
  if name == 'markov':
    return same & ((j == i) | (j == i - 1))
  if name == 'birnn':
    return (same & (j <= i)) | (j >= i + 2)
  if name == 'masked':
    group = masked.groups(L + 1)
    return group[1:][i] != group[j]
  return same & (j <= i)


def check_reads(name):
  found = reads(name)
  assert (found[~allowed(name)] == 0).all()
  assert (found[allowed(name)] > 0).all()


@pytest.mark.parametrize('name', AUTOREGRESSIVE + TWO_SIDED)
def test_each_model_reads_what_it_may_and_no_more(name):
  check_reads(name)
  i = np.arange(L - 1)
  assert not allowed(name)[i, i + 1].any()  # never the token that it predicts


def always_old(step, state, inputs):
  """A scan in which no token is fresh."""
  return jax.lax.scan(step, state, (inputs[0], jnp.zeros_like(inputs[1])))


@pytest.mark.parametrize('name', ['rnn', 'lstm'])
def test_the_leak_test_sees_a_state_that_crosses_documents(name, monkeypatch):
  lax = types.SimpleNamespace(**vars(jax.lax) | {'scan': always_old})
  monkeypatch.setattr(recurrent, 'jax', types.SimpleNamespace(**vars(jax) | {'lax': lax}))
  with pytest.raises(AssertionError):
    check_reads(name)


def test_the_leak_test_sees_a_backward_state_off_by_one(monkeypatch):
  def pad(x, widths):
    return jnp.roll(jnp.pad(x, widths), 1, axis=1)
  monkeypatch.setattr(birnn, 'jnp', types.SimpleNamespace(**vars(jnp) | {'pad': pad}))
  with pytest.raises(AssertionError):
    check_reads('birnn')


def test_the_leak_test_sees_a_target_that_is_not_hidden(monkeypatch):
  original = masked.groups
  monkeypatch.setattr(masked, 'groups', lambda length: np.roll(original(length), 1))
  found = reads('masked')
  monkeypatch.undo()
  assert (found[~allowed('masked')] > 0).any()


def test_groups_are_of_one_size_and_not_periodic():
  for length in (3, 65, 257):
    group = masked.groups(length)
    sizes = np.bincount(group, minlength=masked.GROUPS)
    assert sizes.max() - sizes.min() <= 1
  assert len(set(np.diff(np.flatnonzero(group == 0)))) > 3


@pytest.mark.parametrize('name', AUTOREGRESSIVE)
def test_piece_by_piece_is_the_whole_window(name):
  module, params = make(name)
  tokens, positions, segments = rows()
  whole, _ = hidden(module, params, tokens, positions, segments)
  cache, parts = module.empty_cache(2, L), []
  for a, b in ((0, 1), (1, 5), (5, 6), (6, L)):
    x, cache = hidden(module, params, tokens[:, a:b], positions[:, a:b], segments[:, a:b], cache)
    parts.append(x)
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-4)
  assert int(cache.index) == L


@pytest.mark.parametrize('name', AUTOREGRESSIVE)
def test_prompts_of_unequal_lengths_are_read_as_if_alone(name):
  module, params = make(name)
  tokens = rows()[0]
  padded = np.where(np.arange(L) < L - 3, 0, np.roll(tokens[:1], L - 3, axis=1))
  both, _, positions = generation.prefill(module, params, np.concatenate([padded, tokens[1:]]),
                                          np.array([3, L], np.int32), L)
  alone, _, _ = generation.prefill(module, params, tokens[:1, :3], np.array([3], np.int32), L)
  np.testing.assert_allclose(both[:1], alone, atol=1e-5)
  assert list(np.asarray(positions)) == [3, L]


@pytest.mark.parametrize('name', TWO_SIDED)
def test_two_sided_models_write_nothing(name):
  module, params = make(name)
  with pytest.raises(config_lib.ConfigError, match=f"model.name is '{name}', which has no 'empty_cache'"):
    next(generation.generate(module, params, [np.array([1])], tokens=4, window=L,
                             settings=generation.Sampling(), seed=0))


@pytest.mark.parametrize('name', AUTOREGRESSIVE + ('birnn',))
def test_padding_on_the_right_changes_nothing(name):
  module, params = make(name)
  tokens, positions, segments = rows((6,))
  padded = [np.pad(x, [(0, 0), (0, 4)], constant_values=filler)
            for x, filler in ((tokens, V - 1), (positions, 0), (segments, 0))]
  np.testing.assert_allclose(hidden(module, params, *padded)[0][:, :6],
                             hidden(module, params, tokens, positions, segments)[0], atol=1e-6)


def test_masked_reads_no_padding():
  module, params = make('masked')
  tokens, positions, segments = rows((6, 4))
  segments = np.where(segments == 2, 0, segments)
  other = np.where(segments == 0, (tokens + 1) % V, tokens)
  a, b = (hidden(module, params, t, positions, segments)[0][:, :6] for t in (tokens, other))
  np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', ['lstm', 'masked', *(pytest.param(n, marks=pytest.mark.slow) for n in (
    'rnn', 'markov', 'birnn'))])
def test_a_few_steps_learn_what_the_model_can_know(name):
  """Token i+1 is the sum of tokens i and i-1: two numbers decide it, and so do those behind it."""
  module, _ = make(name, width=16, layers=1)
  tokens = np.zeros((32, L + 1), np.int32)
  tokens[:, :2] = np.random.default_rng(0).integers(0, 5, (32, 2))
  for i in range(2, L + 1):
    tokens[:, i] = (tokens[:, i - 1] + tokens[:, i - 2]) % 5
  weights = np.zeros((32, L), np.float32)
  weights[:, 3:7] = 1
  batch = {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'weights': weights,
           'segments': np.ones((32, L), np.int32), 'positions': np.tile(np.arange(L, dtype=np.int32), (32, 1)),
           'rows': np.arange(32, dtype=np.int32)}
  settings = config_lib.Optimizer(name='muon', learning_rate=1e-2, warmup_steps=1, schedule='constant')
  tx = optimizer.build(settings, 120, contract.describe(module))
  c = config_lib.Training()
  train_step = jax.jit(step.make(step.make_gradient(module, c), tx, optimizer.schedule(settings, 120), c))
  now = state.init(module, tx, 0)
  for _ in range(120):
    now, metrics = train_step(now, batch)
  assert metrics['loss'] < 0.25, metrics  # of ln 5 = 1.61


def test_muon_takes_the_cells_matrices_and_decays_no_bias():
  module, params = make('lstm')
  tx = optimizer.build(config_lib.Optimizer(name='muon', warmup_steps=0, schedule='constant', weight_decay=0.5), 10,
                       contract.describe(module))
  updates, opt = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  taken = [path for path, _ in jax.tree.leaves_with_path(optax.tree.get(opt, 'trace'))]
  assert all('kernel' in str(path) for path in taken) and len(taken) == 8
  decayed = {str(path[-1].key) for path, update in jax.tree.leaves_with_path(updates) if (update != 0).any()}
  assert decayed == {'embedding', 'kernel'}
  assert optax.tree.norm(params) > 0


@pytest.mark.parametrize('name', ['lstm', 'masked'])
def test_dropout_is_a_function_of_the_row(name):
  module, params = make(name, dropout=0.5, layers=1)
  tokens, positions, segments = rows(count=3)
  keys = jax.random.split(jax.random.key(0), 3)
  apply = jax.jit(lambda t, p, s, k: module.apply({'params': params}, t, p, s, keys_B=k)[0])
  whole = apply(tokens, positions, segments, keys)
  np.testing.assert_allclose(apply(tokens[1:], positions[1:], segments[1:], keys[1:]), whole[1:], atol=1e-5)
  assert np.abs(whole - hidden(module, params, tokens, positions, segments)[0]).max() > 0.1


def count_products(jaxpr, times=1) -> int:
  """2 FLOPs for every multiply-add of every dot_general, in loops as often as they run."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      size = np.prod([*equation.outvars[0].aval.shape, *(equation.invars[0].aval.shape[a] for a in contracted)])
      total += 2 * int(size)
    for value in equation.params.values():
      for inner in value if isinstance(value, (list, tuple)) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          total += count_products(inner, equation.params.get('length', 1))
  return times * total


@pytest.mark.parametrize('name', AUTOREGRESSIVE + TWO_SIDED)
def test_flops_are_within_five_per_cent_of_the_products(name):
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(name=name, layers=3, width=64, heads=4)))
  module = build(config.model, 211, 32)
  params = contract.shapes(module)
  tokens = jax.ShapeDtypeStruct((2, 32), 'int32')
  def forward(params, tokens):
    return module.logits(params, module.apply({'params': params}, tokens, tokens, tokens)[0])
  jaxpr = jax.make_jaxpr(forward)(params, tokens)
  assert count_products(jaxpr.jaxpr) == pytest.approx(2 * module.flops().forward, rel=0.05)
