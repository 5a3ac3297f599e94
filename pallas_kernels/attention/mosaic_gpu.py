"""Attention in Pallas Mosaic GPU for Hopper: warp-specialised, TMA copies, wgmma; both directions.

The schedule of FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608) without its overlap of softmax and products
inside a warp group: one warp group copies, two compute, each on its own block of queries (backward: of keys), and hide
each other's softmax. A program visits the blocks from the first to the last that its mask leaves.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import gradient
from pallas_kernels.attention.mask import Mask
from pallas_kernels.runtime import mosaic_gpu, tune
from pallas_kernels.runtime.batching import over_batch
from pallas_kernels.runtime.mosaic_gpu import LOG2E

WARP_GROUPS = 2
NOTHING = -1e30  # stands for -inf in a running maximum, where inf - inf would be NaN
ROWS, COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # one value a row, one a column of a tile


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


class Conditions(NamedTuple):
  """A mask as what a tile needs: integers a query and a key, and the range of blocks a program visits.

  Attributes:
    first, count: int32 [B or 1, programs].
    queries: int32 [B or 1, V, Q]: start and end, then stamps and segments as far as there are such; V 0: see `causal`.
    keys: int32 [B or 1, W, T]: stamps and segments.
    stamps, segments, causal: whether there are such; causal without start and end.
  """
  first: jax.Array
  count: jax.Array
  queries: jax.Array | None
  keys: jax.Array | None
  stamps: bool
  segments: bool
  causal: bool
  edge: int | None  # the first key that is padding


def conditions(mask: Mask, block_q: int, block_k: int, by_key: bool) -> Conditions:
  """`block_q` and `block_k`: of a program, whose own side is padded to whole blocks, as is the other."""
  kinds = mask.kinds(block_q, block_k)[:, 0]
  kinds = kinds.swapaxes(1, 2) if by_key else kinds
  xp = mask.numpy
  some = kinds > 0
  first = xp.argmax(some, axis=-1).astype(np.int32)
  last = kinds.shape[-1] - 1 - xp.argmax(some[..., ::-1], axis=-1)
  count = xp.where(some.any(-1), last - first + 1, 1).astype(np.int32)  # at least one, if only to be masked
  pairs = [pair for pair in (mask.stamps, mask.segments) if pair is not None]
  # Comparing numbers of rows and columns spills in the kernel of keys; comparing loaded vectors does not.
  plain = mask.is_static and mask.window is None and not (by_key and mask.is_causal)
  def stack(vectors, length, block, padding):
    rows = max(x.shape[0] for x in vectors)
    out = jnp.stack([jnp.broadcast_to(jnp.asarray(x, jnp.int32), (rows, length)) for x in vectors], 1)
    return jnp.pad(out, ((0, 0), (0, 0), (0, -length % block)), constant_values=padding)
  return Conditions(
      first, count, None if plain else stack([*mask.intervals(), *(p[0] for p in pairs)], mask.queries, block_q, 0),
      stack([p[1] for p in pairs], mask.keys, block_k, 0) if pairs else None, mask.stamps is not None,
      mask.segments is not None, mask.is_causal, mask.keys if plain and mask.keys % block_k else None)


def seen(c: Conditions, shape, row, column, queries, keys, *, transposed: bool):
  """bool tile, None where everything is seen. `queries`, `keys`: lists of vectors along their side of the tile."""
  q_axis, k_axis = (1, 0) if transposed else (0, 1)
  def along(vector, axis):
    return lax.broadcast_in_dim(vector, shape, [axis])
  def number(axis, start):
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA) + start
  if c.queries is None:
    out = number(q_axis, row) >= number(k_axis, column) if c.causal else None
    if c.edge is not None:
      inside = number(k_axis, column) < c.edge
      out = inside if out is None else out & inside
    return out
  j = number(k_axis, column)
  start, end, *queries = queries
  out = (along(start, q_axis) <= j) & (j < along(end, q_axis))
  queries, keys = list(queries), list(keys)
  if c.stamps:
    out = out & (along(keys.pop(0), k_axis) <= along(queries.pop(0), q_axis))
  if c.segments:
    out = out & (along(keys.pop(0), k_axis) == along(queries.pop(0), q_axis))
  return out


def product(shape, a, b):
  """a @ b from shared memory, in registers."""
  def run(total):
    plgpu.wgmma(total, a, b)
    return total[...]
  return pl.run_scoped(run, plgpu.ACC(shape, jnp.float32))


def add_product(total, a, b, staged):
  """total + a @ b, a in registers. The interpreter takes neither that nor an initial value: there a goes by `staged`."""
  if staged is None:
    def run(ref):
      plgpu.wgmma(ref, a, b)
    return pl.run_state(run)(plgpu.ACC.init(total))
  staged[...] = a
  plgpu.commit_smem()
  return total + product(total.shape, staged, b)


def zeros(*shape):
  return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA if len(shape) == 2 else ROWS)


def launch(kernel, inputs, outputs, grid, scratch):
  return plgpu.kernel(
      kernel, out_type=outputs, grid=grid, grid_names=('head', 'block', 'row'), num_threads=WARP_GROUPS + 1,
      thread_name='warp_group', scratch_types=scratch, compiler_params=plgpu.CompilerParams(approx_math=True))(*inputs)


def pipeline(body, compute, steps, blocks, stages):
  """Blocks of the other side, copied ahead by a warp group of its own."""
  return plgpu.emit_pipeline_warp_specialized(
      body, grid=(steps,), memory_registers=40, wg_axis='warp_group', num_compute_wgs=WARP_GROUPS,
      max_concurrent_steps=stages, compute_context=compute, in_specs=blocks)


def matrix(rows, width, dtype):
  """One a compute warp group, in shared memory."""
  return plgpu.SMEM((WARP_GROUPS, rows, width), dtype, transforms=mosaic_gpu.tiled(width, dtype))


def staging(rows, columns, dtype):
  return [matrix(rows, columns, dtype)] if mosaic_gpu.interpreted() else []


def _vectors(refs, layout):
  return [mosaic_gpu.load(ref, layout) for ref in refs]


def _row_of(x, batch):
  return batch if x.shape[0] > 1 else 0


def _remembered(query, key):
  """What tuning on this device found for the shape."""
  (_, Q, H, K), (T, G) = query.shape, key.shape[1:3]
  return tune.remembered(tune.key('attention', 'mosaic_gpu', query.dtype, Q, T, H, G, K), Config)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp [B, H, Q])."""
  def one(rows, mask):
    return _forward(*rows, mask, settings)
  return over_batch(one)(arrays[:3], mask)


