"""Attention forward in Triton: softmax with a running maximum over blocks of keys (Dao 2023, arXiv:2307.08691)."""

import math

from pallas_kernels.attention import triton_tiles as tiles
from pallas_kernels.attention.triton_tiles import allowed, logits
from pallas_kernels.runtime import triton_call
from pallas_kernels.runtime.triton_call import tl, triton


@triton.jit
def _visit(
    j0, masked: tl.constexpr, q, k, v, out, maximum, total, i, b, h, start, end, tau_q, tau_k, segment_q, segment_k,
    dense, bias, Q: tl.constexpr, T: tl.constexpr, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr,
    TAU_K_ROWS: tl.constexpr, SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr,
    DENSE_HEADS: tl.constexpr, BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr,
    BLOCK_K: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
  """One block of keys; returns the new (out, maximum, total). Logits are in units of log 2, so that exp is exp2."""
  j = j0 + tl.arange(0, BLOCK_K)
  w = tl.arange(0, WIDTH)
  at = j[:, None] * (G * K) + w[None, :]
  if masked or WIDTH != K:
    inside = (j[:, None] < T) & (w[None, :] < K)
    keys = tl.load(k + at, mask=inside, other=0.0)
    values = tl.load(v + at, mask=inside, other=0.0)
  else:
    keys = tl.load(k + at)
    values = tl.load(v + at)
  x = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
  i2, j2 = i[:, None], j[None, :]
  x = logits(x, i2, j2, b, h, bias, Q, T, SCALE, SOFT_CAP, BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES) * 1.4426950408889634
  if masked:
    seen = allowed(i2, j2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, Q, T, H, RANGE_ROWS,
                   TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS, DENSE_HEADS)
    x = tl.where(seen, x, -float('inf'))
  new = tl.maximum(maximum, tl.max(x, 1))
  finite = tl.where(new == -float('inf'), 0.0, new) if masked else new
  p = tl.exp2(x - finite[:, None])
  shrink = tl.exp2(maximum - finite)
  total = total * shrink + tl.sum(p, 1)
  out = tl.dot(p.to(values.dtype), values, out * shrink[:, None], input_precision=PRECISION)
  return out, new, total


@triton.jit
def forward_kernel(
    query, key, value, order, full, visible, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, out, residual,
    Q: tl.constexpr, T: tl.constexpr, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr,
    SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr, ORDER_ROWS: tl.constexpr,
    ORDER_HEADS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr):
  """A block of queries of one head: out [B, Q, H, K] and the log-sum-exp [B, H, Q]."""
  blocks: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
  steps: tl.constexpr = (T + BLOCK_K - 1) // BLOCK_K
  n = blocks - 1 - tl.program_id(0)  # under a causal mask the longest first
  h, b = tl.program_id(1), tl.program_id(2)
  i = n * BLOCK_Q + tl.arange(0, BLOCK_Q)
  w = tl.arange(0, WIDTH)
  rows = b.to(tl.int64) * Q * (H * K) + h * K
  inside = (i[:, None] < Q) & (w[None, :] < K)
  q = tl.load(query + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
  k = key + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  v = value + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  at = ((b if ORDER_ROWS > 1 else 0) * ORDER_HEADS + (h if ORDER_HEADS > 1 else 0)) * blocks + n

  acc = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
  maximum = tl.full((BLOCK_Q,), -float('inf'), tl.float32)
  total = tl.zeros((BLOCK_Q,), tl.float32)
  middle = tl.load(full + at)
  for s in range(0, middle):
    j0 = tl.load(order + at * steps + s) * BLOCK_K
    acc, maximum, total = _visit(
        j0, False, q, k, v, acc, maximum, total, i, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias,
        Q, T, H, G, K, SCALE, SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS,
        DENSE_HEADS, BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, BLOCK_K, WIDTH, PRECISION)
  for s in range(middle, tl.load(visible + at)):
    j0 = tl.load(order + at * steps + s) * BLOCK_K
    acc, maximum, total = _visit(
        j0, True, q, k, v, acc, maximum, total, i, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias,
        Q, T, H, G, K, SCALE, SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS,
        DENSE_HEADS, BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, BLOCK_K, WIDTH, PRECISION)

  some = total > 0
  acc = acc / tl.where(some, total, 1.0)[:, None]
  lse = tl.where(some, (maximum + tl.log2(tl.where(some, total, 1.0))) / 1.4426950408889634, -float('inf'))
  tl.store(out + rows + i[:, None] * (H * K) + w[None, :], acc.to(out.dtype.element_ty), mask=inside)
  tl.store(residual + (b * H + h).to(tl.int64) * Q + i, lse, mask=i < Q)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp [B, H, Q])."""
  (B, Q, H, K), G, config = arrays.query.shape, arrays.key.shape[2], settings.config
  schedule, schedule_constants = tiles.schedule_operands(mask, config.block_q, config.block_k)
  masks, constants = tiles.operands(mask, arrays.bias)
  out, residual = triton_call.call(
      forward_kernel, arrays.query, arrays.key, arrays.value, *schedule, *masks,
      grid=(math.ceil(Q / config.block_q), H, B), out=[tiles.shape_like(arrays.query), tiles.float32(B, H, Q)],
      warps=config.warps, stages=config.stages, H=H, G=G, K=K, SCALE=settings.scale,
      SOFT_CAP=settings.soft_cap or 0.0, BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
      WIDTH=max(16, 1 << (K - 1).bit_length()), PRECISION=tiles.PRECISION, **constants, **schedule_constants)
  return out, residual
