"""The product in Pallas Mosaic GPU for Hopper: persistent, warp-specialised, TMA copies, wgmma.

One warp group copies tiles of A and B into shared memory, several steps ahead; two compute, each on its half of the
rows of a tile of C. A program walks many tiles, in an order in which neighbours share operands in the L2 cache. Scales,
beta * C, bias and activation are applied to a tile in registers. Run by the Mosaic GPU interpreter on a CPU (jax 0.11
and later).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.matmul import epilogue
from pallas_kernels.matmul.epilogue import Operands, Settings
from pallas_kernels.runtime import device, mosaic_gpu, tune
from pallas_kernels.runtime.batching import over_batch


@dataclasses.dataclass(frozen=True)
class Config:
  """A compute warp group makes [block_m, block_n] of C, a program twice that many rows; `stages` steps of block_k are
  under way; tiles are walked in columns of `width`."""
  block_m: int = 128
  block_n: int = 128
  block_k: int = 64
  stages: int = 4
  width: int = 8


WARP_GROUPS = 2
STORE_ROWS, STORE_BYTES = 64, 128  # what of C goes to memory at a time
OUTPUTS = jnp.float32, jnp.bfloat16, jnp.float16  # and what is added to it


def pick(name: str) -> Config:
  """128 bytes of K a step, whatever the dtype: one swizzle. Without spills by tests/kernels/test_compile.py."""
  size = 4 if name == 'tf32' else jnp.dtype(name).itemsize
  return Config(block_k=128 // size)


def _finish(x, batch, row, column, given, settings):
  """epilogue.finish of the piece of a tile [STORE_ROWS, n] whose corner is (row, column), in registers.

  `given`: references in global memory, which each piece reads for itself: a_scale, b_scale, c and bias as far as there
  are such.
  """
  rows, columns = pl.ds(row, x.shape[0]), pl.ds(column, x.shape[1])
  def read(name, *where):
    ref = given[name]
    layout = plgpu.Layout.WGMMA if len(where) == 2 else plgpu.Layout.WGMMA.reduce(0 if where[0] is columns else 1)
    x = mosaic_gpu.load(ref.at[batch if ref.shape[0] > 1 else 0, *where], layout, optimized=False)
    return x.astype(jnp.float32)
  if 'a_scale' in given:
    x = x * lax.broadcast_in_dim(read('a_scale', rows), x.shape, [0])
  if 'b_scale' in given:
    x = x * lax.broadcast_in_dim(read('b_scale', columns), x.shape, [1])
  if settings.alpha != 1:
    x = x * float(settings.alpha)
  if 'c' in given:
    x = x + float(settings.beta) * read('c', rows, columns)
  if 'bias' in given:
    x = x + lax.broadcast_in_dim(read('bias', columns), x.shape, [1])
  return x if settings.activation is None else mosaic_gpu.ACTIVATIONS[settings.activation](x)


def _kernel(a, b, given, out, *, b_by_column, settings, config):
  """a [L, M, K], b [L or 1, K, N] (by column: [L or 1, N, K]), out [L, M, N]; whole tiles. `given`: see _finish."""
  (L, M, K), N = a.shape, out.shape[2]
  rows = WARP_GROUPS * config.block_m
  tiles_m, tiles_n, steps = M // rows, N // config.block_n, K // config.block_k
  columns_of_store = STORE_BYTES // out.dtype.itemsize
  tiled = mosaic_gpu.tiled(config.block_k, a.dtype)
  b_block = (config.block_n, config.block_k) if b_by_column else (config.block_k, config.block_n)
  b_tiled = tiled if b_by_column else mosaic_gpu.tiled(config.block_n, b.dtype)

  def pipeline(body, compute_context):
    return plgpu.emit_pipeline_warp_specialized(
        body, grid=(steps,), memory_registers=40, wg_axis='warp_group', num_compute_wgs=WARP_GROUPS,
        max_concurrent_steps=min(config.stages, steps), compute_context=compute_context,
        in_specs=[
            plgpu.BlockSpec((rows, config.block_k), lambda k: (0, k), transforms=tiled, memory_space=plgpu.SMEM),
            plgpu.BlockSpec(b_block, lambda k: (0, k) if b_by_column else (k, 0), transforms=b_tiled,
                            memory_space=plgpu.SMEM)])

  def nothing(*_, **__):
    pass

  @functools.partial(
      pl.run_scoped,
      buffers=pipeline(nothing, nothing).get_allocations(a.at[0], b.at[0]),
      staged=plgpu.SMEM((WARP_GROUPS, 2, STORE_ROWS, columns_of_store), out.dtype,
                        transforms=mosaic_gpu.tiled(columns_of_store, out.dtype)),
      collective_axes='warp_group')
  def _(buffers, staged):
    group = lax.axis_index('warp_group')
    mine = pl.ds(group * config.block_m, config.block_m)

    @plgpu.nd_loop((L * tiles_m * tiles_n,), collective_axes='program')
    def _(loop):
      [number] = loop.index
      batch = lax.div(number, jnp.int32(tiles_m * tiles_n))
      row, column = plgpu.planar_snake(
          lax.rem(number, jnp.int32(tiles_m * tiles_n)), (tiles_m, tiles_n), 1, min(config.width, tiles_n))
      where_m, where_n = pl.ds(row * rows, rows), pl.ds(column * config.block_n, config.block_n)

      def compute(run):
        @functools.partial(pl.run_scoped, total=plgpu.ACC((config.block_m, config.block_n), jnp.float32))
        def _(total):
          run(total)
          x = total[...]
          corner = row * rows + group * config.block_m, column * config.block_n
          pieces = [(m, n) for m in range(0, config.block_m, STORE_ROWS)
                    for n in range(0, config.block_n, columns_of_store)]
          for turn, (m, n) in enumerate(pieces):
            piece = _finish(x[m:m + STORE_ROWS, n:n + columns_of_store], batch, corner[0] + m, corner[1] + n, given,
                            settings).astype(out.dtype)
            # What a slot still has to store has to have been read before it is overwritten: the store of two turns
            # ago, or, at the start, whatever the tile before left.
            plgpu.wait_smem_to_gmem(min(turn, 1), wait_read_only=True)
            slot = staged.at[group, turn % 2]
            slot[...] = piece
            plgpu.commit_smem()
            to = out.at[batch, where_m, where_n].at[mine]
            plgpu.copy_smem_to_gmem(slot, to.at[pl.ds(m, STORE_ROWS), pl.ds(n, columns_of_store)])

      def step(_, a_tile, b_tile, total):
        plgpu.wgmma(total, a_tile.at[mine], b_tile.transpose((1, 0)) if b_by_column else b_tile)
        plgpu.wgmma_wait(0)
        return total

      b_batch = batch if b.shape[0] > 1 else 0
      columns = b.at[b_batch, where_n] if b_by_column else b.at[b_batch, :, where_n]
      pipeline(step, compute)(a.at[batch, where_m], columns, allocations=buffers)
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """The kernel's call, with sides padded to whole tiles; [L, M, N]."""
  del block_mask
  a, b, c, bias, a_scale, b_scale = operands
  (L, M, K), N = a.shape, b.shape[2]
  name = 'tf32' if a.dtype == jnp.float32 else str(a.dtype)
  config = settings.config or tune.remembered(tune.key('matmul', 'mosaic_gpu', name, M, N, K), Config) or pick(name)
  if config.block_m % STORE_ROWS or config.block_n % 64 or (config.block_k * a.dtype.itemsize) % 32:
    raise NotImplementedError(f'matmul implementation mosaic_gpu has tiles of multiples of 64 x 64 and of 32 bytes of '
                              f'K; got {config}')
  rows = WARP_GROUPS * config.block_m
  def pad(x, *multiples):
    widths = [(0, -n % m) for n, m in zip(x.shape, multiples)]
    return jnp.pad(x, widths) if any(w for _, w in widths) else x
  def vector(x, length, multiple):  # one value a row or column, a scalar's too
    return None if x is None else pad(jnp.broadcast_to(x.astype(jnp.float32), (x.shape[0], length)), 1, multiple)
  a, b = pad(a, 1, rows, config.block_k), pad(b, 1, config.block_k, config.block_n)
  b_by_column = a.dtype.itemsize != 2  # wgmma reads other than 16-bit operands along K only
  given = {'a_scale': vector(a_scale, M, rows), 'b_scale': vector(b_scale, N, config.block_n),
           'bias': vector(bias, N, config.block_n), 'c': None if c is None else pad(c, 1, rows, config.block_n)}
  given = {name: x for name, x in given.items() if x is not None}
  def matmul_tiles(a, b, *rest):
    _kernel(a, b, dict(zip(given, rest)), rest[-1], b_by_column=b_by_column, settings=settings, config=config)
  out = plgpu.kernel(
      matmul_tiles,
      out_type=jax.ShapeDtypeStruct((L, a.shape[1], b.shape[2]), settings.out_dtype),
      grid=(device.processors(),), grid_names=('program',), num_threads=WARP_GROUPS + 1, thread_name='warp_group',
      compiler_params=plgpu.CompilerParams(approx_math=True),
  )(a, b.swapaxes(1, 2) if b_by_column else b, *given.values())
  return out[:, :M, :N]


