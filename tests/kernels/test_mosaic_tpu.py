"""The TPU kernels in Pallas' interpreter, where what lies beyond an array's end is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import dot_product_attention, mosaic_tpu
from pallas_kernels.matmul import matmul
from pallas_kernels.matmul.mosaic_tpu import Config
from tests.kernels import cases, test_matmul

Q, T = 200, 300  # neither is a multiple of a block
MASKS = cases.attention_masks(Q, T)


def attention(implementation, arrays, arguments):
  config = mosaic_tpu.Config(128, 128) if implementation == 'mosaic_tpu' else None
  arguments = dict(arguments)
  bias = arguments.pop('bias', None)
  def loss(*arrays):
    out, residual = dot_product_attention(*arrays, **arguments, implementation=implementation, config=config,
                                          return_residual=True)
    value = jnp.sin(out.astype(jnp.float32)).sum() + jnp.where(jnp.isfinite(residual), residual, 0).sum()
    return value, (out, residual)
  arrays = (*arrays, *([] if bias is None else [bias]))
  (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True))(*arrays)
  return *outputs, *gradients


FAST = 'bias', 'stamps', 'lengths'  # bias: causal too


@pytest.mark.parametrize('name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
                                  for name in (*MASKS, 'bias', 'shared bias', 'bias a key', 'soft cap')])
def test_attention_and_its_gradients_equal_the_reference(name):
  arguments = {k: jax.tree.map(jnp.asarray, v) if k not in ('local_window_size', 'is_causal', 'logits_soft_cap') else v
               for k, v in (MASKS | cases.attention_extras(Q, T))[name].items()}
  arrays = cases.attention_arrays(Q, T)
  for ours, truth in zip(attention('mosaic_tpu', arrays, arguments), attention('xla', arrays, arguments)):
    np.testing.assert_allclose(ours, truth, atol=5e-5)


def test_bfloat16_errs_at_most_twice_as_much_as_the_naive_kernel():
  low = cases.attention_arrays(Q, T, dtype='bfloat16')
  results = [attention(i, x, {'is_causal': True}) for i, x in (
      ('xla', [x.astype(jnp.float32) for x in low]), ('xla', low), ('mosaic_tpu', low))]
  for truth, naive, ours in zip(*results):
    cases.check_rule(ours, naive, truth, 'bfloat16')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float8_e4m3fn', 'float8_e5m2', 'int8'])
def test_matmul_is_that_of_float64(dtype):
  a, b, arguments = cases.matrices(dtype, 70, 200, 300, batch=(2,))
  test_matmul.check(a, b, arguments | ({} if dtype == 'int8' else {'out_dtype': jnp.float32}), 'mosaic_tpu',
                    config=Config(32, 128, 128))


@pytest.mark.parametrize('extra', ['everything', 'sparse'])
def test_epilogues_of_matmul(extra):
  if extra == 'sparse':
    a, b, _ = cases.matrices('float32', 7 * 16, 50, 5 * 256)
    arguments = {'block_mask': np.random.default_rng(0).random((7, 5)) < 0.4}
    # What the mask leaves out is not even loaded.
    a = jnp.where(np.kron(arguments['block_mask'], np.ones((16, 256))) > 0, a, jnp.nan)
    out = matmul(a, b, **arguments, implementation='mosaic_tpu', config=Config(16, 128, 128))
    np.testing.assert_allclose(out, matmul(jnp.nan_to_num(a), b), atol=1e-3)
  else:
    a, b, _ = cases.matrices('float32', 70, 200, 300)
    test_matmul.check(a, b, cases.matmul_extras(70, 200, 300)[extra], 'mosaic_tpu', config=Config(16, 128, 128))


def test_gradient_of_matmul_is_the_slope_of_float64():
  test_matmul.gradient_is_the_slope(cases.matmul_extras()['everything'], 'mosaic_tpu')


def test_vmap_equals_a_loop():
  arrays = [x.reshape(2, 1, *x.shape[1:]) for x in cases.attention_arrays(20, 20)]
  f = lambda q, k, v: dot_product_attention(q, k, v, is_causal=True, implementation='mosaic_tpu')
  np.testing.assert_allclose(jax.vmap(f, (0, 0, None))(arrays[0], arrays[1], arrays[2][0]),
                             jnp.stack([f(arrays[0][i], arrays[1][i], arrays[2][0]) for i in range(2)]), atol=2e-6)


@pytest.mark.parametrize('arguments, message', [
    ({'alpha': 1.5}, 'mosaic_tpu has no alpha .entmax., whose threshold takes several passes over the keys; xla has'),
    ({'config': mosaic_tpu.Config(100, 128)}, 'multiples of 128')])
def test_what_it_cannot_honour_is_said(arguments, message):
  x = jnp.zeros((1, 8, 1, 8))
  with pytest.raises(NotImplementedError, match=message):
    dot_product_attention(x, x, x, implementation='mosaic_tpu', **arguments)


def test_another_implementation_takes_over():
  x = jnp.zeros((1, 8, 1, 8))
  dot_product_attention(x, x, x, alpha=1.5, implementation=('mosaic_tpu', 'xla'))
