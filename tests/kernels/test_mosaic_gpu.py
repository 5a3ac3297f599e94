"""The Hopper kernels in the Mosaic GPU interpreter, which looks for races; needs jax 0.11 (make test-kernels312)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import dot_product_attention
from pallas_kernels.matmul import matmul
from tests.kernels import cases

interpreted = pytest.mark.skipif(tuple(map(int, jax.__version__.split('.')[:2])) < (0, 11),
                                 reason=f'jax {jax.__version__} cannot interpret wgmma (make test-kernels312)')
Q, T = 150, 170  # neither is a multiple of a block
MASKS = {k: v for k, v in cases.attention_masks(Q, T).items() if k != 'dense'}
FAST = 'full', 'causal', 'stamps'


def run(f, *arguments):
  from pallas_kernels.runtime import mosaic_gpu
  with mosaic_gpu.interpreter():
    return jax.block_until_ready(f(*arguments))


def attention(implementation, arrays, arguments):
  from pallas_kernels.attention.mosaic_gpu import Config
  config = Config(64, 64, 2, 64, 64, 64, 64, 2) if implementation == 'mosaic_gpu' else None
  def loss(*arrays):
    out, residual = dot_product_attention(*arrays, **arguments, implementation=implementation, config=config,
                                          return_residual=True)
    return jnp.sin(out.astype(jnp.float32)).sum(), (out, residual)
  gradients, outputs = jax.grad(loss, (0, 1, 2), has_aux=True)(*arrays)
  return *outputs, *gradients


@interpreted
@pytest.mark.parametrize('name', [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MASKS])
def test_attention_and_its_gradients_err_at_most_twice_as_much_as_naive(name):
  low = cases.attention_arrays(Q, T, 2, 1, 64, dtype='bfloat16')
  ours = run(attention, 'mosaic_gpu', low, MASKS[name])
  truth = attention('xla', [x.astype(jnp.float32) for x in low], MASKS[name])
  naive = attention('xla', low, MASKS[name])
  np.testing.assert_allclose(ours[1], truth[1], atol=1e-5)
  for ours, naive, truth in zip(*(x[:1] + x[2:] for x in (ours, naive, truth))):
    cases.check_rule(ours, naive, truth, 'bfloat16')


@interpreted
def test_ungrouped_float16():
  low = cases.attention_arrays(64, 64, 1, 1, 64, dtype='float16', B=1)
  results = [attention('xla', [x.astype(jnp.float32) for x in low], {}), attention('xla', low, {}),
             run(attention, 'mosaic_gpu', low, {})]
  for truth, naive, ours in zip(*(x[:1] + x[2:] for x in results)):
    cases.check_rule(ours, naive, truth, 'float16')


@interpreted
@pytest.mark.parametrize('dtype, extra', [
    ('bfloat16', 'plain'), ('float16', 'bias relu'), ('tf32', 'bias gelu'), ('float8_e4m3fn', 'scales'),
    ('float8_e5m2', 'silu'), ('bfloat16', 'everything'), ('float16', 'alpha beta')])
def test_matmul_equals_the_reference(dtype, extra):
  from pallas_kernels.matmul.mosaic_gpu import Config
  a, b, more = cases.matrices(dtype, 130, 70, 70)
  arguments = cases.matmul_extras(130, 70, 70)[extra] | more | {'out_dtype': jnp.float32}
  block_k = 64 // a.dtype.itemsize
  ours = run(lambda a, b: matmul(a, b, implementation='mosaic_gpu', config=Config(64, 64, block_k, 2, 1), **arguments),
             a, b)
  # The interpreter multiplies tf32 in float32.
  atol = 2e-3 if dtype == 'tf32' else 2e-6
  np.testing.assert_allclose(ours, matmul(a, b, **arguments), atol=atol * float(np.abs(ours).max()))


@interpreted
def test_batches_and_gradient_of_matmul():
  from pallas_kernels.matmul.mosaic_gpu import Config
  a, b, _ = cases.matrices('bfloat16', 64, 64, 64, batch=(2,))
  rng = np.random.default_rng(1)
  c, bias, a_scale = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 64, 64), (64,), (2, 64)))
  def gradients(implementation, config):
    def loss(a, b, c, bias):
      out = matmul(a, b, c, beta=3, bias=bias, a_scale=a_scale, out_dtype=jnp.float32, implementation=implementation,
                   config=config)
      return jnp.sin(out / 8).sum()
    return jax.grad(loss, (0, 1, 2, 3))(a, b, c, bias)
  ours = run(gradients, 'mosaic_gpu', Config(64, 64, 64, 2, 1))
  truth = jax.tree.map(lambda x: x.astype(jnp.float32), gradients('xla', None))
  for x, y in zip(ours, truth):
    np.testing.assert_allclose(x.astype(jnp.float32), y, atol=0.05)


@interpreted
def test_a_store_that_nobody_waits_for_is_seen(monkeypatch):
  """The staging buffer is written again while its copy to memory may still read it."""
  from jax.experimental.pallas import mosaic_gpu as plgpu
  monkeypatch.setattr(plgpu, 'wait_smem_to_gmem', lambda *_, **__: None)
  with pytest.raises(Exception, match='RACE DETECTED'):
    test_matmul_equals_the_reference('bfloat16', 'plain')


@interpreted
def test_a_barrier_that_nobody_waits_for_is_seen(monkeypatch):
  """The queries are read before they have arrived."""
  from jax.experimental.pallas import mosaic_gpu as plgpu
  from pallas_kernels.attention import mosaic_gpu as kernels
  class WithoutWait:
    def __getattr__(self, name):
      return (lambda *_: None) if name == 'barrier_wait' else getattr(plgpu, name)
  monkeypatch.setattr(kernels, 'plgpu', WithoutWait())
  with pytest.raises(Exception, match='RACE DETECTED'):
    low = cases.attention_arrays(64, 64, 1, 1, 64, dtype='bfloat16', B=1)
    run(lambda *x: dot_product_attention(*x, implementation='mosaic_gpu'), *low)


def test_what_it_cannot_honour_is_said():
  x = jnp.zeros((1, 8, 1, 64), jnp.bfloat16)
  for arguments, message in (({'alpha': 1.5}, 'no alpha'), ({'bias': jnp.zeros((1, 1, 8, 8))}, 'no bias'),
                             ({'logits_soft_cap': 3.0}, 'no soft cap'), ({}, 'runs on a CPU only inside')):
    with pytest.raises(NotImplementedError, match=message):
      dot_product_attention(x, x, x, implementation='mosaic_gpu', **arguments)
  with pytest.raises(NotImplementedError, match='mosaic_gpu has no int8'):
    matmul(jnp.zeros((8, 8), jnp.int8), jnp.zeros((8, 8), jnp.int8), implementation='mosaic_gpu')
  with pytest.raises(NotImplementedError, match="no float32 .*precision='tf32' does"):
    matmul(jnp.zeros((8, 8)), jnp.zeros((8, 8)), implementation='mosaic_gpu')
