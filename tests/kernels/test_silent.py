"""What attention once answered wrongly without a word: huge windows, biases that hide keys, alpha near 1, wide integers,
16-bit scales; and what it refused without need."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import dot_product_attention, entmax
from tests.kernels import oracle

BACKENDS = ['xla', 'xla_chunked', 'mosaic_tpu']
B, Q, H, G, K = 2, 24, 4, 2, 16


def arrays(dtype=jnp.float32, seed=0, width=K):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=(B, Q, heads, width)), dtype) for heads in (H, G, G)]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('right', [2**31 - 1, sys.maxsize, np.int64(2**40), Q])
def test_a_huge_window_is_all_there_is(backend, right):
  wide = dot_product_attention(*arrays(), local_window_size=(2, right), implementation=backend)
  i, j = np.arange(Q)[:, None], np.arange(Q)
  mask = jnp.asarray(j >= i - 2)[None, None]
  np.testing.assert_allclose(wide, dot_product_attention(*arrays(), mask=mask, implementation='xla'), atol=2e-6)


@pytest.mark.parametrize('window', [-1, (2, -1), 1.5, (1, 2, 3), 'all'])
def test_another_window_is_refused(window):
  with pytest.raises(ValueError, match='expected one or two numbers >= 0'):
    dot_product_attention(*arrays(), local_window_size=window)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('least', [-np.inf, np.finfo(np.float32).min, float(jnp.finfo(jnp.bfloat16).min), -1e30])
def test_a_bias_that_hides_keys_is_a_mask(backend, least):
  """As left padding is written for other libraries; row 1 is padding as a whole."""
  hidden = np.zeros((B, 1, 1, Q), bool)
  hidden[0, ..., :5], hidden[1] = True, True
  bias = jnp.where(hidden, jnp.float32(least), 0.25)
  def loss(query, key, value, **condition):
    out, lse = dot_product_attention(query, key, value, implementation=backend, return_residual=True, **condition)
    return (out**2).sum(), (out, lse)
  ours = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays(), bias=bias)
  true = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
      *arrays(), mask=jnp.asarray(~hidden), bias=jnp.full((1, 1, 1, Q), 0.25))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(true), strict=True):
    np.testing.assert_allclose(a, b, atol=3e-5)
  assert (np.asarray(ours[0][1][0][1]) == 0).all() and np.isneginf(ours[0][1][1][1]).all()


@pytest.mark.parametrize('alpha', [1.00001, 1.0001, 1.001, 1.01, 1.1, 1.5, 2.0, 2.5])
def test_the_slope_of_alpha_is_that_of_float64(alpha):
  rng = np.random.default_rng(3)
  z, g = 2 * rng.normal(size=(40, 20)), rng.normal(size=(40, 20))
  h = 1e-6 if alpha > 1.00005 else 5e-6
  def value(a):
    return sum((oracle.entmax_row(row.astype(np.float32).astype(np.float64), a) * w).sum() for row, w in zip(z, g))
  true = (value(alpha + h) - value(alpha - h)) / (2 * h)
  def loss(a):
    return (entmax.masked_entmax(jnp.asarray(z, jnp.float32), np.ones(z.shape, bool), a) * g.astype(np.float32)).sum()
  assert float(jax.grad(loss)(jnp.float32(alpha))) == pytest.approx(true, rel=5e-4)


def test_alpha_that_has_come_to_one_is_softmax_without_nan():
  out, slope = jax.value_and_grad(lambda a: dot_product_attention(*arrays(), alpha=a, implementation='xla').sum())(
      jnp.float32(1.00001))
  assert np.isfinite([out, slope]).all()
  traced = jax.jit(lambda a: dot_product_attention(*arrays(), alpha=a, implementation='xla'))(jnp.float32(1.0))
  np.testing.assert_allclose(traced, dot_product_attention(*arrays()), atol=1e-3)


@pytest.mark.parametrize('alpha', [0.5, 3, np.float32(2.6), jnp.float32(1.0), jnp.array([1.5, 1.5, 1.5, 9.0]), float('nan')])
def test_alpha_out_of_bounds_is_refused(alpha):
  with pytest.raises(ValueError, match='alpha is .*expected'):
    dot_product_attention(*arrays(), alpha=alpha)
  np.testing.assert_array_equal(dot_product_attention(*arrays(), alpha=np.float64(1.0)), dot_product_attention(*arrays()))


@pytest.mark.parametrize('backend', BACKENDS)
def test_segments_and_stamps_of_64_bits_do_not_merge(backend):
  small = np.repeat(np.arange(3), Q // 3)[None]
  wide = small.astype(np.int64) * 2**32 + 7
  true = dot_product_attention(*arrays(), segment_ids=small, stamps=np.arange(Q), implementation=backend)
  found = dot_product_attention(*arrays(), segment_ids=wide, stamps=np.arange(Q, dtype=np.int64) * 2**33 - 2**40,
                                implementation=backend)
  np.testing.assert_array_equal(found, true)


def test_bfloat16_at_width_128_is_as_exact_as_jax_nn():
  query, key, value = arrays(jnp.bfloat16, width=128)
  true = dot_product_attention(*(x.astype(jnp.float32) for x in (query, key, value)))
  wide = [jnp.repeat(x, H // G, axis=2) for x in (key, value)]
  def error(out):
    return float(jnp.abs(out.astype(jnp.float32) - true).mean())
  peer = error(jax.nn.dot_product_attention(query, *wide))
  for backend in ('xla', 'xla_chunked'):
    assert error(dot_product_attention(query, key, value, implementation=backend)) < 1.1 * peer


def test_second_derivatives_go_through_the_default_backend():
  query, key, value = arrays()
  def loss(query):
    return jnp.sin(dot_product_attention(query, key, value, is_causal=True)).sum()
  product = jax.jvp(jax.grad(loss), (query,), (query,))[1]
  h = 1e-3
  slope = (jax.grad(loss)(query * (1 + h)) - jax.grad(loss)(query * (1 - h))) / (2 * h)
  np.testing.assert_allclose(product, slope, atol=5e-3)
