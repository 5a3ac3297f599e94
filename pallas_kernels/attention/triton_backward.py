"""Attention backward in Triton: one kernel for queries (and bias), one for keys and values; softmax and entmax.

With weights p and d_weights = d_out @ value^T, d_logits = s * (d_weights - delta): for softmax s = p and
delta = sum(p * d_weights) (Dao 2023, arXiv:2307.08691); for entmax s = p^(2 - alpha) and delta = sum(s * d_weights) /
sum(s) (Peters et al. 2019, arXiv:1905.05702). The logits are computed again from the saved residual.
"""

import math

import jax.numpy as jnp

from pallas_kernels.attention import triton_tiles as tiles
from pallas_kernels.attention.gradient import Arrays
from pallas_kernels.attention.triton_tiles import allowed, logits
from pallas_kernels.runtime import triton_call
from pallas_kernels.runtime.triton_call import tl, triton


@triton.jit
def weights(x, seen, residual, alpha, MASKED: tl.constexpr, ENTMAX: tl.constexpr):
  """(p, s) of the module's docstring, from logits and the log-sum-exp (entmax: the threshold tau), 0 where not seen."""
  if ENTMAX:
    u = (alpha - 1) * x - residual
    some = (u > 0) & seen if MASKED else u > 0
    log = tl.log2(tl.where(some, u, 1.0)) / (alpha - 1)
    p = tl.where(some, tl.exp2(log), 0.0)
    s = tl.where(some, tl.exp2(log * (2 - alpha)), 0.0)
  else:
    p = tl.exp2((x - residual) * 1.4426950408889634)
    if MASKED:
      p = tl.where(seen, p, 0.0)
    s = p
  return p, s


@triton.jit
def _tile(
    x, d_p, i2, j2, b, h, residual, delta, alpha, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias,
    MASKED: tl.constexpr, Q: tl.constexpr, T: tl.constexpr, H: tl.constexpr, SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr,
    SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr, ENTMAX: tl.constexpr):
  """(p, gradient of scale * x + bias) of a tile in either orientation, from x = query . key and d_p = d_out . value."""
  x = logits(x, i2, j2, b, h, bias, Q, T, SCALE, SOFT_CAP, BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES)
  seen = i2 >= 0
  if MASKED:
    seen = allowed(i2, j2, b, h, start, end, tau_q, tau_k, segment_q, segment_k, dense, Q, T, H, RANGE_ROWS,
                   TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS, DENSE_HEADS)
  p, s = weights(x, seen, residual, alpha, MASKED, ENTMAX)
  d_x = s * (d_p - delta)
  if SOFT_CAP > 0:
    d_x = d_x * (1 - x * x / (SOFT_CAP * SOFT_CAP))
  return p, d_x


