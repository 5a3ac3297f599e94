"""Attention backward in Triton: one kernel for queries (and bias), one for keys and values; softmax and entmax.

With weights p and d_weights = d_out @ value^T, d_logits = s * (d_weights - delta): for softmax s = p and
delta = sum(p * d_weights) (Dao 2023, arXiv:2307.08691); for entmax s = p^(2 - alpha) and delta = sum(s * d_weights) /
sum(s) (Peters et al. 2019, arXiv:1905.05702). The logits are computed again from the saved residual.
"""

import jax.numpy as jnp

from pallas_kernels.attention import triton_tiles as tiles
from pallas_kernels.attention.gradient import Arrays
from pallas_kernels.attention.triton_tiles import allowed, entry, logits, of_head, queries_of_program, vectors
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
def _tile(x, d_p, i, j, b, h, residual, delta, alpha, masks, MASKED: tl.constexpr, C: tl.constexpr):
  """(p, gradient of scale * x + bias) of a tile in either orientation, from x = query . key and d_p = d_out . value."""
  x = logits(x, i, j, b, h, masks, C)
  seen = i >= 0
  if MASKED:
    seen = allowed(i, j, b, h, masks, C)
  p, s = weights(x, seen, residual, alpha, MASKED, C.ENTMAX)
  d_x = s * (d_p - delta)
  if C.SOFT_CAP > 0:
    d_x = d_x * (1 - x * x / (C.SOFT_CAP * C.SOFT_CAP))
  return p, d_x


