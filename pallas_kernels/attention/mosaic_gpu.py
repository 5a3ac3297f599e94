"""Attention in Pallas Mosaic GPU for Hopper: warp-specialised, TMA copies, wgmma; both directions.

The schedule of FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608) without its overlap of softmax and products
inside a warp group: one warp group copies, two compute, each on its own block of queries (backward: of keys), and hide
each other's softmax. A program visits the blocks from the first to the last that its mask leaves.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gradient, mosaic_gpu_backward
from pallas_kernels.attention import mosaic_gpu_tiles as tiles
from pallas_kernels.runtime import mosaic_gpu, tune
from pallas_kernels.runtime.batching import over_batch
from pallas_kernels.runtime.mosaic_gpu import LOG2E

NOTHING = -1e30  # stands for -inf in a running maximum, where inf - inf would be NaN


@dataclasses.dataclass(frozen=True)
class Config:
  """Blocks of a warp group in the forward kernel, the backward kernel of queries and that of keys; steps under way."""
  block_q: int = 64
  block_k: int = 128
  stages: int = 2
  query_block_q: int = 64
  query_block_k: int = 64
  key_block_q: int = 64
  key_block_k: int = 64
  backward_stages: int = 2


def attend(query, key, value, bias, mask, *, scale, soft_cap, alpha, config, return_residual):
  """See reference.attend."""
  for name, given in (
      ('bias', bias is not None), ('alpha (entmax)', alpha is not None), ('soft cap', soft_cap is not None),
      ('dense mask', mask.dense_BxHxQxT is not None),
      (f'{query.dtype}, expected bfloat16 or float16', query.dtype not in (jnp.bfloat16, jnp.float16)),
      (f'blocks other than multiples of 64; got {config}', config is not None and any(
          getattr(config, f.name) % 64 for f in dataclasses.fields(config) if 'block' in f.name)),
      (f'heads of width {query.shape[-1]}, expected 64 or 128', query.shape[-1] not in (64, 128))):
    if given:
      raise NotImplementedError(f'attention implementation mosaic_gpu has no {name}; triton has')
  mosaic_gpu.check('attention')
  settings = gradient.Settings(scale, None, False, config or _remembered(query, key) or Config())
  return gradient.attend(forward, backward, settings, gradient.Arrays(query, key, value, None, None), mask)


def _remembered(query, key):
  """What tuning on this device found for the shape."""
  (_, Q, H, K), (T, G) = query.shape, key.shape[1:3]
  return tune.remembered(tune.key('attention', 'mosaic_gpu', query.dtype, Q, T, H, G, K), Config)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp [B, H, Q])."""
  def one(rows, mask):
    return _forward(*rows, mask, settings)
  return over_batch(one)(arrays[:3], mask)


