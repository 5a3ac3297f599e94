"""The product in Pallas' Triton backend: DEPRECATED, kept to teach. Use triton or mosaic_gpu.

jax 0.11 deprecates this backend and will remove it. What it shows is the formula at its plainest: a program reads a
block of rows of A and a block of columns of B once, uses each element many times, and writes its block of C once.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.matmul import epilogue
from pallas_kernels.matmul.epilogue import Operands, Settings
from pallas_kernels.runtime import device
from pallas_kernels.runtime.batching import over_batch


@dataclasses.dataclass(frozen=True)
class Config:
  """The block of C that a program makes, and its step along K."""
  block_m: int = 64
  block_n: int = 64
  block_k: int = 32


def _kernel(a, b, c, *, block_k):
  def step(i, total):
    at = pl.ds(i * block_k, block_k)
    x, y = a[0, :, at], b[0, at, :]
    return total + jnp.dot(x, y, preferred_element_type=jnp.float32, precision='highest')
  total = jnp.zeros(c.shape[1:], jnp.float32)
  c[0] = jax.lax.fori_loop(0, a.shape[2] // block_k, step, total).astype(c.dtype)


def forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """The kernel's call; [L, M, N]. Sides are padded to whole blocks."""
  del block_mask
  a, b, config = operands.a, operands.b, settings.config or Config()
  (L, M, K), N = a.shape, b.shape[2]
  m, n, k = config.block_m, config.block_n, config.block_k
  a = jnp.pad(a, ((0, 0), (0, -M % m), (0, -K % k)))
  b = jnp.pad(b, ((0, 0), (0, -K % k), (0, -N % n)))
  rows, inner, columns = a.shape[1], a.shape[2], b.shape[2]
  out = pl.pallas_call(
      lambda *refs: _kernel(*refs, block_k=k), grid=(L, rows // m, columns // n),
      in_specs=[pl.BlockSpec((1, m, inner), lambda l, i, j: (l, i, 0)),
                pl.BlockSpec((1, inner, n), lambda l, i, j: (l if b.shape[0] > 1 else 0, 0, j))],
      out_specs=pl.BlockSpec((1, m, n), lambda l, i, j: (l, i, j)),
      out_shape=jax.ShapeDtypeStruct((L, rows, columns), settings.out_dtype),
      interpret=device.platform() == 'cpu', name='matmul')(a, b)
  return out[:, :M, :N]


def matmul(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """See dispatch.matmul; [L, M, N]."""
  o = operands
  if o.a.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16) or settings.precision == 'tf32':
    raise NotImplementedError('matmul implementation pallas_triton has float32, bfloat16 and float16 only; triton has '
                              'the rest')
  if not settings.is_plain or any(x is not None for x in o[2:]) or block_mask is not None:
    raise NotImplementedError('matmul implementation pallas_triton has the plain product only; triton has the rest')
  return epilogue.product(batched_forward, settings, operands, block_mask)


def batched_forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """`forward`, fit for jax.vmap."""
  return over_batch(lambda a, b: forward(Operands(a, b), block_mask, settings))(operands.a, operands.b)
