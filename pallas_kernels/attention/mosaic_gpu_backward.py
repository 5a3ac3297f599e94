"""Attention backward for Hopper: one kernel for queries, one for keys and values (Dao 2023, arXiv:2307.08691).

With p = exp(logits - log-sum-exp), d_logits = p * (d_out @ value^T - delta), delta = sum(d_out * out).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import mosaic_gpu_tiles as tiles
from pallas_kernels.runtime import mosaic_gpu
from pallas_kernels.runtime.mosaic_gpu import LOG2E


def query_gradient(query, key, value, d_out, lse, delta, mask, settings):
  """d_query [B, Q, H, K]. `lse` in units of log 2."""
  config, dtype = settings.config, query.dtype
  (B, Q, H, K), G = query.shape, key.shape[2]
  block_q, block_k = config.query_block_q, config.query_block_k
  c = tiles.conditions(mask, tiles.WARP_GROUPS * block_q, block_k, by_key=False)
  query, d_out = (tiles.pad(x, tiles.WARP_GROUPS * block_q) for x in (query, d_out))
  lse, delta = tiles.pad(lse, tiles.WARP_GROUPS * block_q, 2, np.inf), tiles.pad(delta, tiles.WARP_GROUPS * block_q, 2)
  key, value = tiles.pad(key, block_k), tiles.pad(value, block_k)
  vectors = [x for x in (c.queries, c.keys) if x is not None]
  V, W = (0 if x is None else x.shape[1] for x in (c.queries, c.keys))
  staged_there = mosaic_gpu.interpreted()

  def attention_query(q, k, v, g, lse, delta, first, count, *rest):
    queries = rest[0] if V else None
    keys = rest[len(vectors) - 1] if W else None
    d_q, q_tile, g_tile, floats, arrived, *scratch = rest[len(vectors):]
    staged_all = scratch.pop() if staged_there else None
    q_vectors = scratch.pop() if V else None
    group, h, n, b = (lax.axis_index(a) for a in ('warp_group', 'head', 'block', 'row'))
    at = (n * tiles.WARP_GROUPS + group) * block_q
    kh = lax.div(h, jnp.int32(H // G))
    start = first[tiles.row_of(first, b), n]
    mine = pl.ds(at, block_q)

    def compute(run):
      copies = [(q.at[b, mine, h], q_tile.at[group]), (g.at[b, mine, h], g_tile.at[group]),
                (lse.at[b, h, mine], floats.at[group, 0]), (delta.at[b, h, mine], floats.at[group, 1]),
                *((queries.at[tiles.row_of(queries, b), i, mine], q_vectors.at[group, i]) for i in range(V))]
      for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, arrived.at[group])
        plgpu.barrier_wait(arrived.at[group])
      r, d = tiles.vectors([floats.at[group, 0], floats.at[group, 1]], tiles.ROWS)
      acc, *_ = run((tiles.zeros(block_q, K), r, d))
      q_tile[group] = (acc * settings.scale).astype(dtype)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(q_tile.at[group], d_q.at[b, mine, h])
      plgpu.wait_smem_to_gmem(0)

    def visit(index, k_tile, v_tile, *more):
      *k_vectors, (acc, r, d) = more
      shape = block_q, block_k
      x = tiles.product(shape, q_tile.at[group], k_tile.transpose((1, 0))) * (settings.scale * LOG2E)
      p = jnp.exp2(x - lax.broadcast_in_dim(r, shape, [0]))
      q_side = tiles.vectors([q_vectors.at[group, i] for i in range(V)], tiles.ROWS)
      k_side = tiles.vectors(k_vectors, tiles.COLUMNS)
      there = tiles.seen(c, shape, at, (start + index[0]) * block_k, q_side, k_side, transposed=False)
      if there is not None:
        p = jnp.where(there, p, 0.0)
      d_p = tiles.product(shape, g_tile.at[group], v_tile.transpose((1, 0)))
      d_x = p * (d_p - lax.broadcast_in_dim(d, shape, [0]))
      acc = tiles.add_product(acc, d_x.astype(dtype), k_tile, staged_all.at[group] if staged_there else None)
      return acc, r, d

    tile = plgpu.BlockSpec((block_k, K), lambda j: (start + j, 0), transforms=mosaic_gpu.tiled(K, dtype))
    vector = plgpu.BlockSpec((block_k,), lambda j: (start + j,))
    steps = count[tiles.row_of(count, b), n]
    tiles.pipeline(visit, compute, steps, [tile, tile, *[vector] * W], config.backward_stages)(
        k.at[b, :, kh], v.at[b, :, kh], *(keys.at[tiles.row_of(keys, b), i] for i in range(W)))

  scratch = [tiles.matrix(block_q, K, dtype), tiles.matrix(block_q, K, dtype),
             plgpu.SMEM((tiles.WARP_GROUPS, 2, block_q), jnp.float32),
             plgpu.Barrier(num_barriers=tiles.WARP_GROUPS),
             *([plgpu.SMEM((tiles.WARP_GROUPS, V, block_q), jnp.int32)] if V else []),
             *tiles.staging(block_q, block_k, dtype)]
  length = query.shape[1]
  d_query = tiles.launch(
      attention_query, (query, key, value, d_out, lse, delta, jnp.asarray(c.first), jnp.asarray(c.count), *vectors),
      jax.ShapeDtypeStruct(query.shape, dtype), (H, length // (tiles.WARP_GROUPS * block_q), B), scratch)
  return d_query[:, :Q]


def key_gradients(query, key, value, d_out, lse, delta, mask, settings):
  """d_key, d_value [B, T, G, K]: each query head's share first, which XLA sums."""
  config, dtype = settings.config, query.dtype
  (B, _, H, K), (T, G) = query.shape, key.shape[1:3]
  block_q, block_k = config.key_block_q, config.key_block_k
  c = tiles.conditions(mask, block_q, tiles.WARP_GROUPS * block_k, by_key=True)
  query, d_out = tiles.pad(query, block_q), tiles.pad(d_out, block_q)
  lse, delta = tiles.pad(lse, block_q, 2, np.inf), tiles.pad(delta, block_q, 2)
  key, value = tiles.pad(key, tiles.WARP_GROUPS * block_k), tiles.pad(value, tiles.WARP_GROUPS * block_k)
  vectors = [x for x in (c.queries, c.keys) if x is not None]
  V, W = (0 if x is None else x.shape[1] for x in (c.queries, c.keys))
  staged_there = mosaic_gpu.interpreted()

  def attention_key(q, k, v, g, lse, delta, first, count, *rest):
    queries = rest[0] if V else None
    keys = rest[len(vectors) - 1] if W else None
    d_k, d_v, k_tile, v_tile, share_tile, arrived, *scratch = rest[len(vectors):]
    staged_all = scratch.pop() if staged_there else None
    k_vectors = scratch.pop() if W else None
    group, h, n, b = (lax.axis_index(a) for a in ('warp_group', 'head', 'block', 'row'))
    at = (n * tiles.WARP_GROUPS + group) * block_k
    kh = lax.div(h, jnp.int32(H // G))
    start = first[tiles.row_of(first, b), n]
    mine = pl.ds(at, block_k)

    def compute(run):
      copies = [(k.at[b, mine, kh], k_tile.at[group]), (v.at[b, mine, kh], v_tile.at[group]),
                *((keys.at[tiles.row_of(keys, b), i, mine], k_vectors.at[group, i]) for i in range(W))]
      for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, arrived.at[group])
        plgpu.barrier_wait(arrived.at[group])
      sum_k, sum_v = run((tiles.zeros(block_k, K), tiles.zeros(block_k, K)))
      for share, to in ((sum_k * settings.scale, d_k), (sum_v, d_v)):
        share_tile[group] = share.astype(to.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(share_tile.at[group], to.at[b, mine, h])
        plgpu.wait_smem_to_gmem(0)

    def visit(index, q_tile, g_tile, lse_tile, delta_tile, *more):
      *q_vectors, (sum_k, sum_v) = more
      shape = block_k, block_q
      staged = staged_all.at[group] if staged_there else None
      r, d = tiles.vectors([lse_tile, delta_tile], tiles.COLUMNS)
      x = tiles.product(shape, k_tile.at[group], q_tile.transpose((1, 0))) * (settings.scale * LOG2E)
      p = jnp.exp2(x - lax.broadcast_in_dim(r, shape, [1]))
      q_side = tiles.vectors(q_vectors, tiles.COLUMNS)
      k_side = tiles.vectors([k_vectors.at[group, i] for i in range(W)], tiles.ROWS)
      there = tiles.seen(c, shape, (start + index[0]) * block_q, at, q_side, k_side, transposed=True)
      if there is not None:
        p = jnp.where(there, p, 0.0)
      sum_v = tiles.add_product(sum_v, p.astype(dtype), g_tile, staged)
      d_p = tiles.product(shape, v_tile.at[group], g_tile.transpose((1, 0)))
      d_x = p * (d_p - lax.broadcast_in_dim(d, shape, [1]))
      sum_k = tiles.add_product(sum_k, d_x.astype(dtype), q_tile, staged)
      return sum_k, sum_v

    tile = plgpu.BlockSpec((block_q, K), lambda j: (start + j, 0), transforms=mosaic_gpu.tiled(K, dtype))
    vector = plgpu.BlockSpec((block_q,), lambda j: (start + j,))
    steps = count[tiles.row_of(count, b), n]
    tiles.pipeline(visit, compute, steps, [tile, tile, *[vector] * (2 + V)], config.backward_stages)(
        q.at[b, :, h], g.at[b, :, h], lse.at[b, h], delta.at[b, h],
        *(queries.at[tiles.row_of(queries, b), i] for i in range(V)))

  length = key.shape[1]
  share = jax.ShapeDtypeStruct((B, length, H, K), dtype if H == G else jnp.float32)  # rounded once, after the sum
  scratch = [tiles.matrix(block_k, K, dtype), tiles.matrix(block_k, K, dtype),
             tiles.matrix(block_k, K, share.dtype),
             plgpu.Barrier(num_barriers=tiles.WARP_GROUPS),
             *([plgpu.SMEM((tiles.WARP_GROUPS, W, block_k), jnp.int32)] if W else []),
             *tiles.staging(block_k, block_q, dtype)]
  shares = tiles.launch(
      attention_key, (query, key, value, d_out, lse, delta, jnp.asarray(c.first), jnp.asarray(c.count), *vectors),
      [share, share], (H, length // (tiles.WARP_GROUPS * block_k), B), scratch)
  return [x[:, :T].reshape(B, T, G, H // G, K).sum(3, dtype=jnp.float32).astype(dtype) for x in shares]
