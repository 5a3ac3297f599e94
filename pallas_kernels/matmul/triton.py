"""The product in Triton, sm80 and later: every dtype and epilogue, block-sparse A. Compiled by jax-triton."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.matmul import epilogue
from pallas_kernels.matmul.epilogue import Operands, Settings
from pallas_kernels.runtime import triton_call, tune
from pallas_kernels.runtime.batching import over_batch
from pallas_kernels.runtime.triton_call import tl, triton


@dataclasses.dataclass(frozen=True)
class Config:
  """A program computes a tile [block_m, block_n] in steps of block_k; `group` rows of tiles share b in the cache."""
  block_m: int = 128
  block_n: int = 128
  block_k: int = 64
  warps: int = 8
  stages: int = 3
  group: int = 8


# Without spills and with tensor-core instructions on H100 and A100, by tests/kernels/test_compile.py; unmeasured.
DEFAULTS = {
    'float32': Config(64, 128, 16, warps=8, stages=2),
    'tf32': Config(128, 128, 32, warps=8, stages=3),
    'bfloat16': Config(128, 256, 64, warps=8, stages=3),
    'float16': Config(128, 256, 64, warps=8, stages=3),
    'float8_e4m3fn': Config(128, 128, 128, warps=8, stages=3),
    'float8_e5m2': Config(128, 128, 128, warps=8, stages=3),
    'int8': Config(128, 128, 128, warps=8, stages=3),
}
NONE, SCALAR, VECTOR = 0, 1, 2  # kinds of scale


@triton.jit
def product_kernel(
    a, b, c, bias, a_scale, b_scale, order, visible, out,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, B_BATCHED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, B_BY_COLUMN: tl.constexpr,
    SPARSE_M: tl.constexpr, SPARSE_K: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    BIAS_ROWS: tl.constexpr, A_SCALE: tl.constexpr, A_SCALE_ROWS: tl.constexpr,
    B_SCALE: tl.constexpr, B_SCALE_ROWS: tl.constexpr, ACTIVATION: tl.constexpr,
    SUM: tl.constexpr, FINISH: tl.constexpr, PRECISION: tl.constexpr):
  """One tile of out [L, M, N]. SPARSE_M, SPARSE_K: the mask's block, 0 where a is dense; FINISH: epilogue's dtype."""
  tiles_m: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
  tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
  program = tl.program_id(0)
  batch = tl.program_id(1).to(tl.int64)
  first = program // (GROUP * tiles_n) * GROUP
  rows_of_group = min(tiles_m - first, GROUP)
  tile_m = first + program % (GROUP * tiles_n) % rows_of_group
  tile_n = program % (GROUP * tiles_n) // rows_of_group

  m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
  n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
  k = tl.arange(0, BLOCK_K)
  a += batch * M * K
  if B_BATCHED:
    b += batch * K * N
  a_tile = a + m[:, None] * K + k[None, :]
  if B_BY_COLUMN:
    b_tile = b + n[None, :] * K + k[:, None]
  else:
    b_tile = b + k[:, None] * N + n[None, :]
  step_b: tl.constexpr = 1 if B_BY_COLUMN else N

  total = tl.zeros((BLOCK_M, BLOCK_N), SUM)
  if SPARSE_M > 0:
    blocks: tl.constexpr = K // SPARSE_K
    row = tile_m * BLOCK_M // SPARSE_M
    for i in range(0, tl.load(visible + row)):
      at = tl.load(order + row * blocks + i) * SPARSE_K
      for inner in range(0, SPARSE_K, BLOCK_K):
        x = tl.load(a_tile + at + inner)
        y = tl.load(b_tile + (at + inner) * step_b, mask=n[None, :] < N, other=0.0)
        total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=SUM)
  else:
    for at in range(0, K, BLOCK_K):
      if M % BLOCK_M == 0 and K % BLOCK_K == 0:
        x = tl.load(a_tile + at)
      else:
        x = tl.load(a_tile + at, mask=(m[:, None] < M) & (at + k[None, :] < K), other=0.0)
      if N % BLOCK_N == 0 and K % BLOCK_K == 0:
        y = tl.load(b_tile + at * step_b)
      else:
        y = tl.load(b_tile + at * step_b, mask=(n[None, :] < N) & (at + k[:, None] < K), other=0.0)
      total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=SUM)

  x = total.to(FINISH)
  if A_SCALE == 1:
    x = x * tl.load(a_scale + (batch if A_SCALE_ROWS > 1 else 0))
  elif A_SCALE == 2:
    x = x * tl.load(a_scale + (batch * M if A_SCALE_ROWS > 1 else 0) + m, mask=m < M, other=0.0)[:, None]
  if B_SCALE == 1:
    x = x * tl.load(b_scale + (batch if B_SCALE_ROWS > 1 else 0))
  elif B_SCALE == 2:
    if B_SCALE_ROWS > 1:
      b_scale += batch * N
    x = x * tl.load(b_scale + n, mask=n < N, other=0.0)[None, :]
  if ALPHA != 1:
    x = x * ALPHA
  inside = (m[:, None] < M) & (n[None, :] < N)
  at = batch * M * N + m[:, None] * N + n[None, :]
  if BETA != 0:
    x = x + BETA * tl.load(c + at, mask=inside, other=0.0).to(FINISH)
  if BIAS_ROWS > 0:
    if BIAS_ROWS > 1:
      bias += batch * N
    x = x + tl.load(bias + n, mask=n < N, other=0.0).to(FINISH)[None, :]
  if ACTIVATION == 'relu':
    x = tl.maximum(x, 0)
  elif ACTIVATION == 'silu':
    x = x * tl.sigmoid(x)
  elif ACTIVATION == 'gelu':  # x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
  tl.store(out + at, x.to(out.dtype.element_ty), mask=inside)


def pick(M: int, N: int, K: int, name: str) -> Config:
  """The default of a dtype, with no side of a tile much longer than the matrix."""
  c = DEFAULTS[name]
  def fit(block, size, least):
    return max(least, min(block, 1 << (size - 1).bit_length()))
  return dataclasses.replace(c, block_m=fit(c.block_m, M, 16), block_n=fit(c.block_n, N, 16),
                             block_k=fit(c.block_k, K, 32))


def forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """The kernel's call; [L, M, N]."""
  a, b, c, bias, a_scale, b_scale = operands
  (L, M, K), N = a.shape, b.shape[2]
  name = 'tf32' if settings.precision == 'tf32' else str(a.dtype)
  config = settings.config or tune.remembered(tune.key('matmul', 'triton', name, M, N, K), Config) or pick(
      M, N, K, name)
  if settings.config is None and block_mask is not None:
    config = _within_blocks(config, M // block_mask.shape[0], K // block_mask.shape[1])
  grid = math.ceil(M / config.block_m) * math.ceil(N / config.block_n), L
  nothing: Any = np.zeros(1, np.int32)
  sparse_m = sparse_k = 0
  order = visible = nothing
  if block_mask is not None:
    sparse_m, sparse_k = M // block_mask.shape[0], K // block_mask.shape[1]
    if sparse_m % config.block_m or sparse_k % config.block_k:
      raise NotImplementedError(
          f'matmul implementation triton needs mask blocks that are multiples of its tile; block_mask has blocks '
          f'{sparse_m} x {sparse_k}, the tile is {config.block_m} x {config.block_k}')
    xp = jnp if isinstance(block_mask, jax.Array) else np
    order = xp.argsort(~block_mask, axis=1, stable=True).astype(np.int32)
    visible = block_mask.sum(1).astype(np.int32)
  # The tensor cores read 8-bit operands along K only.
  by_column = a.dtype.itemsize == 1
  sums = tl.int32 if a.dtype == jnp.int8 else tl.float32
  whole = a.dtype == jnp.int8 and epilogue.is_whole(operands, settings)
  def kind(scale):
    return NONE if scale is None else SCALAR if scale.shape[1] == 1 else VECTOR
  def given(x):
    return nothing if x is None else x
  [out] = triton_call.call(
      product_kernel, a, b.swapaxes(1, 2) if by_column else b, given(c), given(bias), given(a_scale), given(b_scale),
      order, visible, grid=grid, out=[jax.ShapeDtypeStruct((L, M, N), settings.out_dtype)], warps=config.warps,
      stages=config.stages, M=M, N=N, K=K, B_BATCHED=b.shape[0] > 1, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
      BLOCK_K=config.block_k, GROUP=config.group, B_BY_COLUMN=by_column, SPARSE_M=sparse_m, SPARSE_K=sparse_k,
      ALPHA=settings.alpha, BETA=0 if c is None else settings.beta, BIAS_ROWS=0 if bias is None else bias.shape[0],
      A_SCALE=kind(a_scale), A_SCALE_ROWS=len(given(a_scale)), B_SCALE=kind(b_scale), B_SCALE_ROWS=len(given(b_scale)),
      ACTIVATION=settings.activation or '', SUM=sums,
      FINISH=tl.int32 if whole else tl.float32, PRECISION='tf32' if name == 'tf32' else 'ieee')
  return out


def _within_blocks(config, m, k):
  """The config with tiles that divide a mask's blocks, as far as powers of two from 16 do."""
  def fit(block, size):
    while block > 16 and size % block:
      block //= 2
    return block
  return dataclasses.replace(config, block_m=fit(config.block_m, m), block_k=fit(config.block_k, k))


def matmul(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """See dispatch.matmul; [L, M, N]."""
  if operands.a.dtype != operands.b.dtype:
    raise NotImplementedError(f'matmul implementation triton has no product of {operands.a.dtype} and '
                              f'{operands.b.dtype}; expected one dtype')
  return epilogue.product(batched_forward, settings, operands, block_mask)


def batched_forward(operands: Operands, block_mask: jax.Array | None, settings: Settings) -> jax.Array:
  """`forward`, fit for jax.vmap; a block mask is not mapped."""
  def one(rows, shared):
    (a, c), (b, bias, a_scale, b_scale) = rows, shared
    return forward(Operands(a, b, c, bias, a_scale, b_scale), block_mask, settings)
  o = operands
  return over_batch(one)((o.a, o.c), (o.b, o.bias, o.a_scale, o.b_scale))
