"""alpha-entmax attention in Triton: the threshold tau by Newton's method inside a bracket, then the weighted sum.

tau of p = max(0, (alpha - 1) z - tau)^(1 / (alpha - 1)) solves sum p = 1. Each step is a pass over the keys, whose
logits are computed again (as AdaSplash does, Goncalves et al. 2025, arXiv:2502.12082, there with Halley's method);
a Newton step that leaves the bracket is replaced by its middle. Only tau is kept for the backward pass.
"""

import math

import jax.numpy as jnp

from pallas_kernels.attention import triton_backward
from pallas_kernels.attention import triton_tiles as tiles
from pallas_kernels.attention.gradient import Arrays
from pallas_kernels.attention.triton_backward import weights
from pallas_kernels.attention.triton_tiles import allowed, logits
from pallas_kernels.runtime import triton_call
from pallas_kernels.runtime.triton_call import tl, triton

PASSES = 16  # tau to float32 for alpha in (1, 2], where Newton's method converges from the left; tested to 2.5


@triton.jit
def _logits_of_block(
    s, order, at, q, k, i2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, Q: tl.constexpr,
    T: tl.constexpr, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr,
    RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr, SEGMENT_Q_ROWS: tl.constexpr,
    SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr, BIAS_ROWS: tl.constexpr,
    BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr):
  """(logits [BLOCK_Q, BLOCK_K], -inf where not allowed; where it lies in key and value, and what of that is there)."""
  steps: tl.constexpr = (T + BLOCK_K - 1) // BLOCK_K
  j = tl.load(order + at * steps + s) * BLOCK_K + tl.arange(0, BLOCK_K)
  w = tl.arange(0, WIDTH)
  there = (j[:, None] < T) & (w[None, :] < K)
  offsets = j[:, None] * (G * K) + w[None, :]
  x = tl.dot(q, tl.trans(tl.load(k + offsets, mask=there, other=0.0)), input_precision=PRECISION)
  j2 = j[None, :]
  x = logits(x, i2, j2, b, h, bias, Q, T, SCALE, SOFT_CAP, BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES)
  seen = allowed(i2, j2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, Q, T, H, RANGE_ROWS,
                 TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS, DENSE_HEADS)
  return tl.where(seen, x, -float('inf')), offsets, there


