"""What the Hopper kernels of attention share: masks of tiles, products, the pipeline, the launch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention.mask import Mask
from pallas_kernels.runtime import mosaic_gpu

WARP_GROUPS = 2
ROWS, COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # one value a row, one a column of a tile


class Conditions(NamedTuple):
  """A mask as what a tile needs: integers a query and a key, and the range of blocks a program visits.

  Attributes:
    first, count: int32 [B or 1, programs].
    queries: int32 [B or 1, V, Q]: start and end, then stamps and segments as far as there are such; V 0: see `causal`.
    keys: int32 [B or 1, W, T]: stamps and segments.
    stamps, segments, causal: whether there are such; causal without start and end.
  """
  first: jax.Array
  count: jax.Array  # type: ignore[assignment]  # hides a tuple's method
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
  """total + a @ b, a in registers. The interpreter has neither that nor an initial value: there a goes by `staged`."""
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


def vectors(refs, layout):
  return [mosaic_gpu.load(ref, layout) for ref in refs]


def row_of(x, batch):
  return batch if x.shape[0] > 1 else 0


def pad(x, block, axis=1, value=0):
  extra = -x.shape[axis] % block
  return jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)], constant_values=value) if extra else x