def _pad(x, block, axis=1, value=0):
  extra = -x.shape[axis] % block
  return jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)], constant_values=value) if extra else x


def _forward(query, key, value, mask, settings):
  config, dtype = settings.config, query.dtype
  (B, Q, H, K), G = query.shape, key.shape[2]
  block_q, block_k = config.block_q, config.block_k
  c = conditions(mask, WARP_GROUPS * block_q, block_k, by_key=False)
  query, key, value = _pad(query, WARP_GROUPS * block_q), _pad(key, block_k), _pad(value, block_k)
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
    at = (n * WARP_GROUPS + group) * block_q
    g = lax.div(h, jnp.int32(H // G))
    start = first[_row_of(first, b), n]

    def compute(run):
      plgpu.copy_gmem_to_smem(q.at[b, pl.ds(at, block_q), h], q_tile.at[group], arrived.at[group])
      plgpu.barrier_wait(arrived.at[group])
      for i in range(V):
        plgpu.copy_gmem_to_smem(queries.at[_row_of(queries, b), i, pl.ds(at, block_q)], q_vectors.at[group, i],
                                arrived.at[group])
        plgpu.barrier_wait(arrived.at[group])
      total, maximum = zeros(block_q), plgpu.layout_cast(jnp.full((block_q,), NOTHING, jnp.float32), ROWS)
      acc, maximum, total = run((zeros(block_q, K), maximum, total))
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
      x = product((block_q, block_k), q_tile.at[group], k_tile.transpose((1, 0))) * (settings.scale * LOG2E)
      there = seen(c, x.shape, at, column, _vectors([q_vectors.at[group, i] for i in range(V)], ROWS),
                   _vectors(k_vectors, COLUMNS), transposed=False)
      if there is not None:
        x = jnp.where(there, x, -jnp.inf)
      new = jnp.maximum(maximum, x.max(axis=1))
      shrink = jnp.exp2(maximum - new)
      p = jnp.exp2(x - lax.broadcast_in_dim(new, x.shape, [0]))
      total = total * shrink + p.sum(axis=1)
      acc = acc * lax.broadcast_in_dim(shrink, acc.shape, [0])
      acc = add_product(acc, p.astype(dtype), v_tile, staged_all.at[group] if staged_there else None)
      return acc, new, total

    tile = plgpu.BlockSpec((block_k, K), lambda j: (start + j, 0), transforms=mosaic_gpu.tiled(K, dtype))
    vector = plgpu.BlockSpec((block_k,), lambda j: (start + j,))
    key_vectors = [keys.at[_row_of(keys, b), i] for i in range(W)]
    pipeline(visit, compute, count[_row_of(count, b), n], [tile, tile, *[vector] * W], config.stages)(
        k.at[b, :, g], v.at[b, :, g], *key_vectors)

  length = query.shape[1]
  scratch = [matrix(block_q, K, dtype), plgpu.SMEM((WARP_GROUPS, block_q), jnp.float32),
             plgpu.Barrier(num_barriers=WARP_GROUPS),
             *([plgpu.SMEM((WARP_GROUPS, V, block_q), jnp.int32)] if V else []), *staging(block_q, block_k, dtype)]
  out, lse = launch(
      attention_forward, (query, key, value, jnp.asarray(c.first), jnp.asarray(c.count), *vectors),
      [jax.ShapeDtypeStruct(query.shape, dtype), jax.ShapeDtypeStruct((B, H, length), jnp.float32)],
      (H, length // (WARP_GROUPS * block_q), B), scratch)
  return out[:, :Q], lse[:, :, :Q]


def backward(arrays, mask, out, lse_BxHxQ, delta_BxHxQ, d_out, settings):
  """Gradients of `arrays`."""
  def one(rows, mask):
    return _backward_query(*rows, mask, settings), *_backward_key(*rows, mask, settings)
  del out
  # exp(logits - inf) = 0 for a query that reads nothing
  lse_BxHxQ = jnp.where(lse_BxHxQ == -jnp.inf, jnp.inf, lse_BxHxQ) * LOG2E
  gradients = over_batch(one)((*arrays[:3], d_out, lse_BxHxQ, delta_BxHxQ), mask)
  return gradient.Arrays(*gradients, None, None)


def _backward_query(query, key, value, d_out, lse, delta, mask, settings):
  """d_query [B, Q, H, K]. `lse` in units of log 2."""
  config, dtype = settings.config, query.dtype
  (B, Q, H, K), G = query.shape, key.shape[2]
  block_q, block_k = config.query_block_q, config.query_block_k
  c = conditions(mask, WARP_GROUPS * block_q, block_k, by_key=False)
  query, d_out = (_pad(x, WARP_GROUPS * block_q) for x in (query, d_out))
  lse, delta = _pad(lse, WARP_GROUPS * block_q, 2, np.inf), _pad(delta, WARP_GROUPS * block_q, 2)
  key, value = _pad(key, block_k), _pad(value, block_k)
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
    at = (n * WARP_GROUPS + group) * block_q
    kh = lax.div(h, jnp.int32(H // G))
    start = first[_row_of(first, b), n]
    mine = pl.ds(at, block_q)

    def compute(run):
      copies = [(q.at[b, mine, h], q_tile.at[group]), (g.at[b, mine, h], g_tile.at[group]),
                (lse.at[b, h, mine], floats.at[group, 0]), (delta.at[b, h, mine], floats.at[group, 1]),
                *((queries.at[_row_of(queries, b), i, mine], q_vectors.at[group, i]) for i in range(V))]
      for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, arrived.at[group])
        plgpu.barrier_wait(arrived.at[group])
      r, d = _vectors([floats.at[group, 0], floats.at[group, 1]], ROWS)
      acc, *_ = run((zeros(block_q, K), r, d))
      q_tile[group] = (acc * settings.scale).astype(dtype)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(q_tile.at[group], d_q.at[b, mine, h])
      plgpu.wait_smem_to_gmem(0)

    def visit(index, k_tile, v_tile, *more):
      *k_vectors, (acc, r, d) = more
      shape = block_q, block_k
      x = product(shape, q_tile.at[group], k_tile.transpose((1, 0))) * (settings.scale * LOG2E)
      p = jnp.exp2(x - lax.broadcast_in_dim(r, shape, [0]))
      there = seen(c, shape, at, (start + index[0]) * block_k,
                   _vectors([q_vectors.at[group, i] for i in range(V)], ROWS), _vectors(k_vectors, COLUMNS),
                   transposed=False)
      if there is not None:
        p = jnp.where(there, p, 0.0)
      d_p = product(shape, g_tile.at[group], v_tile.transpose((1, 0)))
      d_x = p * (d_p - lax.broadcast_in_dim(d, shape, [0]))
      acc = add_product(acc, d_x.astype(dtype), k_tile, staged_all.at[group] if staged_there else None)
      return acc, r, d

    tile = plgpu.BlockSpec((block_k, K), lambda j: (start + j, 0), transforms=mosaic_gpu.tiled(K, dtype))
    vector = plgpu.BlockSpec((block_k,), lambda j: (start + j,))
    pipeline(visit, compute, count[_row_of(count, b), n], [tile, tile, *[vector] * W], config.backward_stages)(
        k.at[b, :, kh], v.at[b, :, kh], *(keys.at[_row_of(keys, b), i] for i in range(W)))

  scratch = [matrix(block_q, K, dtype), matrix(block_q, K, dtype), plgpu.SMEM((WARP_GROUPS, 2, block_q), jnp.float32),
             plgpu.Barrier(num_barriers=WARP_GROUPS),
             *([plgpu.SMEM((WARP_GROUPS, V, block_q), jnp.int32)] if V else []), *staging(block_q, block_k, dtype)]
  length = query.shape[1]
  d_query = launch(
      attention_query, (query, key, value, d_out, lse, delta, jnp.asarray(c.first), jnp.asarray(c.count), *vectors),
      jax.ShapeDtypeStruct(query.shape, dtype), (H, length // (WARP_GROUPS * block_q), B), scratch)
  return d_query[:, :Q]


def _backward_key(query, key, value, d_out, lse, delta, mask, settings):
  """d_key, d_value [B, T, G, K]: each query head's share first, which XLA sums."""
  config, dtype = settings.config, query.dtype
  (B, Q, H, K), (T, G) = query.shape, key.shape[1:3]
  block_q, block_k = config.key_block_q, config.key_block_k
  c = conditions(mask, block_q, WARP_GROUPS * block_k, by_key=True)
  query, d_out = _pad(query, block_q), _pad(d_out, block_q)
  lse, delta = _pad(lse, block_q, 2, np.inf), _pad(delta, block_q, 2)
  key, value = _pad(key, WARP_GROUPS * block_k), _pad(value, WARP_GROUPS * block_k)
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
    at = (n * WARP_GROUPS + group) * block_k
    kh = lax.div(h, jnp.int32(H // G))
    start = first[_row_of(first, b), n]
    mine = pl.ds(at, block_k)

    def compute(run):
      copies = [(k.at[b, mine, kh], k_tile.at[group]), (v.at[b, mine, kh], v_tile.at[group]),
                *((keys.at[_row_of(keys, b), i, mine], k_vectors.at[group, i]) for i in range(W))]
      for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, arrived.at[group])
        plgpu.barrier_wait(arrived.at[group])
      sum_k, sum_v = run((zeros(block_k, K), zeros(block_k, K)))
      for share, to in ((sum_k * settings.scale, d_k), (sum_v, d_v)):
        share_tile[group] = share.astype(to.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(share_tile.at[group], to.at[b, mine, h])
        plgpu.wait_smem_to_gmem(0)

    def visit(index, q_tile, g_tile, lse_tile, delta_tile, *more):
      *q_vectors, (sum_k, sum_v) = more
      shape = block_k, block_q
      staged = staged_all.at[group] if staged_there else None
      r, d = _vectors([lse_tile, delta_tile], COLUMNS)
      x = product(shape, k_tile.at[group], q_tile.transpose((1, 0))) * (settings.scale * LOG2E)
      p = jnp.exp2(x - lax.broadcast_in_dim(r, shape, [1]))
      there = seen(c, shape, (start + index[0]) * block_q, at, _vectors(q_vectors, COLUMNS),
                   _vectors([k_vectors.at[group, i] for i in range(W)], ROWS), transposed=True)
      if there is not None:
        p = jnp.where(there, p, 0.0)
      sum_v = add_product(sum_v, p.astype(dtype), g_tile, staged)
      d_p = product(shape, v_tile.at[group], g_tile.transpose((1, 0)))
      d_x = p * (d_p - lax.broadcast_in_dim(d, shape, [1]))
      sum_k = add_product(sum_k, d_x.astype(dtype), q_tile, staged)
      return sum_k, sum_v

    tile = plgpu.BlockSpec((block_q, K), lambda j: (start + j, 0), transforms=mosaic_gpu.tiled(K, dtype))
    vector = plgpu.BlockSpec((block_q,), lambda j: (start + j,))
    pipeline(visit, compute, count[_row_of(count, b), n], [tile, tile, *[vector] * (2 + V)], config.backward_stages)(
        q.at[b, :, h], g.at[b, :, h], lse.at[b, h], delta.at[b, h],
        *(queries.at[_row_of(queries, b), i] for i in range(V)))

  length = key.shape[1]
  share = jax.ShapeDtypeStruct((B, length, H, K), dtype if H == G else jnp.float32)  # not rounded before they are summed
  scratch = [matrix(block_k, K, dtype), matrix(block_k, K, dtype), matrix(block_k, K, share.dtype),
             plgpu.Barrier(num_barriers=WARP_GROUPS),
             *([plgpu.SMEM((WARP_GROUPS, W, block_k), jnp.int32)] if W else []), *staging(block_k, block_q, dtype)]
  shares = launch(
      attention_key, (query, key, value, d_out, lse, delta, jnp.asarray(c.first), jnp.asarray(c.count), *vectors),
      [share, share], (H, length // (WARP_GROUPS * block_k), B), scratch)
  return [x[:, :T].reshape(B, T, G, H // G, K).sum(3, dtype=jnp.float32).astype(dtype) for x in shares]
