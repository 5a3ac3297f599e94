"""matmul in XLA against float64 NumPy and slopes; and what the call refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.matmul import matmul
from tests.kernels import cases, oracle

EXTRAS = cases.matmul_extras()


def check(a, b, arguments, implementation='xla', **call):
  """Errors within the rounding of the output dtype and of a float32 sum; int8 exact."""
  out = jax.jit(lambda a, b: matmul(a, b, implementation=implementation, **arguments, **call))(a, b)
  if arguments.get('precision') == 'tf32':
    a, b = (jax.lax.reduce_precision(x, 8, 10) for x in (a, b))
  expected = oracle.matmul(a, b, **{k: v for k, v in arguments.items() if k not in ('precision', 'out_dtype')})
  if out.dtype == jnp.int32:
    np.testing.assert_array_equal(out, expected)
    return
  step = float(jnp.finfo(out.dtype).eps)
  np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=step, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize('extra', EXTRAS)
@pytest.mark.parametrize('dtype', cases.MATMUL_DTYPES)
def test_values_are_those_of_float64(dtype, extra):
  a, b, arguments = cases.matrices(dtype)
  check(a, b, arguments | EXTRAS[extra] | ({'out_dtype': jnp.float32} if dtype != 'int8' or extra != 'plain' else {}))


@pytest.mark.parametrize('dtype', cases.MATMUL_DTYPES)
def test_batches_and_default_dtypes(dtype):
  a, b, arguments = cases.matrices(dtype, batch=(2, 3))
  check(a, b, arguments)
  check(a, b[0, 0], arguments)
  check(a, b, arguments | {'a_scale': np.ones((2, 3, 70), np.float32), 'b_scale': np.ones((2, 3, 50), np.float32)})
  check(a, b[0, 0], arguments | {'a_scale': np.full((2, 3, 70), 2, np.float32)})
  expected = {'tf32': 'float32', 'int8': 'int32'}.get(dtype, 'bfloat16' if 'float8' in dtype else dtype)
  assert matmul(a, b, **arguments).dtype == expected


def test_integers_stay_integers_and_exact():
  a, b, _ = cases.matrices('int8')
  c = jnp.arange(70 * 50, dtype=jnp.int32).reshape(70, 50)
  check(a, b, {'alpha': 3, 'beta': -2, 'c': c, 'activation': 'relu', 'bias': jnp.arange(50)})


def test_the_two_kinds_of_float8_mix():
  a, b = cases.matrices('float8_e4m3fn')[0], cases.matrices('float8_e5m2')[1]
  check(a, b, {'out_dtype': jnp.float32})


def test_tf32_is_coarser_than_float32():
  a, b, _ = cases.matrices('float32')
  full, coarse = matmul(a, b), matmul(a, b, precision='tf32')
  exact = oracle.matmul(a, b)
  assert 1e-4 < np.abs(coarse - exact).max() / np.abs(exact).max() < 1e-2
  assert np.abs(full - exact).max() < 1e-5 * np.abs(exact).max()


def test_a_block_that_the_mask_leaves_out_is_not_looked_at():
  a, b, _ = cases.matrices('float32', 4, 3, 6)
  mask = np.array([[True, False, True], [False, True, True]])
  poisoned = jnp.where(np.kron(mask, np.ones((2, 2))) > 0, a, jnp.nan)
  np.testing.assert_array_equal(matmul(poisoned, b, block_mask=mask), matmul(a, b, block_mask=mask))


@pytest.mark.parametrize('extra', EXTRAS)
def test_gradients_are_the_slopes_of_float64(extra):
  gradient_is_the_slope(EXTRAS[extra], 'xla')


def gradient_is_the_slope(arguments, implementation, **call):
  """Along one random direction of all inputs together. A relu's kink is stepped over by the width of the step."""
  a, b, _ = cases.matrices('float32')
  inputs = {k: jnp.asarray(v) for k, v in arguments.items() if k in ('c', 'bias', 'a_scale', 'b_scale')} | {
      'a': a, 'b': b}
  rest = {k: v for k, v in arguments.items() if k not in inputs}
  rng = np.random.default_rng(7)
  direction = {k: rng.normal(size=x.shape) for k, x in inputs.items()}
  weight = rng.normal(size=(70, 50))
  gradient = jax.jit(jax.grad(lambda x: (matmul(**x, **rest, implementation=implementation, **call) * weight).sum()))(
      inputs)
  def exact(step):
    moved = {k: np.asarray(x, np.float64) + step * direction[k] for k, x in inputs.items()}
    return (oracle.matmul(**moved, **rest) * weight).sum()
  slope = (exact(1e-7) - exact(-1e-7)) / 2e-7
  total = sum((gradient[k] * direction[k]).sum() for k in inputs)
  np.testing.assert_allclose(total, slope, rtol=2e-4, atol=1e-3 * abs(slope))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from(cases.MATMUL_DTYPES),
       st.integers(0, 99))
def test_random_shapes(M, N, K, dtype, seed):
  a, b, arguments = cases.matrices(dtype, M, N, K, seed)
  check(a, b, arguments)


def shape(*sizes, dtype=jnp.float32):
  return jnp.zeros(sizes, dtype)


@pytest.mark.parametrize('changes, message', [
    ({'a': shape(4)}, r'a is float32\[4\]; expected a matrix'),
    ({'a': shape(4, 6, dtype=jnp.int32)}, 'a is int32'),
    ({'b': shape(5, 3)}, 'expected 6 rows'),
    ({'b': shape(6, 3, dtype=jnp.bfloat16)}, 'b has dtype bfloat16; expected that of a, float32'),
    ({'b': shape(2, 6, 3)}, 'batch axes'),
    ({'a': shape(0, 6)}, 'no axis of length 0'),
    ({'beta': 1.0}, 'expected c, or beta=0'),
    ({'c': shape(3, 4)}, r'c has shape \(3, 4\); expected \(4, 3\)'),
    ({'bias': shape(4)}, r'bias has shape \(4,\); expected \(3,\)'),
    ({'a_scale': shape(3)}, r'a_scale has shape \(3,\); expected \(\) or \(4,\)'),
    ({'activation': 'rel'}, r"'rel'; expected one of relu, gelu, silu \(did you mean 'relu'\?\)"),
    ({'precision': 'tf23'}, "'tf23'; expected one of float32, tf32"),
    ({'a': shape(4, 6, dtype=jnp.int8), 'b': shape(6, 3, dtype=jnp.int8), 'precision': 'tf32'}, 'tf32 is for float32'),
    ({'block_mask': shape(2, 2)}, 'block_mask is float32'),
    ({'block_mask': shape(3, 2, dtype=bool)}, r'block_mask has shape \(3, 2\); expected divisors of a, \[4, 6\]'),
    ({'implementation': 'xl'}, r"'xl'; expected one of xla.* \(did you mean 'xla'\?\)"),
])
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    matmul(**({'a': shape(4, 6), 'b': shape(6, 3)} | changes))
  assert '\n' not in str(error.value)