@triton.jit
def query_kernel(
    query, key, value, d_out, residual, delta, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q,
    segment_k, dense, bias, d_query, d_bias,
    Q: tl.constexpr, T: tl.constexpr, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr,
    SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr, ORDER_ROWS: tl.constexpr,
    ORDER_HEADS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, ENTMAX: tl.constexpr):
  """d_query [B, Q, H, K] of a block of queries of one head; with a bias also d_bias [B, H, Q, T], not yet summed."""
  blocks: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
  steps: tl.constexpr = (T + BLOCK_K - 1) // BLOCK_K
  n = blocks - 1 - tl.program_id(0)
  h, b = tl.program_id(1), tl.program_id(2)
  i = n * BLOCK_Q + tl.arange(0, BLOCK_Q)
  w = tl.arange(0, WIDTH)
  rows = b.to(tl.int64) * Q * (H * K) + h * K
  inside = (i[:, None] < Q) & (w[None, :] < K)
  q = tl.load(query + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
  g = tl.load(d_out + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
  row = (b * H + h).to(tl.int64) * Q + i
  r = tl.load(residual + row, mask=i < Q, other=float('inf'))[:, None]
  d = tl.load(delta + row, mask=i < Q, other=0.0)[:, None]
  alpha = tl.load(alphas + h) if ENTMAX else 2.0
  k = key + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  v = value + b.to(tl.int64) * T * (G * K) + h // (H // G) * K
  at = ((b if ORDER_ROWS > 1 else 0) * ORDER_HEADS + (h if ORDER_HEADS > 1 else 0)) * blocks + n
  i2 = i[:, None]

  acc = tl.zeros((BLOCK_Q, WIDTH), tl.float32)
  middle = tl.load(full + at)
  last = tl.load(visible + at)
  for part in tl.static_range(2):
    for s in range(0 if part == 0 else middle, middle if part == 0 else last):
      j = tl.load(order + at * steps + s) * BLOCK_K + tl.arange(0, BLOCK_K)
      there = (j[:, None] < T) & (w[None, :] < K)
      keys = tl.load(k + j[:, None] * (G * K) + w[None, :], mask=there, other=0.0)
      values = tl.load(v + j[:, None] * (G * K) + w[None, :], mask=there, other=0.0)
      x = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
      d_p = tl.dot(g, tl.trans(values), input_precision=PRECISION)
      j2 = j[None, :]
      p, d_x = _tile(
          x, d_p, i2, j2, b, h, r, d, alpha, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, part == 1, Q,
          T, H, SCALE, SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS, DENSE_ROWS,
          DENSE_HEADS, BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, ENTMAX)
      if BIAS_ROWS > 0:
        to = (b * H + h).to(tl.int64) * Q * T + i2.to(tl.int64) * T + j2
        tl.store(d_bias + to, d_x, mask=(i2 < Q) & (j2 < T))
      acc = tl.dot(d_x.to(keys.dtype), keys, acc, input_precision=PRECISION)
  if BIAS_ROWS > 0:
    for s in range(last, steps):  # what is skipped has gradient 0
      j2 = (tl.load(order + at * steps + s) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
      to = (b * H + h).to(tl.int64) * Q * T + i2.to(tl.int64) * T + j2
      tl.store(d_bias + to, tl.zeros((BLOCK_Q, BLOCK_K), tl.float32), mask=(i2 < Q) & (j2 < T))
  tl.store(d_query + rows + i[:, None] * (H * K) + w[None, :], (acc * SCALE).to(d_query.dtype.element_ty), mask=inside)


@triton.jit
def key_kernel(
    query, key, value, d_out, residual, delta, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q,
    segment_k, dense, bias, d_key, d_value,
    Q: tl.constexpr, T: tl.constexpr, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr, RANGE_ROWS: tl.constexpr, TAU_Q_ROWS: tl.constexpr, TAU_K_ROWS: tl.constexpr,
    SEGMENT_Q_ROWS: tl.constexpr, SEGMENT_K_ROWS: tl.constexpr, DENSE_ROWS: tl.constexpr, DENSE_HEADS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_HEADS: tl.constexpr, BIAS_QUERIES: tl.constexpr, ORDER_ROWS: tl.constexpr,
    ORDER_HEADS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, ENTMAX: tl.constexpr):
  """d_key and d_value [B, T, G, K] of a block of keys of one key head, summed over its query heads."""
  blocks: tl.constexpr = (T + BLOCK_K - 1) // BLOCK_K
  steps: tl.constexpr = (Q + BLOCK_Q - 1) // BLOCK_Q
  n, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
  j = n * BLOCK_K + tl.arange(0, BLOCK_K)
  w = tl.arange(0, WIDTH)
  columns = b.to(tl.int64) * T * (G * K) + head * K
  there = (j[:, None] < T) & (w[None, :] < K)
  keys = tl.load(key + columns + j[:, None] * (G * K) + w[None, :], mask=there, other=0.0)
  values = tl.load(value + columns + j[:, None] * (G * K) + w[None, :], mask=there, other=0.0)
  j2 = j[:, None]

  sum_k = tl.zeros((BLOCK_K, WIDTH), tl.float32)
  sum_v = tl.zeros((BLOCK_K, WIDTH), tl.float32)
  for m in range(0, H // G):
    h = head * (H // G) + m
    alpha = tl.load(alphas + h) if ENTMAX else 2.0
    rows = b.to(tl.int64) * Q * (H * K) + h * K
    row = (b * H + h).to(tl.int64) * Q
    at = ((b if ORDER_ROWS > 1 else 0) * ORDER_HEADS + (h if ORDER_HEADS > 1 else 0)) * blocks + n
    middle = tl.load(full + at)
    last = tl.load(visible + at)
    for part in tl.static_range(2):
      for s in range(0 if part == 0 else middle, middle if part == 0 else last):
        i = tl.load(order + at * steps + s) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        inside = (i[:, None] < Q) & (w[None, :] < K)
        q = tl.load(query + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
        g = tl.load(d_out + rows + i[:, None] * (H * K) + w[None, :], mask=inside, other=0.0)
        r = tl.load(residual + row + i, mask=i < Q, other=float('inf'))[None, :]
        d = tl.load(delta + row + i, mask=i < Q, other=0.0)[None, :]
        x = tl.dot(keys, tl.trans(q), input_precision=PRECISION)
        d_p = tl.dot(values, tl.trans(g), input_precision=PRECISION)
        p, d_x = _tile(
            x, d_p, i[None, :], j2, b, h, r, d, alpha, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias,
            part == 1, Q, T, H, SCALE, SOFT_CAP, RANGE_ROWS, TAU_Q_ROWS, TAU_K_ROWS, SEGMENT_Q_ROWS, SEGMENT_K_ROWS,
            DENSE_ROWS, DENSE_HEADS, BIAS_ROWS, BIAS_HEADS, BIAS_QUERIES, ENTMAX)
        sum_v = tl.dot(p.to(g.dtype), g, sum_v, input_precision=PRECISION)
        sum_k = tl.dot(d_x.to(q.dtype), q, sum_k, input_precision=PRECISION)
  to = columns + j[:, None] * (G * K) + w[None, :]
  tl.store(d_key + to, (sum_k * SCALE).to(d_key.dtype.element_ty), mask=there)
  tl.store(d_value + to, sum_v.to(d_value.dtype.element_ty), mask=there)


def backward(arrays, mask, residual, delta_BxHxQ, d_out, settings) -> Arrays:
  """Gradients of everything but alpha; that of the bias is [B, H, Q, T].

  `residual`: what `weights` takes, +inf for a query that reads nothing.
  """
  (B, Q, H, K), (T, G), config = arrays.query.shape, arrays.key.shape[1:3], settings.config
  masks, constants = tiles.operands(mask, arrays.bias)
  alphas = jnp.zeros(1) if arrays.alpha is None else arrays.alpha
  inputs = arrays.query, arrays.key, arrays.value, d_out, residual, delta_BxHxQ, alphas
  constants |= dict(
      H=H, G=G, K=K, SCALE=settings.scale, SOFT_CAP=settings.soft_cap or 0.0, WIDTH=max(16, 1 << (K - 1).bit_length()),
      PRECISION=tiles.PRECISION, ENTMAX=settings.entmax)

  block_q, block_k = config.query_block_q, config.query_block_k
  schedule, more = tiles.schedule_operands(mask, block_q, block_k)
  bias = arrays.bias
  d_query, d_bias = triton_call.call(
      query_kernel, *inputs, *schedule, *masks, grid=(math.ceil(Q / block_q), H, B),
      out=[tiles.shape_like(arrays.query), tiles.float32(1) if bias is None else tiles.float32(B, H, Q, T)],
      warps=config.backward_warps, stages=config.backward_stages, BLOCK_Q=block_q, BLOCK_K=block_k, **constants, **more)

  block_q, block_k = config.key_block_q, config.key_block_k
  schedule, more = tiles.schedule_operands(mask, block_q, block_k, by_key=True)
  d_key, d_value = triton_call.call(
      key_kernel, *inputs, *schedule, *masks, grid=(math.ceil(T / block_k), G, B),
      out=[tiles.shape_like(arrays.key), tiles.shape_like(arrays.value)],
      warps=config.backward_warps, stages=config.backward_stages, BLOCK_Q=block_q, BLOCK_K=block_k, **constants, **more)

  return Arrays(d_query, d_key, d_value, None if bias is None else d_bias, None)
