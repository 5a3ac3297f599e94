"""alpha-entmax attention in Triton: the threshold tau by Newton's method inside a bracket, then the weighted sum.

tau of p = max(0, (alpha - 1) z - tau)^(1 / (alpha - 1)) solves sum p = 1. Each step is a pass over the keys, whose
logits are computed again (as AdaSplash does, Goncalves et al. 2025, arXiv:2502.12082, there with Halley's method);
a Newton step that leaves the bracket is replaced by its middle. Only tau is kept for the backward pass.
"""

import jax.numpy as jnp

from pallas_kernels.attention import triton_backward
from pallas_kernels.attention import triton_tiles as tiles
from pallas_kernels.attention.gradient import Arrays
from pallas_kernels.attention.triton_backward import weights
from pallas_kernels.attention.triton_tiles import allowed, logits, of_head, queries_of_program, vectors
from pallas_kernels.runtime.triton_call import tl, triton

PASSES = 16  # tau to float32 for alpha in (1, 2], where Newton's method converges from the left; tested to 2.5


@triton.jit
def _logits_of_block(s, order, at, q, k, i, b, h, masks, C: tl.constexpr):
  """(logits [BLOCK_Q, BLOCK_K], -inf where not allowed; where it lies in key and value, and what of that is there)."""
  steps: tl.constexpr = (C.T + C.BLOCK_K - 1) // C.BLOCK_K
  j = tl.load(order + at * steps + s) * C.BLOCK_K + tl.arange(0, C.BLOCK_K)
  places, there = vectors(j, C.T, C.G, C)
  x = tl.dot(q, tl.trans(tl.load(k + places, mask=there, other=0.0)), input_precision=C.PRECISION)
  x = logits(x, i[:, None], j[None, :], b, h, masks, C)
  return tl.where(allowed(i[:, None], j[None, :], b, h, masks, C), x, -float('inf')), places, there


