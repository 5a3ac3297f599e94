"""The traffic counter: the lecture's 3 x 3 product, the closed form, BlockSpecs, skipped blocks; and its command."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl

from pallas_kernels.attention.mask import Mask
from pallas_kernels.traffic import count as traffic


@pytest.mark.parametrize('block_m, block_n, reads', [(1, 1, 54), (3, 1, 36), (1, 3, 36), (3, 3, 18)])
def test_three_by_three(block_m, block_n, reads):
  counted = traffic.matmul(3, 3, 3, block_m, block_n)
  assert (counted.reads, counted.writes, counted.least_reads) == (reads, 9, 18)
  assert counted.bytes == 4 * (reads + 9)


def pallas_product(m, n, k, block_m, block_n):
  def kernel(a, b, c):
    c[...] = a[...] @ b[...]
  return lambda a, b: pl.pallas_call(
      kernel, grid=(-(-m // block_m), -(-n // block_n)), out_shape=jax.ShapeDtypeStruct((m, n), jnp.float32),
      in_specs=[pl.BlockSpec((block_m, k), lambda i, j: (i, 0)), pl.BlockSpec((k, block_n), lambda i, j: (0, j))],
      out_specs=pl.BlockSpec((block_m, block_n), lambda i, j: (i, j)), interpret=True)(a, b)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(*[st.integers(1, 20)] * 5)
def test_a_plan_equals_the_blockspecs_of_a_kernel_and_a_count_by_hand(m, n, k, block_m, block_n):
  block_m, block_n = min(block_m, m), min(block_n, n)
  shapes = jax.ShapeDtypeStruct((m, k), jnp.float32), jax.ShapeDtypeStruct((k, n), jnp.float32)
  [counted] = traffic.of_pallas(pallas_product(m, n, k, block_m, block_n), *shapes, reuse='every')
  plan = traffic.matmul(m, n, k, block_m, block_n)
  by_hand = 0
  for i in range(0, m, block_m):
    for j in range(0, n, block_n):
      by_hand += (min(m, i + block_m) - i) * k + k * (min(n, j + block_n) - j)
  assert counted.reads == plan.reads == by_hand
  assert counted.writes == plan.writes == m * n
  assert counted.least_reads == plan.least_reads == m * k + k * n
  # A tile of A stays while the tile of B moves along the row.
  [pipelined] = traffic.of_pallas(pallas_product(m, n, k, block_m, block_n), *shapes, reuse='pipeline')
  assert pipelined.least_reads <= pipelined.reads <= counted.reads


def test_blocks_that_a_mask_leaves_out_are_not_counted():
  full = traffic.attention((1, 2048, 8, 64), 2048, 2, Mask(2048, 2048), 128, 128)
  causal = traffic.attention((1, 2048, 8, 64), 2048, 2, Mask(2048, 2048, is_causal=True), 128, 128)
  key = [t.arrays[1].moved for t in (full, causal)]
  assert key[0] == 8 * 16 * 2048 * 64 and key[1] == key[0] * 136 // 256
  assert full.arrays[1].least == 2 * 2048 * 64
  mask = np.array([[True, False], [False, False], [True, True]])
  sparse = traffic.matmul(6, 5, 8, 2, 5, block_mask=mask)
  assert [a.moved for a in sparse.arrays] == [3 * 2 * 4, 3 * 4 * 5, 30]


def test_prefetched_index_maps_are_refused():
  from pallas_kernels.matmul import matmul
  x = jax.ShapeDtypeStruct((128, 128), jnp.float32)
  with pytest.raises(NotImplementedError, match='prefetched'):
    traffic.of_pallas(lambda a, b: matmul(a, b, implementation='mosaic_tpu'), x, x)


def test_roofline_bends_at_the_ridge():
  assert traffic.attainable(10, 1000, 10) == 100 and traffic.attainable(1000, 1000, 10) == 1000


def run(*arguments):
  return subprocess.run([sys.executable, '-m', 'pallas_kernels.traffic', *arguments], capture_output=True, text=True,
                        env=os.environ | {'JAX_PLATFORMS': 'cpu'})


def test_command():
  result = run('--op=matmul', '--m=3', '--n=3', '--k=3', '--block=3')
  assert result.returncode == 0, result.stderr
  rows = [line.split() for line in result.stdout.splitlines()[1:4]]
  assert [row[4] for row in rows] == ['54', '36', '18']
  assert 'ridge at 295 FLOP/byte' in result.stdout
  refused = run('--device=h10')
  assert refused.returncode and 'h100' in refused.stderr
