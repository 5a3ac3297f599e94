"""Runs in a process of its own, where Triton is interpreted: each case's largest error, a line of JSON a case.

`python -m tests.kernels.triton_process attention|matmul|gradient|rule|loads NAME...`; a session of tests starts one for
all cases, as the import of Triton and JAX takes seconds.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import attention, matmul
from pallas_kernels.attention.triton import Config as AttentionConfig
from pallas_kernels.matmul.triton import Config as MatmulConfig
from tests.kernels import cases, oracle

Q, T = 50, 70
TILES = AttentionConfig(32, 32, 4, 2, 32, 32, 32, 32, 4, 1)


def attention_errors(name):
  """Largest errors of output, log-sum-exp and gradients against the XLA reference, in float32."""
  arguments = dict((cases.attention_masks(Q, T) | cases.attention_extras(Q, T))[name])
  inputs = dict(zip(('query', 'key', 'value'), cases.attention_arrays(Q, T)))
  inputs |= {k: jnp.asarray(v) for k, v in arguments.items() if k in ('bias', 'alpha') and np.ndim(v)}
  arguments = {k: v for k, v in arguments.items() if k not in inputs}
  residual = 'alpha' not in arguments and 'alpha' not in inputs
  def run(implementation, config):
    def loss(x):
      out = attention.dot_product_attention(
          **x, **arguments, implementation=implementation, config=config, return_residual=residual)
      out, lse = out if residual else (out, jnp.zeros(1))
      return jnp.sin(out).sum() + jnp.where(jnp.isfinite(lse), lse, 0).sum(), {'out': out, 'residual': lse}
    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    return outputs | {f'd_{k}': v for k, v in gradients.items()}
  truth, ours = run('xla', None), run('triton', TILES)
  def error(a, b):
    a, b = np.asarray(a), np.asarray(b)
    same = a == b  # infinities too
    return float(np.max(np.where(same, 0, np.abs(np.where(same, 0, a) - np.where(same, 0, b)))))
  return {k: error(truth[k], ours[k]) for k in truth}


def attention_rule(dtype):
  """Raises where a bfloat16 or float16 result breaks flash-attention's rule."""
  low = cases.attention_arrays(Q, T, dtype=dtype)
  def both(implementation, arrays, config=None):
    def loss(*x):
      out = attention.dot_product_attention(*x, is_causal=True, implementation=implementation, config=config)
      return jnp.sin(out.astype(jnp.float32)).sum(), out
    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return out, *gradients
  exact = both('xla', [x.astype(jnp.float32) for x in low])
  for truth, naive, ours in zip(exact, both('xla', low), both('triton', low, TILES)):
    cases.check_rule(ours, naive, truth, dtype)
  return {}


def sequence_errors(form, parts):
  """As of tests.kernels.test_sequence.errors."""
  from tests.kernels import test_sequence
  return test_sequence.errors('triton', form, parts, one_device=True)


def matmul_error(dtype, extra):
  """Largest error against float64, relative to the largest entry, in float32 (int8 alone: int32)."""
  M, N, K = (112, 50, 160) if extra == 'sparse' else (70, 50, 90)
  a, b, arguments = cases.matrices(dtype, M, N, K)
  arguments |= {'block_mask': np.random.default_rng(0).random((7, 5)) < 0.4} if extra == 'sparse' else (
      cases.matmul_extras()[extra])
  if dtype != 'int8' or extra != 'plain':
    arguments['out_dtype'] = jnp.float32
  config = MatmulConfig(16, 32, 32) if extra == 'sparse' else MatmulConfig(32, 32, 32)
  out = matmul.matmul(a, b, implementation='triton', config=config, **arguments)
  if dtype == 'tf32':
    a, b = (jax.lax.reduce_precision(x, 8, 10) for x in (a, b))
  truth = oracle.matmul(a, b, **{k: v for k, v in arguments.items() if k not in ('precision', 'out_dtype')})
  return {'out': float(np.abs(np.asarray(out, np.float64) - truth).max() / np.abs(truth).max())}


def matmul_gradient(extra):
  """Relative error of the slope along a random direction; raises beyond the tolerance of the reference's own test."""
  from tests.kernels import test_matmul
  test_matmul.gradient_is_the_slope(cases.matmul_extras()[extra], 'triton', config=MatmulConfig(32, 32, 32))
  return {}


def vmapped():
  """Largest difference between vmap and a loop, values and gradients; every kind of argument mapped and not."""
  arrays = [x.reshape(2, 2, *x.shape[1:]) for x in cases.attention_arrays(20, 20, B=4)]
  bias = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 1, 20, 20)), jnp.float32)
  out = {}
  for name, axes in (('all', (0, 0, 0, 0)), ('shared bias', (0, 0, 0, None)), ('shared keys', (0, None, None, 0))):
    given = [x if a == 0 else x[0] for x, a in zip((*arrays, bias), axes)]
    def f(*x):
      def loss(*x):
        return jnp.sin(attention.dot_product_attention(*x, is_causal=True, implementation='triton')).sum()
      return jax.grad(loss, (0, 1, 2, 3))(*x)
    mapped = jax.vmap(f, axes)(*given)
    looped = [f(*(x[i] if a == 0 else x for x, a in zip(given, axes))) for i in range(2)]
    out[name] = max(float(np.abs(m[i] - l).max()) for i in range(2) for m, l in zip(mapped, looped[i]))
  a, b, _ = cases.matrices('float32', 20, 20, 20, batch=(3,))
  for name, axes, given in (('weights', (0, None), (a, b[0])), ('rows', (None, 0), (a[0], b))):
    f = lambda a, b: matmul.matmul(a, b, implementation='triton')
    mapped = jax.vmap(f, axes)(*given)
    out[name] = float(np.abs(mapped - jax.vmap(lambda a, b: a @ b, axes)(*given)).max())
  return out


