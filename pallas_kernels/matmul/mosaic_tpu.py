"""The product in Pallas for TPUs: a grid of tiles, each summed over its steps of K in VMEM. Interpreted on a CPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.matmul import epilogue
from pallas_kernels.matmul.epilogue import Operands, Settings
from pallas_kernels.runtime import device
from pallas_kernels.runtime.batching import over_batch


@dataclasses.dataclass(frozen=True)
class Config:
  """Tiles of the result and the step along K. 512 x 512 reads 256 FLOPs a byte in bfloat16; unmeasured."""
  block_m: int = 512
  block_n: int = 512
  block_k: int = 512


LANES = 128
SUBLANES = 32  # of 8-bit values; a multiple of those of wider ones


def _kernel(order, visible, a, b, c, bias, a_scale, b_scale, out, total, *, K, steps_of_row, settings):
  """One step of K of one tile. References are None where there is no such operand."""
  row, step = pl.program_id(1), pl.program_id(3)
  block_k = a.shape[2]

  @pl.when(step == 0)
  def _():
    total[...] = jnp.zeros_like(total)

  here = step if steps_of_row is None else order[row, step // steps_of_row] * steps_of_row + step % steps_of_row
  last = None if steps_of_row is None else visible[row] * steps_of_row

  @pl.when(True if last is None else step < last)
  def _():
    x, y = a[0], b[0]
    if K % block_k:  # what lies beyond the end is undefined
      inside = here * block_k + jax.lax.broadcasted_iota(jnp.int32, (1, block_k), 1) < K
      x = jnp.where(inside, x.astype(_wide(x.dtype)), 0).astype(x.dtype)
      inside = here * block_k + jax.lax.broadcasted_iota(jnp.int32, (block_k, 1), 0) < K
      y = jnp.where(inside, y.astype(_wide(y.dtype)), 0).astype(y.dtype)
    if x.dtype.itemsize == 1 and x.dtype != jnp.int8:
      x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)  # float8 fits bfloat16 exactly
    total[...] += jnp.dot(x, y, preferred_element_type=total.dtype,
                          precision='highest' if x.dtype == jnp.float32 else None)

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    def read(ref):
      return None if ref is None else ref[...]
    given = Operands(None, None, read(c), None, None, None)
    x = total[...][None]
    wide = x.astype(jnp.float32) if a_scale is not None or b_scale is not None else x
    if a_scale is not None:
      wide = wide * a_scale[...]
    if b_scale is not None:
      wide = wide * b_scale[...]
    out[...] = epilogue.finish(wide, given._replace(bias=None if bias is None else bias[:, 0]), settings)


def _wide(dtype):
  return jnp.int32 if dtype == jnp.int8 else jnp.float32


def _fit(block, size, unit):
  """The block, or the whole axis (to a whole tile of the hardware) where that is shorter."""
  return min(block, -(-size // unit) * unit)


def forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """The kernel's call; [L, M, N]."""
  a, b, c, bias, a_scale, b_scale = operands
  (L, M, K), N = a.shape, b.shape[2]
  config = settings.config or Config()
  block_m, block_n = _fit(config.block_m, M, SUBLANES), _fit(config.block_n, N, LANES)
  block_k = _fit(config.block_k, K, LANES)
  rows, steps, steps_of_row = pl.cdiv(M, block_m), pl.cdiv(K, block_k), None
  order: Any = np.zeros((1, 1), np.int32)
  visible: Any = np.zeros(1, np.int32)
  if block_mask is not None:
    size_m, size_k = M // block_mask.shape[0], K // block_mask.shape[1]
    block_m, block_k = min(block_m, size_m), min(block_k, size_k)
    if size_m % block_m or size_k % block_k or block_m % 8 or block_k % LANES:
      raise NotImplementedError(
          f'matmul implementation mosaic_tpu needs mask blocks of multiples of its tile; block_mask has blocks '
          f'{size_m} x {size_k}, the tile is {block_m} x {block_k}, and tiles are multiples of 8 x {LANES}')
    rows, steps_of_row = M // block_m, size_k // block_k
    xp = jnp if isinstance(block_mask, jax.Array) else np
    order = xp.argsort(~block_mask, axis=1, stable=True).astype(np.int32).repeat(size_m // block_m, 0)
    visible = block_mask.sum(1).astype(np.int32).repeat(size_m // block_m, 0)
    # A mask that is known has no more steps than its fullest row; a step beyond a row's last loads nothing new.
    steps = block_mask.shape[1] * steps_of_row if xp is jnp else max(1, int(visible.max(initial=0))) * steps_of_row

  def at(row, step, order, visible):
    if steps_of_row is None:
      return step
    step = jnp.clip(step, 0, jnp.maximum(visible[row] * steps_of_row - 1, 0))
    return order[row, step // steps_of_row] * steps_of_row + step % steps_of_row
  def batch(x, l):
    return l if x.shape[0] > 1 else 0
  specs = [
      pl.BlockSpec((1, block_m, block_k), lambda l, i, j, s, *p: (l, i, at(i, s, *p))),
      pl.BlockSpec((1, block_k, block_n), lambda l, i, j, s, *p: (batch(b, l), at(i, s, *p), j)),
      c is not None and pl.BlockSpec((1, block_m, block_n), lambda l, i, j, s, *p: (l, i, j)),
      bias is not None and pl.BlockSpec((1, 1, block_n), lambda l, i, j, s, *p: (batch(bias, l), 0, j)),
      a_scale is not None and pl.BlockSpec((1, block_m, 1), lambda l, i, j, s, *p: (batch(a_scale, l), i, 0)),
      b_scale is not None and pl.BlockSpec((1, 1, block_n), lambda l, i, j, s, *p: (batch(b_scale, l), 0, j))]
  full = lambda x, n: jnp.broadcast_to(x, (x.shape[0], n))
  values = [a, b, c, None if bias is None else bias[:, None], None if a_scale is None else full(a_scale, M)[:, :, None],
            None if b_scale is None else full(b_scale, N)[:, None]]
  given = [v is not None for v in values]

  def kernel(order, visible, *refs):
    refs = iter(refs)
    inputs = [next(refs) if g else None for g in given]
    _kernel(order, visible, *inputs, *refs, K=K, steps_of_row=steps_of_row, settings=settings)
  sum_dtype = jnp.int32 if a.dtype == jnp.int8 else jnp.float32
  return pl.pallas_call(
      kernel, out_shape=jax.ShapeDtypeStruct((L, M, N), settings.out_dtype),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2, grid=(L, rows, pl.cdiv(N, block_n), steps),
          in_specs=[s for s, g in zip(specs, given) if g],
          out_specs=pl.BlockSpec((1, block_m, block_n), lambda l, i, j, s, *p: (l, i, j)),
          scratch_shapes=[pltpu.VMEM((block_m, block_n), sum_dtype)]),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary')),
      cost_estimate=pl.CostEstimate(
          flops=2 * L * M * N * K, transcendentals=0,
          bytes_accessed=sum(v.size * v.dtype.itemsize for v in values if v is not None) + L * M * N * 4),
      interpret=device.platform() == 'cpu', name='matmul',
  )(order, visible, *(v for v in values if v is not None))


def matmul(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """See dispatch.matmul; [L, M, N]."""
  if operands.a.dtype == jnp.float16:
    raise NotImplementedError('matmul implementation mosaic_tpu has no float16, which TPUs lack; expected bfloat16')
  if settings.precision == 'tf32':
    raise NotImplementedError('matmul implementation mosaic_tpu has no tf32, which TPUs lack; expected float32')
  return epilogue.product(batched_forward, settings, operands, block_mask)


def batched_forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """`forward`, fit for jax.vmap; a block mask is not mapped."""
  def one(rows, shared):
    (a, c), (b, bias, a_scale, b_scale) = rows, shared
    return forward(Operands(a, b, c, bias, a_scale, b_scale), block_mask, settings)
  o = operands
  return over_batch(one)((o.a, o.c), (o.b, o.bias, o.a_scale, o.b_scale))
