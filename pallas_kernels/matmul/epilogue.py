"""What follows the product: scales, alpha, beta * C, bias, activation, cast. And the gradient that backends share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ACTIVATIONS = {'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'silu': jax.nn.silu}  # gelu in its tanh form
FLOAT8 = (jnp.float8_e4m3fn, jnp.float8_e5m2)


class Operands(NamedTuple):
  """The arrays of a product, batch axes merged into one.

  Attributes:
    a: [L, M, K]; b: [L or 1, K, N].
    c: [L, M, N] or None; bias: [L or 1, N] or None.
    a_scale: float32 [L or 1, M or 1] or None; b_scale: float32 [L or 1, N or 1] or None.
  """
  a: jax.Array
  b: jax.Array
  c: jax.Array | None = None
  bias: jax.Array | None = None
  a_scale: jax.Array | None = None
  b_scale: jax.Array | None = None


class Settings(NamedTuple):
  """What is known at trace time; hashable. `precision` is of float32 operands: 'float32' or 'tf32'."""
  alpha: float = 1
  beta: float = 0
  activation: str | None = None
  out_dtype: Any = None
  precision: str = 'float32'
  config: Any = None

  @property
  def is_plain(self) -> bool:
    return self.alpha == 1 and self.beta == 0 and self.activation is None


def is_whole(operands: Operands, settings: Settings) -> bool:
  """Whether everything that enters an epilogue after a product of int8 is an integer, so that it stays int32."""
  return settings.activation in (None, 'relu') and all(isinstance(x, int) for x in settings[:2]) and all(
      jnp.issubdtype(x.dtype, jnp.integer) for x in operands[2:] if x is not None)


def finish(product: jax.Array, operands: Operands, settings: Settings) -> jax.Array:
  """activation(alpha * scales * product + beta * c + bias) in out_dtype, [L, M, N].

  In float32, or in int32 where everything that enters is an integer.
  """
  s, o = settings, operands
  dtype = jnp.int32 if product.dtype == jnp.int32 and is_whole(o, s) else jnp.float32
  x = product.astype(dtype)
  if o.a_scale is not None:
    x = x * o.a_scale[:, :, None]
  if o.b_scale is not None:
    x = x * o.b_scale[:, None, :]
  if s.alpha != 1:
    x = x * jnp.asarray(s.alpha, dtype)
  if o.c is not None and s.beta != 0:
    x = x + jnp.asarray(s.beta, dtype) * o.c.astype(dtype)
  if o.bias is not None:
    x = x + o.bias.astype(dtype)[:, None, :]
  if s.activation is not None:
    x = ACTIVATIONS[s.activation](x)
  return x.astype(s.out_dtype)


def masked(a: jax.Array, block_mask: jax.Array | None) -> jax.Array:
  """`a` [L, M, K] with 0 in the blocks that the mask [M / m, K / k] leaves out."""
  if block_mask is None:
    return a
  L, M, K = a.shape
  rows, columns = block_mask.shape
  blocks = a.reshape(L, rows, M // rows, columns, K // columns)
  return jnp.where(jnp.asarray(block_mask)[None, :, None, :, None], blocks, 0).reshape(a.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(forward: Callable, settings: Settings, operands: Operands, block_mask: jax.Array | None) -> jax.Array:
  """`forward(operands, block_mask, settings)`, [L, M, N], with a gradient of three such products."""
  return forward(operands, block_mask, settings)


def _product_forward(forward, settings, operands, block_mask):
  return forward(operands, block_mask, settings), (operands, block_mask)


def _product_backward(forward, settings, residuals, g):
  operands, block_mask = residuals
  a, b = operands.a, operands.b
  (L, M, _), N = a.shape, b.shape[2]
  plain = Settings(out_dtype=jnp.float32, precision=settings.precision, config=settings.config)
  # A linear epilogue's gradient does not look at the product; anything else computes it again.
  if settings.activation is None and operands.a_scale is None and operands.b_scale is None:
    raw = jnp.zeros((L, M, N), jnp.float32)
  else:
    raw = forward(Operands(a, b), block_mask, plain)
  def epilogue(raw, *rest):
    return finish(raw, Operands(a, b, *rest), settings)
  d_raw, *d_rest = jax.vjp(epilogue, raw, *operands[2:])[1](g)
  # 8-bit operands have no 8-bit gradient worth a product: their values fit bfloat16 exactly.
  dtype = jnp.bfloat16 if a.dtype.itemsize == 1 else a.dtype
  d_raw, a_wide, b_wide = d_raw.astype(dtype), a.astype(dtype), b.astype(dtype)
  d_a = forward(Operands(d_raw, b_wide.swapaxes(1, 2)), None, plain)
  transposed = None if block_mask is None else jnp.asarray(block_mask).T
  if b.shape[0] < L:  # one b for every batch: the batch is part of the sum
    a_wide, d_raw = masked(a_wide, block_mask).reshape(1, L * M, -1), d_raw.reshape(1, L * M, N)
    transposed = None
  d_b = forward(Operands(a_wide.swapaxes(1, 2), d_raw), transposed, plain)
  return Operands(masked(d_a, block_mask).astype(a.dtype), d_b.astype(b.dtype), *d_rest), None


product.defvjp(_product_forward, _product_backward)