def random_attention(count, seed=0):
  """`count` random shapes, masks and heads, forward, against float64: {'cases': how many, 'out': largest error}."""
  rng, worst = np.random.default_rng(seed), 0.0
  for n in range(count):
    Q, T, G, M, K = (int(rng.integers(1, limit)) for limit in (41, 41, 3, 3, 20))
    arguments = {}
    if rng.random() < 0.5:
      arguments['is_causal'] = True
    if rng.random() < 0.3:
      arguments['local_window_size'] = tuple(int(x) for x in rng.integers(0, 12, 2))
    if rng.random() < 0.3:
      arguments['segment_ids'] = (rng.integers(0, 3, (2, Q)), rng.integers(0, 3, (2, T)))
    if rng.random() < 0.3:
      arguments['stamps'] = (rng.integers(-2, 20, (1, Q)), np.sort(rng.integers(0, 20, (2, T))))
    if rng.random() < 0.3:
      arguments['key_value_seq_lengths'] = rng.integers(0, T + 1, 2)
    if rng.random() < 0.3:
      arguments['mask'] = rng.random((2, 1, Q, T)) < 0.5
    arrays = cases.attention_arrays(Q, T, G * M, G, K, seed=n)
    tile = [int(x) for x in rng.choice([16, 32], 2)]
    out = attention.dot_product_attention(
        *arrays, **arguments, implementation='triton', config=AttentionConfig(*tile, 4, 1))
    worst = max(worst, float(np.abs(out - oracle.attention(*arrays, **arguments)[0]).max()))
  jax.clear_caches()  # every shape was a program
  return {'cases': count, 'out': worst}


def loads(m, n, k, block_m, block_n):
  """Elements that the matmul kernel reads and writes, counted in the interpreter."""
  from triton.runtime import interpreter
  from pallas_kernels.matmul import triton as triton_matmul
  from pallas_kernels.matmul.epilogue import Operands, Settings
  counts = {'reads': 0, 'writes': 0}
  builder = interpreter.InterpreterBuilder
  load, store = builder.create_masked_load, builder.create_masked_store
  def counted_load(self, pointers, mask, *rest):
    counts['reads'] += int(np.asarray(mask.data).sum())
    return load(self, pointers, mask, *rest)
  def counted_store(self, pointers, value, mask, *rest):
    counts['writes'] += int(np.asarray(mask.data).sum())
    return store(self, pointers, value, mask, *rest)
  builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
  try:
    a, b = np.arange(m * k, dtype=np.float32).reshape(1, m, k), np.ones((1, k, n), np.float32)
    out = triton_matmul.forward(Operands(jnp.asarray(a), jnp.asarray(b)), None, Settings(
        out_dtype=jnp.float32, config=MatmulConfig(block_m, block_n, 4)))
    assert (np.asarray(out) == a @ b).all()
  finally:
    builder.create_masked_load, builder.create_masked_store = load, store
  return counts


def unwritten_tile():
  """A grid that is one program short: what nobody wrote has to be seen."""
  from pallas_kernels.runtime import triton_call
  call = triton_call.call
  def short(kernel, *arrays, grid, **rest):
    return call(kernel, *arrays, grid=(grid[0] - 1, *grid[1:]), **rest)
  triton_call.call = short
  try:
    a, b, _ = cases.matrices('float32')
    out = matmul.matmul(a, b, implementation='triton', config=MatmulConfig(32, 32, 32))
  finally:
    triton_call.call = call
  return {'nan': int(np.isnan(out).sum())}


def several_devices():
  """What a mesh of two simulated devices is told, on which an interpreted kernel would wait for ever."""
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
  try:
    attention.sharded_attention(*cases.attention_arrays(20, 20), mesh=mesh, implementation='triton')
  except NotImplementedError as error:
    return {'message': str(error)}


def decoder_losses():
  from tests.kernels import test_decoder_backends
  return {'losses': test_decoder_backends.losses('triton')}


def main():
  functions = {f.__name__: f for f in (attention_errors, attention_rule, matmul_error, matmul_gradient, vmapped,
                                       random_attention, loads, unwritten_tile, decoder_losses,
                                       several_devices, sequence_errors)}
  for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
      result = functions[name](*arguments)
    except Exception as error:  # told to the test that asked
      result = {'error': f'{type(error).__name__}: {error}'[-2000:]}
    print(json.dumps([name, arguments, result]), flush=True)


if __name__ == '__main__':
  main()