def matmul(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """See dispatch.matmul; [L, M, N]."""
  o = operands
  for name, given in (
      ('int8, which wgmma has but Mosaic GPU has not', o.a.dtype == jnp.int8),
      ("float32 (wgmma multiplies tf32); precision='tf32' does",
       o.a.dtype == jnp.float32 and settings.precision != 'tf32'),
      (f'product of {o.a.dtype} and {o.b.dtype}', o.a.dtype != o.b.dtype), ('block_mask', block_mask is not None),
      (f'c in {o.c is not None and o.c.dtype}', o.c is not None and o.c.dtype not in OUTPUTS),
      (f'out_dtype {settings.out_dtype}', settings.out_dtype not in OUTPUTS)):
    if given:
      raise NotImplementedError(f'matmul implementation mosaic_gpu has no {name}; triton has')
  mosaic_gpu.check('matmul')
  return epilogue.product(batched_forward, settings, operands, block_mask)


def batched_forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """`forward`, fit for jax.vmap."""
  def one(rows, shared):
    (a, c), (b, bias, a_scale, b_scale) = rows, shared
    return forward(Operands(a, b, c, bias, a_scale, b_scale), block_mask, settings)
  o = operands
  return over_batch(one)((o.a, o.c), (o.b, o.bias, o.a_scale, o.b_scale))