@triton.jit
def query_kernel(
    query, key, value, d_out, residual, delta, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q,
    segment_k, dense, bias, d_query, d_bias, C: tl.constexpr):
  """d_query [B, Q, H, K] of a block of queries of one head; with a bias also d_bias [B, H, Q, T], not yet summed."""
  masks = (start, end, tau_q, tau_k, segment_q, segment_k, dense, bias)
  steps: tl.constexpr = (C.T + C.BLOCK_K - 1) // C.BLOCK_K
  b, h, at, i = queries_of_program(C)
  places, inside = vectors(i, C.Q, C.H, C)
  q = tl.load(of_head(query, b, h, C.Q, C.H, C) + places, mask=inside, other=0.0)
  g = tl.load(of_head(d_out, b, h, C.Q, C.H, C) + places, mask=inside, other=0.0)
  row = (b * C.H + h).to(tl.int64) * C.Q
  r = tl.load(residual + row + i, mask=i < C.Q, other=float('inf'))[:, None]
  d = tl.load(delta + row + i, mask=i < C.Q, other=0.0)[:, None]
  alpha = tl.load(alphas + h) if C.ENTMAX else 2.0
  k, v = of_head(key, b, h // (C.H // C.G), C.T, C.G, C), of_head(value, b, h // (C.H // C.G), C.T, C.G, C)
  d_bias += row * C.T
  i2 = i[:, None]

  acc = tl.zeros((C.BLOCK_Q, C.WIDTH), tl.float32)
  middle, last = tl.load(full + at), tl.load(visible + at)
  for part in tl.static_range(2):
    for s in range(0 if part == 0 else middle, middle if part == 0 else last):
      j = tl.load(order + at * steps + s) * C.BLOCK_K + tl.arange(0, C.BLOCK_K)
      from_k, there = vectors(j, C.T, C.G, C)
      keys, values = tl.load(k + from_k, mask=there, other=0.0), tl.load(v + from_k, mask=there, other=0.0)
      x = tl.dot(q, tl.trans(keys), input_precision=C.PRECISION)
      d_p = tl.dot(g, tl.trans(values), input_precision=C.PRECISION)
      j2 = j[None, :]
      p, d_x = _tile(x, d_p, i2, j2, b, h, r, d, alpha, masks, part == 1, C)
      if C.BIAS_ROWS > 0:
        tl.store(d_bias + i2.to(tl.int64) * C.T + j2, d_x, mask=(i2 < C.Q) & (j2 < C.T))
      acc = tl.dot(d_x.to(keys.dtype), keys, acc, input_precision=C.PRECISION)
  if C.BIAS_ROWS > 0:
    for s in range(last, steps):  # what is skipped has gradient 0
      j2 = (tl.load(order + at * steps + s) * C.BLOCK_K + tl.arange(0, C.BLOCK_K))[None, :]
      zero = tl.zeros((C.BLOCK_Q, C.BLOCK_K), tl.float32)
      tl.store(d_bias + i2.to(tl.int64) * C.T + j2, zero, mask=(i2 < C.Q) & (j2 < C.T))
  d_q = of_head(d_query, b, h, C.Q, C.H, C) + places
  tl.store(d_q, (acc * C.SCALE).to(d_query.dtype.element_ty), mask=inside)


@triton.jit
def key_kernel(
    query, key, value, d_out, residual, delta, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q,
    segment_k, dense, bias, d_key, d_value, C: tl.constexpr):
  """d_key and d_value [B, T, G, K] of a block of keys of one key head, summed over its query heads."""
  masks = (start, end, tau_q, tau_k, segment_q, segment_k, dense, bias)
  blocks: tl.constexpr = (C.T + C.BLOCK_K - 1) // C.BLOCK_K
  steps: tl.constexpr = (C.Q + C.BLOCK_Q - 1) // C.BLOCK_Q
  n, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
  j = n * C.BLOCK_K + tl.arange(0, C.BLOCK_K)
  places, there = vectors(j, C.T, C.G, C)
  keys = tl.load(of_head(key, b, head, C.T, C.G, C) + places, mask=there, other=0.0)
  values = tl.load(of_head(value, b, head, C.T, C.G, C) + places, mask=there, other=0.0)

  sum_k = tl.zeros((C.BLOCK_K, C.WIDTH), tl.float32)
  sum_v = tl.zeros((C.BLOCK_K, C.WIDTH), tl.float32)
  for m in range(0, C.H // C.G):
    h = head * (C.H // C.G) + m
    alpha = tl.load(alphas + h) if C.ENTMAX else 2.0
    row = (b * C.H + h).to(tl.int64) * C.Q
    at = entry(b, h, n, blocks, C)
    middle, last = tl.load(full + at), tl.load(visible + at)
    for part in tl.static_range(2):
      for s in range(0 if part == 0 else middle, middle if part == 0 else last):
        i = tl.load(order + at * steps + s) * C.BLOCK_Q + tl.arange(0, C.BLOCK_Q)
        from_q, inside = vectors(i, C.Q, C.H, C)
        q = tl.load(of_head(query, b, h, C.Q, C.H, C) + from_q, mask=inside, other=0.0)
        g = tl.load(of_head(d_out, b, h, C.Q, C.H, C) + from_q, mask=inside, other=0.0)
        r = tl.load(residual + row + i, mask=i < C.Q, other=float('inf'))[None, :]
        d = tl.load(delta + row + i, mask=i < C.Q, other=0.0)[None, :]
        x = tl.dot(keys, tl.trans(q), input_precision=C.PRECISION)
        d_p = tl.dot(values, tl.trans(g), input_precision=C.PRECISION)
        p, d_x = _tile(x, d_p, i[None, :], j[:, None], b, h, r, d, alpha, masks, part == 1, C)
        sum_v = tl.dot(p.to(g.dtype), g, sum_v, input_precision=C.PRECISION)
        sum_k = tl.dot(d_x.to(q.dtype), q, sum_k, input_precision=C.PRECISION)
  d_k = of_head(d_key, b, head, C.T, C.G, C) + places
  tl.store(d_k, (sum_k * C.SCALE).to(d_key.dtype.element_ty), mask=there)
  d_v = of_head(d_value, b, head, C.T, C.G, C) + places
  tl.store(d_v, sum_v.to(d_value.dtype.element_ty), mask=there)


def backward(arrays, mask, residual, delta_BxHxQ, d_out, settings) -> Arrays:
  """Gradients of everything but alpha; that of the bias is [B, H, Q, T].

  `residual`: what `weights` takes, +inf for a query that reads nothing.
  """
  (B, Q, H, _), T, config = arrays.query.shape, arrays.key.shape[1], settings.config
  bias = arrays.bias
  alphas = jnp.zeros(1) if arrays.alpha is None else arrays.alpha
  inputs = (*arrays[:3], d_out, residual, delta_BxHxQ, alphas)
  size = dict(warps=config.backward_warps, stages=config.backward_stages)
  d_query, d_bias = tiles.launch(
      query_kernel, inputs, arrays, mask, settings, (config.query_block_q, config.query_block_k),
      [tiles.shape_like(arrays.query), tiles.float32(1) if bias is None else tiles.float32(B, H, Q, T)], **size)
  d_key, d_value = tiles.launch(
      key_kernel, inputs, arrays, mask, settings, (config.key_block_q, config.key_block_k),
      [tiles.shape_like(arrays.key), tiles.shape_like(arrays.value)], by_key=True, **size)
  return Arrays(d_query, d_key, d_value, None if bias is None else d_bias, None)
