"""Attention in XLA, naive and in blocks, against float64 NumPy, jax.nn and slopes; and what the call refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.attention import chunked, dot_product_attention, gradient, sharded_attention
from pallas_kernels.attention import mask as mask_lib
from tests.kernels import cases, oracle

MASKS, EXTRAS = cases.attention_masks(), cases.attention_extras()
IMPLEMENTATIONS = {'xla': None, 'xla_chunked': chunked.Config(32, 16)}
attend = functools.partial(dot_product_attention)


def supported(implementation, arguments):
  return implementation == 'xla' or 'alpha' not in arguments


def run(implementation, arrays, arguments, **more):
  f = jax.jit(lambda *x: attend(*x, implementation=implementation, config=IMPLEMENTATIONS[implementation],
                                **arguments, **more))
  return f(*arrays)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', [*MASKS, *EXTRAS])
def test_output_and_log_sum_exp_are_those_of_float64(name, implementation):
  arguments, arrays = (MASKS | EXTRAS)[name], cases.attention_arrays()
  if not supported(implementation, arguments):
    with pytest.raises(NotImplementedError, match='xla_chunked has no alpha'):
      run(implementation, arrays, arguments)
    return
  expected, expected_residual = oracle.attention(*arrays, **arguments)
  if 'alpha' in arguments:
    out = run(implementation, arrays, arguments)
  else:
    out, residual = run(implementation, arrays, arguments, return_residual=True)
    np.testing.assert_allclose(residual, expected_residual, atol=1e-5, rtol=1e-5)
  np.testing.assert_allclose(out, expected, atol=5e-6)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', [*MASKS, *EXTRAS])
def test_gradients_are_the_slopes_of_float64(name, implementation):
  """Along one random direction of all inputs together, for a loss of the output and the log-sum-exp."""
  arguments = dict((MASKS | EXTRAS)[name])
  if not supported(implementation, arguments):
    return
  Q, T = 17, 23
  arguments = dict((cases.attention_masks(Q, T) | cases.attention_extras(Q, T))[name])
  inputs = dict(zip(('query', 'key', 'value'), cases.attention_arrays(Q, T)))
  inputs |= {k: jnp.asarray(v) for k, v in arguments.items() if k in ('bias', 'alpha') and np.ndim(v)}
  arguments = {k: v for k, v in arguments.items() if k not in inputs}
  rng = np.random.default_rng(3)
  weight = rng.normal(size=(cases.B, Q, cases.H, cases.K))
  direction = {k: rng.normal(size=x.shape) for k, x in inputs.items()}
  residual_too = 'alpha' not in arguments and 'alpha' not in inputs

  def loss(inputs):
    out = attend(**inputs, **arguments, implementation=implementation, return_residual=residual_too,
                 config=chunked.Config(8, 16) if implementation == 'xla_chunked' else None)
    if not residual_too:
      return (out * weight).sum()
    out, residual = out
    return (out * weight).sum() + jnp.where(jnp.isfinite(residual), residual, 0).sum()
  gradient = jax.jit(jax.grad(loss))(inputs)
  visible = oracle.allowed(cases.B, cases.H, Q, T, **{
      k: v for k, v in arguments.items() if k not in ('scale', 'logits_soft_cap', 'alpha')})
  rest = {k: v for k, v in arguments.items() if k in ('scale', 'logits_soft_cap', 'alpha')}
  def exact(step):
    moved = {k: np.asarray(x, np.float64) + step * direction[k] for k, x in inputs.items()}
    out, residual = oracle.attention(**moved, **rest, visible=visible)
    return (out * weight).sum() + (residual[np.isfinite(residual)].sum() if residual_too else 0)
  slope = (exact(1e-6) - exact(-1e-6)) / 2e-6
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  total = sum((gradient[k] * direction[k]).sum() for k in inputs)
  np.testing.assert_allclose(total, slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_a_query_that_reads_nothing_gives_nothing(implementation):
  arrays = cases.attention_arrays()
  arguments = {'mask': np.zeros((1, 1, cases.Q, cases.T), bool)}
  out, residual = run(implementation, arrays, arguments, return_residual=True)
  assert (out == 0).all() and (residual == -np.inf).all()
  def loss(*arrays):
    out, residual = run(implementation, arrays, arguments, return_residual=True)
    return out.sum() + jnp.exp(residual).sum()
  for g in jax.grad(loss, (0, 1, 2))(*arrays):
    assert (g == 0).all()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', ['causal', 'segments'])
def test_blocks_err_at_most_twice_as_much_as_the_naive_kernel(name, dtype):
  low = cases.attention_arrays(200, 200, dtype=dtype)
  exact = tuple(x.astype(jnp.float32) for x in low)
  arguments = cases.attention_masks(200, 200)[name]
  def both(implementation, arrays):
    def loss(*arrays):
      out = run(implementation, arrays, arguments)
      return jnp.sin(out.astype(jnp.float32)).sum(), out
    gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]
  for truth, naive, ours in zip(both('xla', exact), both('xla', low), both('xla_chunked', low)):
    cases.check_rule(ours, naive, truth, dtype)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_jax_nn_agrees(implementation):
  arrays = cases.attention_arrays(50, 50)
  bias = jnp.asarray(np.random.default_rng(5).normal(size=(cases.B, cases.H, 50, 50)), jnp.float32)
  lengths = {'query_seq_lengths': jnp.array([50, 50]), 'key_value_seq_lengths': jnp.array([50, 13])}
  for arguments in ({'is_causal': True}, {'local_window_size': (3, 0)}, {'bias': bias}, lengths):
    ours = run(implementation, arrays, arguments)
    theirs, _ = jax.nn.dot_product_attention(*arrays, **arguments, return_residual=True)
    np.testing.assert_allclose(ours, theirs, atol=3e-6)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_blocks_equal_naive_at_random_shapes(data):
  draw = lambda *a: data.draw(st.integers(*a))
  Q, T, G, M, block_q, block_k = draw(1, 40), draw(1, 40), draw(1, 2), draw(1, 3), draw(1, 50), draw(1, 50)
  rng = np.random.default_rng(draw(0, 2**32))
  arrays = cases.attention_arrays(Q, T, G * M, G, draw(1, 9), seed=draw(0, 99))
  arguments = {'is_causal': bool(draw(0, 1)), 'logits_soft_cap': [None, 3.0][draw(0, 1)]}
  if draw(0, 1):
    arguments['segment_ids'] = (rng.integers(0, 3, (2, Q)), rng.integers(0, 3, (2, T)))
  if draw(0, 1):
    arguments['key_value_seq_lengths'] = rng.integers(0, T + 1, 2)
  expected = jax.jit(lambda *x: attend(*x, **arguments, implementation='xla'))(*arrays)
  ours = jax.jit(lambda *x: attend(*x, **arguments, implementation='xla_chunked',
                                   config=chunked.Config(block_q, block_k)))(*arrays)
  np.testing.assert_allclose(ours, expected, atol=3e-6)


def test_a_mask_off_by_one_is_seen(monkeypatch):
  original = mask_lib.Mask.intervals
  monkeypatch.setattr(mask_lib.Mask, 'intervals', lambda self: (original(self)[0], original(self)[1] - 1))
  for implementation in IMPLEMENTATIONS:
    with pytest.raises(AssertionError):
      test_output_and_log_sum_exp_are_those_of_float64('causal', implementation)


def test_blocks_need_a_tenth_of_the_memory():
  arrays = [jax.ShapeDtypeStruct((1, 4096, 2, 32), jnp.float32)] * 3
  def temporary(implementation):
    loss = lambda *x: attend(*x, is_causal=True, implementation=implementation).sum()
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
  naive, blocks = temporary('xla'), temporary('xla_chunked')
  assert naive > 2 * 2 * 4 * 4096**2  # two heads' weights and their gradient
  assert blocks < naive / 10


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_vmap_equals_a_larger_batch(implementation):
  arrays = cases.attention_arrays(B=4)
  whole = run(implementation, arrays, {'is_causal': True})
  split = [x.reshape(2, 2, *x.shape[1:]) for x in arrays]
  by_vmap = jax.vmap(lambda *x: run(implementation, x, {'is_causal': True}))(*split)
  np.testing.assert_allclose(by_vmap.reshape(whole.shape), whole, atol=2e-6)
  def g(*x):
    return jax.grad(lambda *x: run(implementation, x, {'is_causal': True}).sum(), (0, 1, 2))(*x)
  for a, b in zip(jax.vmap(g)(*split), g(*arrays)):
    np.testing.assert_allclose(a.reshape(b.shape), b, atol=2e-5)


def test_named_residuals_keep_the_forward_pass_from_running_twice():
  arrays = cases.attention_arrays()
  f = lambda *x: run('xla_chunked', x, {}).sum()
  def loops(policy):
    g = jax.value_and_grad(jax.checkpoint(f, policy=policy), (0, 1, 2))
    return jax.jit(g).lower(*arrays).compile().as_text().count(' while(')
  kept = loops(jax.checkpoint_policies.save_only_these_names(*gradient.RESIDUALS))
  assert kept < loops(jax.checkpoint_policies.nothing_saveable)


def test_over_a_mesh_it_is_the_same():
  """On four simulated devices: rows over two, heads over two."""
  mesh = jax.make_mesh((2, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  arrays = cases.attention_arrays()
  bias = jnp.asarray(cases.attention_extras()['bias']['bias'])
  for arguments in ({'is_causal': True, 'bias': bias}, MASKS['segments'], MASKS['lengths'], MASKS['dense'],
                    {'local_window_size': (9, 0), 'return_residual': True}):
    whole = attend(*arrays, **arguments)
    split = jax.jit(lambda *x, a=arguments: sharded_attention(*x, mesh=mesh, heads='model', **a))(*arrays)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-6), split, whole)
  def in_context(*x):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return sharded_attention(*x, heads='model', is_causal=True, implementation='xla_chunked')
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  np.testing.assert_allclose(jax.jit(in_context, in_shardings=(whole,) * 3)(*arrays), attend(*arrays, is_causal=True),
                             atol=3e-6)
  np.testing.assert_allclose(sharded_attention(*arrays), attend(*arrays), atol=3e-6)  # no mesh, one device
  with pytest.raises(ValueError, match="heads is 'modl'; expected one of the mesh's axes, data, model"):
    sharded_attention(*arrays, mesh=mesh, heads='modl')
  with pytest.raises(ValueError, match='2 rows, 4 query heads and 2 key heads; expected multiples of 4, 1 and 1'):
    sharded_attention(*arrays, mesh=mesh, batch=('data', 'model'))


def shape(*sizes, dtype=jnp.float32):
  return jnp.zeros(sizes, dtype)


@pytest.mark.parametrize('changes, message', [
    ({'query': shape(2, 8, 4)}, r'query is float32\[2, 8, 4\]; expected floating-point \[batch, length, heads'),
    ({'query': shape(2, 8, 4, 16, dtype=jnp.int32)}, 'query is int32'),
    ({'key': shape(2, 9, 3, 16), 'value': shape(2, 9, 3, 16)}, '4 query heads; expected a multiple of the 3 key heads'),
    ({'key': shape(2, 9, 2, 8), 'value': shape(2, 9, 2, 8)}, 'width 8; expected those of query, 2 and 16'),
    ({'value': shape(2, 9, 2, 8)}, 'expected the same'),
    ({'query': shape(2, 8, 4, 16, dtype=jnp.bfloat16)}, 'dtypes bfloat16, float32 and float32; expected one'),
    ({'bias': shape(2, 4, 8, 8)}, r'bias has shape \(2, 4, 8, 8\); expected \[2 or 1, 4 or 1, 8 or 1, 9 or 1\]'),
    ({'mask': shape(2, 4, 8, 9)}, 'mask has dtype float32; expected bool'),
    ({'mask': shape(2, 8, 9, dtype=bool)}, r'mask has shape \(2, 8, 9\)'),
    ({'prefix_lengths': jnp.array([1, 2])}, 'expected is_causal=True'),
    ({'is_causal': True, 'prefix_lengths': jnp.array([1, 2, 3])}, r'prefix_lengths is int32\[3\]; expected integers'),
    ({'key_value_seq_lengths': jnp.array([1.0, 2.0])}, 'key_value_seq_lengths is float32'),
    ({'segment_ids': jnp.zeros((2, 8), int)}, r'segment_ids of the keys is int32\[2, 8\]; expected .* \[2 or 1, 9\]'),
    ({'local_window_size': (3, -1)}, 'local_window_size is .*; expected one or two numbers >= 0'),
    ({'logits_soft_cap': 0.0}, 'logits_soft_cap is 0.0; expected a number > 0'),
    ({'alpha': 0.5}, 'alpha is 0.5; expected 1 to 2.5, nearest is 1'),
    ({'alpha': jnp.ones(3)}, 'alpha has shape'),
    ({'alpha': 1.5, 'return_residual': True}, 'expected alpha=None'),
    ({'implementation': 'xla_chunkd'}, r"'xla_chunkd'; expected one of xla, .* \(did you mean 'xla_chunked'\?\)"),
    ({'config': chunked.Config()}, 'expected the one implementation that it belongs to to be named'),
])
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
  good = {'query': shape(2, 8, 4, 16), 'key': shape(2, 9, 2, 16), 'value': shape(2, 9, 2, 16)}
  with pytest.raises(ValueError, match=message) as error:
    attend(**(good | changes))
  assert '\n' not in str(error.value)
