"""Attention forward in Triton: softmax with a running maximum over blocks of keys (Dao 2023, arXiv:2307.08691)."""

from pallas_kernels.attention import triton_tiles as tiles
from pallas_kernels.attention.triton_tiles import allowed, logits, of_head, queries_of_program, vectors
from pallas_kernels.runtime.triton_call import tl, triton


@triton.jit
def forward_kernel(
    query, key, value, order, full, visible, start, end, tau_q, tau_k, segment_q, segment_k, dense, bias, out, residual,
    C: tl.constexpr):
  """A block of queries of one head: out [B, Q, H, K] and the log-sum-exp [B, H, Q]."""
  masks = (start, end, tau_q, tau_k, segment_q, segment_k, dense, bias)
  steps: tl.constexpr = (C.T + C.BLOCK_K - 1) // C.BLOCK_K
  b, h, at, i = queries_of_program(C)
  places, inside = vectors(i, C.Q, C.H, C)
  q = tl.load(of_head(query, b, h, C.Q, C.H, C) + places, mask=inside, other=0.0)
  k, v = of_head(key, b, h // (C.H // C.G), C.T, C.G, C), of_head(value, b, h // (C.H // C.G), C.T, C.G, C)

  # Logits are in units of log 2, so that exp is exp2.
  acc = tl.zeros((C.BLOCK_Q, C.WIDTH), tl.float32)
  maximum = tl.full((C.BLOCK_Q,), -float('inf'), tl.float32)
  total = tl.zeros((C.BLOCK_Q,), tl.float32)
  middle, last = tl.load(full + at), tl.load(visible + at)
  for part in tl.static_range(2):  # blocks that are full, then those that need the mask
    for s in range(0 if part == 0 else middle, middle if part == 0 else last):
      j = tl.load(order + at * steps + s) * C.BLOCK_K + tl.arange(0, C.BLOCK_K)
      from_k, there = vectors(j, C.T, C.G, C)
      if part == 1 or C.WIDTH != C.K:
        keys, values = tl.load(k + from_k, mask=there, other=0.0), tl.load(v + from_k, mask=there, other=0.0)
      else:
        keys, values = tl.load(k + from_k), tl.load(v + from_k)
      x = tl.dot(q, tl.trans(keys), input_precision=C.PRECISION)
      x = logits(x, i[:, None], j[None, :], b, h, masks, C) * 1.4426950408889634
      if part == 1:
        x = tl.where(allowed(i[:, None], j[None, :], b, h, masks, C), x, -float('inf'))
      new = tl.maximum(maximum, tl.max(x, 1))
      finite = tl.where(new == -float('inf'), 0.0, new) if part == 1 else new
      p = tl.exp2(x - finite[:, None])
      shrink = tl.exp2(maximum - finite)
      total = total * shrink + tl.sum(p, 1)
      acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision=C.PRECISION)
      maximum = new

  some = total > 0
  acc = acc / tl.where(some, total, 1.0)[:, None]
  lse = tl.where(some, (maximum + tl.log2(tl.where(some, total, 1.0))) / 1.4426950408889634, -float('inf'))
  tl.store(of_head(out, b, h, C.Q, C.H, C) + places, acc.to(out.dtype.element_ty), mask=inside)
  tl.store(residual + (b * C.H + h).to(tl.int64) * C.Q + i, lse, mask=i < C.Q)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp [B, H, Q])."""
  (B, Q, H, _), config = arrays.query.shape, settings.config
  return tuple(tiles.launch(
      forward_kernel, arrays[:3], arrays, mask, settings, (config.block_q, config.block_k),
      [tiles.shape_like(arrays.query), tiles.float32(B, H, Q)], warps=config.warps, stages=config.stages))
