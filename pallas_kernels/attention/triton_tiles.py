"""What the Triton kernels of attention share: where a tile lies, who may read whom in it, its logits, the launch."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.mask import Mask
from pallas_kernels.runtime import triton_call  # before triton: it decides how Triton runs
from pallas_kernels.runtime.triton_call import tl, triton

# Of float32 operands: three tf32 products, whose sum is good to float32's rounding and runs on tensor cores. The
# interpreter multiplies in float32. Operands of 16 bits are not touched by it.
PRECISION = 'tf32x3'


@dataclasses.dataclass(frozen=True)
class Constants:
  """What a kernel is compiled for, its parameter C.

  Attributes:
    Q, T, H, G, K: lengths, heads and width of a head, which a tile pads to WIDTH.
    SOFT_CAP: 0: none. ENTMAX: weights are those of entmax, not of softmax.
    *_ROWS: the batch axis of a condition or bias: 0 (there is none), 1 (shared by all rows) or the batch.
    *_HEADS, BIAS_QUERIES: further axes that may be 1.
    BLOCK_Q, BLOCK_K: the tile.
  """
  Q: int
  T: int
  H: int
  G: int
  K: int
  WIDTH: int
  SCALE: float
  SOFT_CAP: float
  ENTMAX: bool
  RANGE_ROWS: int
  TAU_Q_ROWS: int
  TAU_K_ROWS: int
  SEGMENT_Q_ROWS: int
  SEGMENT_K_ROWS: int
  DENSE_ROWS: int
  DENSE_HEADS: int
  BIAS_ROWS: int
  BIAS_HEADS: int
  BIAS_QUERIES: int
  ORDER_ROWS: int
  ORDER_HEADS: int
  BLOCK_Q: int
  BLOCK_K: int
  PRECISION: str = PRECISION


@triton.jit
def entry(b, h, n, blocks, C: tl.constexpr):
  """Where a schedule says what block n of head h of row b visits."""
  return ((b if C.ORDER_ROWS > 1 else 0) * C.ORDER_HEADS + (h if C.ORDER_HEADS > 1 else 0)) * blocks + n


@triton.jit
def queries_of_program(C: tl.constexpr):
  """(row, head, entry, queries) of a program that has a block of queries; under a causal mask the longest first."""
  blocks: tl.constexpr = (C.Q + C.BLOCK_Q - 1) // C.BLOCK_Q
  n = blocks - 1 - tl.program_id(0)
  h, b = tl.program_id(1), tl.program_id(2)
  return b, h, entry(b, h, n, blocks, C), n * C.BLOCK_Q + tl.arange(0, C.BLOCK_Q)


@triton.jit
def of_head(x, b, h, length, heads, C: tl.constexpr):
  """Pointer to head h of row b in [B, length, heads, K]."""
  return x + b.to(tl.int64) * length * (heads * C.K) + h * C.K


@triton.jit
def vectors(i, length, heads, C: tl.constexpr):
  """(offsets from `of_head` of the vectors at i, what of them is there), [I, WIDTH]."""
  w = tl.arange(0, C.WIDTH)
  # 64 bits: a row of [length, heads, K] may hold more than 2^31 numbers.
  return i[:, None].to(tl.int64) * (heads * C.K) + w[None, :], (i[:, None] < length) & (w[None, :] < C.K)


@triton.jit
def allowed(i, j, b, h, masks, C: tl.constexpr):
  """Whether query i may read key j, for index tensors that broadcast against each other."""
  start, end, tau_q, tau_k, segment_q, segment_k, dense, bias = masks
  inside_q, inside_k = i < C.Q, j < C.T
  at = b * C.Q if C.RANGE_ROWS > 1 else 0
  seen = (j >= tl.load(start + at + i, mask=inside_q, other=0)) & (j < tl.load(end + at + i, mask=inside_q, other=0))
  if C.TAU_Q_ROWS > 0:
    q = tl.load(tau_q + (b * C.Q if C.TAU_Q_ROWS > 1 else 0) + i, mask=inside_q, other=0)
    k = tl.load(tau_k + (b * C.T if C.TAU_K_ROWS > 1 else 0) + j, mask=inside_k, other=0)
    seen = seen & (k <= q)
  if C.SEGMENT_Q_ROWS > 0:
    q = tl.load(segment_q + (b * C.Q if C.SEGMENT_Q_ROWS > 1 else 0) + i, mask=inside_q, other=0)
    k = tl.load(segment_k + (b * C.T if C.SEGMENT_K_ROWS > 1 else 0) + j, mask=inside_k, other=0)
    seen = seen & (k == q)
  if C.DENSE_ROWS > 0:
    at = (b * (C.DENSE_HEADS if C.DENSE_ROWS > 1 else 0) + h * (1 if C.DENSE_HEADS > 1 else 0)).to(tl.int64)
    place = dense + at * C.Q * C.T + i.to(tl.int64) * C.T + j
    seen = seen & (tl.load(place, mask=inside_q & inside_k, other=0) != 0)
  return seen


@triton.jit
def logits(x, i, j, b, h, masks, C: tl.constexpr):
  """soft_cap(scale * x + bias), x = query . key, in either orientation of the tile."""
  x = x * C.SCALE
  if C.BIAS_ROWS > 0:
    bias = masks[7]
    at = (b * (C.BIAS_HEADS if C.BIAS_ROWS > 1 else 0) + h * (1 if C.BIAS_HEADS > 1 else 0)).to(tl.int64)
    row = i.to(tl.int64) * C.T if C.BIAS_QUERIES > 1 else i * 0
    place = bias + at * C.BIAS_QUERIES * C.T + row + j
    x = x + tl.load(place, mask=(i < C.Q) & (j < C.T), other=0.0).to(tl.float32)
  if C.SOFT_CAP > 0:
    x = C.SOFT_CAP * (2 * tl.sigmoid(2 * x / C.SOFT_CAP) - 1)  # tanh
  return x


def launch(
    kernel: Any, first: tuple, arrays: Any, mask: Mask, settings: Any, blocks: tuple[int, int], out: list, *,
    warps: int, stages: int, by_key: bool = False, **constants: Any,
) -> list[jax.Array]:
  """Runs kernel(*first, order, full, visible, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, *out, C).

  A program has a block of queries of a query head (by_key: of keys of a key head); `blocks` is (BLOCK_Q, BLOCK_K).
  """
  (B, Q, H, K), (T, G), (block_q, block_k) = arrays.query.shape, arrays.key.shape[1:3], blocks
  order, full, visible = mask.schedule(block_q, block_k, by_key=by_key)
  nothing = np.zeros(1, np.int32)
  def pair(x):
    return (None, None) if x is None else x
  def rows(x, axis=0):
    return 0 if x is None else x.shape[axis]
  dense, bias = mask.dense_BxHxQxT, arrays.bias
  dense = None if dense is None else dense.astype(np.int8)
  start, end = mask.intervals()
  (tau_q, tau_k), (segment_q, segment_k) = pair(mask.stamps), pair(mask.segments)
  masks = [start, end, tau_q, tau_k, segment_q, segment_k, dense, bias]
  C = Constants(
      Q=Q, T=T, H=H, G=G, K=K, WIDTH=max(16, 1 << (K - 1).bit_length()), SCALE=settings.scale,
      SOFT_CAP=settings.soft_cap or 0.0, ENTMAX=settings.entmax, RANGE_ROWS=rows(start), TAU_Q_ROWS=rows(tau_q),
      TAU_K_ROWS=rows(tau_k), SEGMENT_Q_ROWS=rows(segment_q), SEGMENT_K_ROWS=rows(segment_k), DENSE_ROWS=rows(dense),
      DENSE_HEADS=rows(dense, 1), BIAS_ROWS=rows(bias), BIAS_HEADS=rows(bias, 1), BIAS_QUERIES=rows(bias, 2),
      ORDER_ROWS=order.shape[0], ORDER_HEADS=order.shape[1], BLOCK_Q=block_q, BLOCK_K=block_k)
  if not triton_call.INTERPRETED:  # Triton 3.6 does not make constants of the fields of one itself
    C = Constants(*(tl.constexpr(getattr(C, f.name)) for f in dataclasses.fields(C)))
  return triton_call.call(
      kernel, *first, order, full, visible, *(nothing if x is None else x for x in masks),
      grid=(math.ceil(T / block_k), G, B) if by_key else (math.ceil(Q / block_q), H, B), out=out, warps=warps,
      stages=stages, C=C, **constants)


def shape_like(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def float32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)
