"""The product in plain XLA operations: the definition that every other backend is held to."""

import jax
import jax.numpy as jnp

from pallas_kernels.matmul.epilogue import Operands, Settings, finish, masked


def raw_product(a: jax.Array, b: jax.Array, precision: str) -> jax.Array:
  """a @ b, [L, M, K] by [L or 1, K, N], accumulated and returned in float32 (int8: int32)."""
  if a.dtype == jnp.int8:
    return jnp.matmul(a, b, preferred_element_type=jnp.int32)
  if a.dtype == jnp.float32 and precision == 'tf32':
    # tf32 keeps 10 of 23 bits of each factor; said in words, so that it holds on every device.
    a, b = (jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10) for x in (a, b))
  if a.dtype.itemsize == 1:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.matmul(a, b, precision='highest', preferred_element_type=jnp.float32)


def matmul(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """See dispatch.matmul; [L, M, N]."""
  if settings.config is not None:
    raise NotImplementedError(f'matmul implementation xla has no config; got {settings.config}')
  raw = raw_product(masked(operands.a, block_mask), operands.b, settings.precision)
  return finish(raw, operands, settings)