@triton.jit
def forward_kernel(
    query, key, value, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, out,
    residual, C: tl.constexpr, STEPS: tl.constexpr):
  """A block of queries of one head: out [B, Q, H, K] and tau [B, H, Q], +inf where a query reads nothing."""
  masks = (start, end, tau_q, tau_k, segment_q, segment_k, dense, bias)
  b, h, at, i = queries_of_program(C)
  places, inside = vectors(i, C.Q, C.H, C)
  q = tl.load(of_head(query, b, h, C.Q, C.H, C) + places, mask=inside, other=0.0)
  k, v = of_head(key, b, h // (C.H // C.G), C.T, C.G, C), of_head(value, b, h // (C.H // C.G), C.T, C.G, C)
  last = tl.load(visible + at)
  less = tl.load(alphas + h) - 1

  largest = tl.full((C.BLOCK_Q,), -float('inf'), tl.float32)
  for s in range(0, last):
    x, from_k, there = _logits_of_block(s, order, at, q, k, i, b, h, masks, C)
    largest = tl.maximum(largest, tl.max(x, 1))
  some = largest > -float('inf')
  largest = tl.where(some, largest, 0.0)

  # tau is kept relative to the largest logit, where float32 is finest; it lies in [-1, 0).
  low = tl.full((C.BLOCK_Q,), -1.0, tl.float32)
  high = tl.zeros((C.BLOCK_Q,), tl.float32)
  tau = low
  for step in range(0, STEPS):
    value_at = tl.full((C.BLOCK_Q,), -1.0, tl.float32)
    slope = tl.zeros((C.BLOCK_Q,), tl.float32)
    for s in range(0, last):
      x, from_k, there = _logits_of_block(s, order, at, q, k, i, b, h, masks, C)
      u = less * (x - largest[:, None]) - tau[:, None]
      log = tl.log2(tl.where(u > 0, u, 1.0)) / less
      p = tl.where(u > 0, tl.exp2(log), 0.0)
      value_at += tl.sum(p, 1)
      slope -= tl.sum(tl.where(u > 0, tl.exp2(log * (1 - less)), 0.0), 1) / less
    low = tl.where(value_at >= 0, tau, low)
    high = tl.where(value_at >= 0, high, tau)
    newton = tau - value_at / tl.where(slope < 0, slope, -1.0)
    tau = tl.where((newton >= low) & (newton <= high) & (slope < 0), newton, (low + high) / 2)

  acc = tl.zeros((C.BLOCK_Q, C.WIDTH), tl.float32)
  total = tl.zeros((C.BLOCK_Q,), tl.float32)
  for s in range(0, last):
    x, from_k, there = _logits_of_block(s, order, at, q, k, i, b, h, masks, C)
    u = less * (x - largest[:, None]) - tau[:, None]
    p = tl.where(u > 0, tl.exp2(tl.log2(tl.where(u > 0, u, 1.0)) / less), 0.0)
    total += tl.sum(p, 1)
    values = tl.load(v + from_k, mask=there, other=0.0)
    acc = tl.dot(p.to(values.dtype), values, acc, input_precision=C.PRECISION)
  acc = acc / tl.where(total > 0, total, 1.0)[:, None]
  tl.store(of_head(out, b, h, C.Q, C.H, C) + places, acc.to(out.dtype.element_ty), mask=inside)
  tau = tl.where(some, tau + less * largest, float('inf'))
  tl.store(residual + (b * C.H + h).to(tl.int64) * C.Q + i, tau, mask=i < C.Q)


@triton.jit
def statistics_kernel(
    query, key, value, d_out, residual, alphas, order, full, visible, start, end, tau_q, tau_k, segment_q, segment_k,
    dense, bias, out, C: tl.constexpr):
  """Sums over each query's keys, [6, B, H, Q]: s, s g, p u, p u g, p r, p r g; g = d_out . value, s = p^(2 - alpha),
  u and r as in entmax._slope_of_alpha."""
  masks = (start, end, tau_q, tau_k, segment_q, segment_k, dense, bias)
  b, h, at, i = queries_of_program(C)
  places, inside = vectors(i, C.Q, C.H, C)
  q = tl.load(of_head(query, b, h, C.Q, C.H, C) + places, mask=inside, other=0.0)
  d = tl.load(of_head(d_out, b, h, C.Q, C.H, C) + places, mask=inside, other=0.0)
  k, v = of_head(key, b, h // (C.H // C.G), C.T, C.G, C), of_head(value, b, h // (C.H // C.G), C.T, C.G, C)
  row = (b * C.H + h).to(tl.int64) * C.Q + i
  r = tl.load(residual + row, mask=i < C.Q, other=float('inf'))[:, None]
  alpha = tl.load(alphas + h)
  sum_s = tl.zeros((C.BLOCK_Q,), tl.float32)
  sum_sg = tl.zeros((C.BLOCK_Q,), tl.float32)
  sum_u = tl.zeros((C.BLOCK_Q,), tl.float32)
  sum_ug = tl.zeros((C.BLOCK_Q,), tl.float32)
  sum_r = tl.zeros((C.BLOCK_Q,), tl.float32)
  sum_rg = tl.zeros((C.BLOCK_Q,), tl.float32)
  for n in range(0, tl.load(visible + at)):
    x, from_k, there = _logits_of_block(n, order, at, q, k, i, b, h, masks, C)
    g = tl.dot(d, tl.trans(tl.load(v + from_k, mask=there, other=0.0)), input_precision=C.PRECISION)
    p, s = weights(x, x > -float('inf'), r, alpha, True, True)
    log = tl.log(tl.where(p > 0, p, 1.0))
    u = (1 - alpha) * log
    series = 1 / 2 + u * (1 / 6 + u * (1 / 24 + u * (1 / 120 + u * (1 / 720 + u / 5040))))
    large = tl.where(u > 0.5, u, 1.0)
    bend = log * log * tl.where(u > 0.5, (tl.exp(large) - 1 - large) / (large * large), series)
    sum_s += tl.sum(s, 1)
    sum_sg += tl.sum(s * g, 1)
    sum_u += tl.sum(p * u, 1)
    sum_ug += tl.sum(p * u * g, 1)
    sum_r += tl.sum(p * bend, 1)
    sum_rg += tl.sum(p * bend * g, 1)
  size = tl.num_programs(2).to(tl.int64) * C.H * C.Q
  tl.store(out + row, sum_s, mask=i < C.Q)
  tl.store(out + size + row, sum_sg, mask=i < C.Q)
  tl.store(out + 2 * size + row, sum_u, mask=i < C.Q)
  tl.store(out + 3 * size + row, sum_ug, mask=i < C.Q)
  tl.store(out + 4 * size + row, sum_r, mask=i < C.Q)
  tl.store(out + 5 * size + row, sum_rg, mask=i < C.Q)


def _launch(kernel, first, arrays, mask, settings, out, **constants):
  config = settings.config
  return tiles.launch(
      kernel, (*arrays[:3], *first, arrays.alpha), arrays, mask, settings, (config.query_block_q, config.query_block_k),
      out, warps=config.backward_warps, stages=config.backward_stages, **constants)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], tau [B, H, Q])."""
  B, Q, H, _ = arrays.query.shape
  out = [tiles.shape_like(arrays.query), tiles.float32(B, H, Q)]
  return tuple(_launch(forward_kernel, (), arrays, mask, settings, out, STEPS=PASSES))


def backward(arrays, mask, tau, weighted_BxHxQ, d_out, settings) -> Arrays:
  """All gradients; that of alpha is [B, H, Q], that of a bias [B, H, Q, T]. `weighted`: d_out . out."""
  B, Q, H, _ = arrays.query.shape
  [sums] = _launch(statistics_kernel, (d_out, tau), arrays, mask, settings, [tiles.float32(6, B, H, Q)])
  sum_s, sum_sg, sum_u, sum_ug, sum_r, sum_rg = sums
  delta = sum_sg / jnp.where(sum_s > 0, sum_s, 1)
  gradients = triton_backward.backward(arrays, mask, tau, delta, d_out, settings)
  # entmax._slope_of_alpha, times g and summed over keys.
  less = arrays.alpha[:, None] - 1
  d_alpha_BxHxQ = ((weighted_BxHxQ + sum_ug) * sum_r - (1 + sum_u) * sum_rg) / (1 + sum_u + less**2 * sum_r)
  return gradients._replace(alpha=d_alpha_BxHxQ)
