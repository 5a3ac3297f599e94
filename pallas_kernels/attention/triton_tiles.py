"""What the Triton kernels of attention share: which pairs of a tile may read each other, and bias and soft cap."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.mask import Mask
from pallas_kernels.runtime import triton_call  # noqa: F401  (before triton: it decides how Triton runs)
from pallas_kernels.runtime.triton_call import tl, triton

# Of float32 operands: three tf32 products, whose sum is good to float32's rounding and runs on tensor cores. The
# interpreter multiplies in float32. Operands of 16 bits are not touched by it.
PRECISION = 'tf32x3'


@triton.jit
def allowed(
    i, j, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, Q: tl.constexpr, T: tl.constexpr,
    H: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr,
    SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr):
  """Whether query i may read key j, for index tensors that broadcast against each other. X_ROWS: 0 (there is no such
  condition), 1 (shared by all rows) or the batch."""
  inside_q, inside_k = i < Q, j < T
  at = b * Q if RANGE_ROWS > 1 else 0
  seen = (j >= tl.load(start + at + i, mask=inside_q, other=0)) & (j < tl.load(end + at + i, mask=inside_q, other=0))
  if TAU_Q_ROWS > 0:
    q = tl.load(tau_q + (b * Q if TAU_Q_ROWS > 1 else 0) + i, mask=inside_q, other=0)
    k = tl.load(tau_k + (b * T if TAU_K_ROWS > 1 else 0) + j, mask=inside_k, other=0)
    seen = seen & (k <= q)
  if SEGMENT_Q_ROWS > 0:
    q = tl.load(segment_q + (b * Q if SEGMENT_Q_ROWS > 1 else 0) + i, mask=inside_q, other=0)
    k = tl.load(segment_k + (b * T if SEGMENT_K_ROWS > 1 else 0) + j, mask=inside_k, other=0)
    seen = seen & (k == q)
  if DENSE_ROWS > 0:
    at = (b * (DENSE_HEADS if DENSE_ROWS > 1 else 0) + h * (1 if DENSE_HEADS > 1 else 0)).to(tl.int64) * Q * T
    seen = seen & (tl.load(dense + at + i.to(tl.int64) * T + j, mask=inside_q & inside_k, other=0) != 0)
  return seen


@triton.jit
def logits(
    x, i, j, b, h, bias, Q: tl.constexpr, T: tl.constexpr, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr):
  """soft_cap(scale * x + bias), x = query @ key^T. SOFT_CAP 0: none."""
  x = x * SCALE
  if BIAS_ROWS > 0:
    at = (b * (BIAS_HEADS if BIAS_ROWS > 1 else 0) + h * (1 if BIAS_HEADS > 1 else 0)).to(tl.int64) * BIAS_QUERIES * T
    row = i.to(tl.int64) * T if BIAS_QUERIES > 1 else i * 0
    x = x + tl.load(bias + at + row + j, mask=(i < Q) & (j < T), other=0.0).to(tl.float32)
  if SOFT_CAP > 0:
    x = SOFT_CAP * (2 * tl.sigmoid(2 * x / SOFT_CAP) - 1)  # tanh
  return x


def operands(mask: Mask, bias: jax.Array | None) -> tuple[list, dict]:
  """The arrays that `allowed` and `logits` read, in their order, and the constants that describe them."""
  nothing = np.zeros(1, np.int32)
  def rows(x):
    return 0 if x is None else x.shape[0]
  def pair(x):
    return (None, None) if x is None else x
  start_BxQ, end_BxQ = mask.intervals()
  dense = mask.dense_BxHxQxT
  dense = None if dense is None else dense.astype(np.int8)
  (tau_q, tau_k), (segment_q, segment_k) = pair(mask.stamps), pair(mask.segments)
  arrays = [start_BxQ, end_BxQ, tau_q, tau_k, segment_q, segment_k, dense, bias]
  constants = dict(
      Q=mask.queries, T=mask.keys, RANGE_ROWS=rows(start_BxQ), TAU_Q_ROWS=rows(tau_q), TAU_K_ROWS=rows(tau_k),
      SEGMENT_Q_ROWS=rows(segment_q), SEGMENT_K_ROWS=rows(segment_k), DENSE_ROWS=rows(dense),
      DENSE_HEADS=0 if dense is None else dense.shape[1], BIAS_ROWS=rows(bias),
      BIAS_HEADS=0 if bias is None else bias.shape[1], BIAS_QUERIES=0 if bias is None else bias.shape[2])
  return [nothing if x is None else x for x in arrays], constants


def schedule_operands(mask: Mask, block_q: int, block_k: int, *, by_key: bool = False) -> tuple[list, dict]:
  """The arrays of a Schedule, and their batch and head counts as constants."""
  order, full, visible = mask.schedule(block_q, block_k, by_key=by_key)
  return [order, full, visible], dict(ORDER_ROWS=order.shape[0], ORDER_HEADS=order.shape[1])


def shape_like(x: jax.Array, *shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape or x.shape, x.dtype)


def float32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)