@triton.jit
def forward_kernel(
    query, key, value, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, out,
    residual,
    Q: tl.constexpr, T: tl.constexpr, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr,
    SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr, ORDER_ROWS: tl.constexpr,
    ORDER_HEADS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, STEPS: tl.constexpr):
  """A block of queries of one head: out [B, Q, H, K] and tau [B, H, Q], +inf where a query reads nothing."""
  blocks: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
  n = blocks - 1 - tl.program_id(0)
  h, b = tl.program_id(1), tl.program_id(2)
  i = n * BLOCK_Q + tl.arange(0, BLOCK_Q)
  w = tl.arange(0, WIDTH)
  rows = b.to(tl.int64) * Q * (H * K) + h * K
  inside = (i[:, None] < Q) & (w[None, :] < K)
  q = tl.load(query + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
  k = key + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  v = value + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  at = ((b if ORDER_ROWS > 1 else 0) * ORDER_HEADS + (h if ORDER_HEADS > 1 else 0)) * blocks + n
  last = tl.load(visible + at)
  less = tl.load(alphas + h) - 1
  i2 = i[:, None]

  largest = tl.full((BLOCK_Q,), -float('inf'), tl.float32)
  for s in range(0, last):
    x, offsets, there = _logits_of_block(
        s, order, at, q, k, i2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, Q, T, H, G, K, SCALE,
        SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS, DENSE_HEADS,
        BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, BLOCK_K, WIDTH, PRECISION)
    largest = tl.maximum(largest, tl.max(x, 1))
  some = largest > -float('inf')
  largest = tl.where(some, largest, 0.0)

  # tau is kept relative to the largest logit, where float32 is finest; it lies in [-1, 0).
  low = tl.full((BLOCK_Q,), -1.0, tl.float32)
  high = tl.zeros((BLOCK_Q,), tl.float32)
  tau = low
  for step in range(0, STEPS):
    value_at = tl.full((BLOCK_Q,), -1.0, tl.float32)
    slope = tl.zeros((BLOCK_Q,), tl.float32)
    for s in range(0, last):
      x, offsets, there = _logits_of_block(
          s, order, at, q, k, i2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, Q, T, H, G, K,
          SCALE, SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS, DENSE_HEADS,
          BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, BLOCK_K, WIDTH, PRECISION)
      u = less * (x - largest[:, None]) - tau[:, None]
      log = tl.log2(tl.where(u > 0, u, 1.0)) / less
      p = tl.where(u > 0, tl.exp2(log), 0.0)
      value_at += tl.sum(p, 1)
      slope -= tl.sum(tl.where(u > 0, tl.exp2(log * (1 - less)), 0.0), 1) / less
    low = tl.where(value_at >= 0, tau, low)
    high = tl.where(value_at >= 0, high, tau)
    newton = tau - value_at / tl.where(slope < 0, slope, -1.0)
    tau = tl.where((newton >= low) & (newton <= high) & (slope < 0), newton, (low + high) / 2)

  acc = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
  total = tl.zeros((BLOCK_Q,), tl.float32)
  for s in range(0, last):
    x, offsets, there = _logits_of_block(
        s, order, at, q, k, i2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, Q, T, H, G, K, SCALE,
        SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS, DENSE_HEADS,
        BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, BLOCK_K, WIDTH, PRECISION)
    u = less * (x - largest[:, None]) - tau[:, None]
    p = tl.where(u > 0, tl.exp2(tl.log2(tl.where(u > 0, u, 1.0)) / less), 0.0)
    total += tl.sum(p, 1)
    values = tl.load(v + offsets, mask=there, other=0.0)
    acc = tl.dot(p.to(values.dtype), values, acc, input_precision=PRECISION)
  acc = acc / tl.where(total > 0, total, 1.0)[:, None]
  tl.store(out + rows + i[:, None] * (H * K) + w[None, :], acc.to(out.dtype.element_ty), mask=inside)
  tau = tl.where(some, tau + less * largest, float('inf'))
  tl.store(residual + (b * H + h).to(tl.int64) * Q + i, tau, mask=i < Q)


@triton.jit
def statistics_kernel(
    query, key, value, d_out, residual, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q, segment_k,
    dense, bias, out,
    Q: tl.constexpr, T: tl.constexpr, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr,
    SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr, ORDER_ROWS: tl.constexpr,
    ORDER_HEADS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr):
  """Sums over each query's keys, [4, B, H, Q]: s, s g, e, e g; g = d_out . value, s = p^(2 - alpha), e = -p log p."""
  blocks: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
  n = blocks - 1 - tl.program_id(0)
  h, b = tl.program_id(1), tl.program_id(2)
  i = n * BLOCK_Q + tl.arange(0, BLOCK_Q)
  w = tl.arange(0, WIDTH)
  rows = b.to(tl.int64) * Q * (H * K) + h * K
  inside = (i[:, None] < Q) & (w[None, :] < K)
  q = tl.load(query + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
  d = tl.load(d_out + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
  k = key + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  v = value + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  at = ((b if ORDER_ROWS > 1 else 0) * ORDER_HEADS + (h if ORDER_HEADS > 1 else 0)) * blocks + n
  row = (b * H + h).to(tl.int64) * Q + i
  r = tl.load(residual + row, mask=i < Q, other=float('inf'))[:, None]
  alpha = tl.load(alphas + h)
  i2 = i[:, None]
  sum_s = tl.zeros((BLOCK_Q,), tl.float32)
  sum_sg = tl.zeros((BLOCK_Q,), tl.float32)
  sum_e = tl.zeros((BLOCK_Q,), tl.float32)
  sum_eg = tl.zeros((BLOCK_Q,), tl.float32)
  for n_k in range(0, tl.load(visible + at)):
    x, offsets, there = _logits_of_block(
        n_k, order, at, q, k, i2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, Q, T, H, G, K,
        SCALE, SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS, DENSE_HEADS,
        BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, BLOCK_K, WIDTH, PRECISION)
    g = tl.dot(d, tl.trans(tl.load(v + offsets, mask=there, other=0.0)), input_precision=PRECISION)
    p, s = weights(x, x > -float('inf'), r, alpha, True, True)
    e = -p * tl.log(tl.where(p > 0, p, 1.0))
    sum_s += tl.sum(s, 1)
    sum_sg += tl.sum(s * g, 1)
    sum_e += tl.sum(e, 1)
    sum_eg += tl.sum(e * g, 1)
  size = tl.num_programs(2).to(tl.int64) * H * Q
  tl.store(out + row, sum_s, mask=i < Q)
  tl.store(out + size + row, sum_sg, mask=i < Q)
  tl.store(out + 2 * size + row, sum_e, mask=i < Q)
  tl.store(out + 3 * size + row, sum_eg, mask=i < Q)


def _call(kernel, first, arrays, mask, settings, out, **more):
  (B, Q, H, K), G, config = arrays.query.shape, arrays.key.shape[2], settings.config
  block_q, block_k = config.query_block_q, config.query_block_k
  schedule, schedule_constants = tiles.schedule_operands(mask, block_q, block_k)
  masks, constants = tiles.operands(mask, arrays.bias)
  return triton_call.call(
      kernel, arrays.query, arrays.key, arrays.value, *first, arrays.alpha, *schedule, *masks,
      grid=(math.ceil(Q / block_q), H, B), out=out, warps=config.backward_warps, stages=config.backward_stages, H=H,
      G=G, K=K, SCALE=settings.scale, SOFT_CAP=settings.soft_cap or 0.0, BLOCK_Q=block_q, BLOCK_K=block_k,
      WIDTH=max(16, 1 << (K - 1).bit_length()), PRECISION=tiles.PRECISION, **constants, **schedule_constants, **more)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], tau [B, H, Q])."""
  B, Q, H, _ = arrays.query.shape
  out = [tiles.shape_like(arrays.query), tiles.float32(B, H, Q)]
  return tuple(_call(forward_kernel, (), arrays, mask, settings, out, STEPS=PASSES))


def backward(arrays, mask, tau, weighted_BxHxQ, d_out, settings) -> Arrays:
  """All gradients; that of alpha is [B, H, Q], that of a bias [B, H, Q, T]. `weighted`: d_out . out."""
  B, Q, H, _ = arrays.query.shape
  [sums] = _call(statistics_kernel, (d_out, tau), arrays, mask, settings, [tiles.float32(4, B, H, Q)])
  sum_s, sum_sg, sum_e, sum_eg = sums
  delta = sum_sg / jnp.where(sum_s > 0, sum_s, 1)
  gradients = triton_backward.backward(arrays, mask, tau, delta, d_out, settings)
  # Correia et al. 2019, arXiv:1909.00015, proposition 1, times g and summed over keys.
  less = arrays.alpha[:, None] - 1
  d_alpha_BxHxQ = (weighted_BxHxQ - delta) / less**2 + (sum_eg - delta * sum_e) / less
  return gradients._replace(alpha=d_alpha_BxHxQ)