def _forward(query, key, value, mask, settings):
  config, dtype = settings.config, query.dtype
  (B, Q, H, K), G = query.shape, key.shape[2]
  block_q, block_k = config.block_q, config.block_k
  c = tiles.conditions(mask, tiles.WARP_GROUPS * block_q, block_k, by_key=False)
  query, key, value = tiles.pad(query, tiles.WARP_GROUPS * block_q), tiles.pad(key, block_k), tiles.pad(value, block_k)
  vectors = [x for x in (c.queries, c.keys) if x is not None]
  V, W = (0 if x is None else x.shape[1] for x in (c.queries, c.keys))
  staged_there = mosaic_gpu.interpreted()

  def attention_forward(q, k, v, first, count, *rest):
    queries = rest[0] if V else None
    keys = rest[len(vectors) - 1] if W else None
    out, lse, q_tile, lse_tile, arrived, *scratch = rest[len(vectors):]
    staged_all = scratch.pop() if staged_there else None
    q_vectors = scratch.pop() if V else None
    group, h, n, b = (lax.axis_index(a) for a in ('warp_group', 'head', 'block', 'row'))
    at = (n * tiles.WARP_GROUPS + group) * block_q
    g = lax.div(h, jnp.int32(H // G))
    start = first[tiles.row_of(first, b), n]

    def compute(run):
      plgpu.copy_gmem_to_smem(q.at[b, pl.ds(at, block_q), h], q_tile.at[group], arrived.at[group])
      plgpu.barrier_wait(arrived.at[group])
      for i in range(V):
        plgpu.copy_gmem_to_smem(queries.at[tiles.row_of(queries, b), i, pl.ds(at, block_q)], q_vectors.at[group, i],
                                arrived.at[group])
        plgpu.barrier_wait(arrived.at[group])
      total, maximum = tiles.zeros(block_q), plgpu.layout_cast(jnp.full((block_q,), NOTHING, jnp.float32), tiles.ROWS)
      acc, maximum, total = run((tiles.zeros(block_q, K), maximum, total))
      some = total > 0
      divisor = jnp.where(some, total, 1.0)
      acc = acc / lax.broadcast_in_dim(divisor, acc.shape, [0])
      q_tile[group] = acc.astype(dtype)
      lse_tile[group] = jnp.where(some, maximum / LOG2E + jnp.log(divisor), -jnp.inf)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(q_tile.at[group], out.at[b, pl.ds(at, block_q), h])
      plgpu.copy_smem_to_gmem(lse_tile.at[group], lse.at[b, h, pl.ds(at, block_q)])
      plgpu.wait_smem_to_gmem(0)

    def visit(index, k_tile, v_tile, *more):
      *k_vectors, (acc, maximum, total) = more
      column = (start + index[0]) * block_k
      x = tiles.product((block_q, block_k), q_tile.at[group], k_tile.transpose((1, 0))) * (settings.scale * LOG2E)
      q_side = tiles.vectors([q_vectors.at[group, i] for i in range(V)], tiles.ROWS)
      k_side = tiles.vectors(k_vectors, tiles.COLUMNS)
      there = tiles.seen(c, x.shape, at, column, q_side, k_side, transposed=False)
      if there is not None:
        x = jnp.where(there, x, -jnp.inf)
      new = jnp.maximum(maximum, x.max(axis=1))
      shrink = jnp.exp2(maximum - new)
      p = jnp.exp2(x - lax.broadcast_in_dim(new, x.shape, [0]))
      total = total * shrink + p.sum(axis=1)
      acc = acc * lax.broadcast_in_dim(shrink, acc.shape, [0])
      acc = tiles.add_product(acc, p.astype(dtype), v_tile, staged_all.at[group] if staged_there else None)
      return acc, new, total

    tile = plgpu.BlockSpec((block_k, K), lambda j: (start + j, 0), transforms=mosaic_gpu.tiled(K, dtype))
    vector = plgpu.BlockSpec((block_k,), lambda j: (start + j,))
    key_vectors = [keys.at[tiles.row_of(keys, b), i] for i in range(W)]
    steps = count[tiles.row_of(count, b), n]
    tiles.pipeline(visit, compute, steps, [tile, tile, *[vector] * W], config.stages)(
        k.at[b, :, g], v.at[b, :, g], *key_vectors)

  length = query.shape[1]
  scratch = [tiles.matrix(block_q, K, dtype), plgpu.SMEM((tiles.WARP_GROUPS, block_q), jnp.float32),
             plgpu.Barrier(num_barriers=tiles.WARP_GROUPS),
             *([plgpu.SMEM((tiles.WARP_GROUPS, V, block_q), jnp.int32)] if V else []),
             *tiles.staging(block_q, block_k, dtype)]
  out, lse = tiles.launch(
      attention_forward, (query, key, value, jnp.asarray(c.first), jnp.asarray(c.count), *vectors),
      [jax.ShapeDtypeStruct(query.shape, dtype), jax.ShapeDtypeStruct((B, H, length), jnp.float32)],
      (H, length // (tiles.WARP_GROUPS * block_q), B), scratch)
  return out[:, :Q], lse[:, :, :Q]


def backward(arrays, mask, out, lse_BxHxQ, delta_BxHxQ, d_out, settings):
  """Gradients of `arrays`."""
  def one(rows, mask):
    d_query = mosaic_gpu_backward.query_gradient(*rows, mask, settings)
    return d_query, *mosaic_gpu_backward.key_gradients(*rows, mask, settings)
  del out
  # exp(logits - inf) = 0 for a query that reads nothing
  lse_BxHxQ = jnp.where(lse_BxHxQ == -jnp.inf, jnp.inf, lse_BxHxQ) * LOG2E
  gradients = over_batch(one)((*arrays[:3], d_out, lse_BxHxQ, delta_BxHxQ), mask)
  return gradient.Arrays(*gradients, None, None)
