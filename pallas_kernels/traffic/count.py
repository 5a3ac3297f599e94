"""How many elements and bytes a kernel reads and writes in global memory, and the least possible, without running it.

Counted from a plan (grid and tiles), or from the grid and BlockSpecs of a pallas_call. Caches between the kernel and
the memory are not modelled. Hong and Kung 1981 give the trade between fast memory and traffic; the roofline is that of
Williams, Waterman and Patterson 2009.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.mask import Mask

# every: each program loads its blocks. pipeline: a block is loaded when it is another than the step before's, as TPUs
# do. once: every block that is used at all, the least possible.
Reuse = Literal['every', 'pipeline', 'once']


@dataclasses.dataclass(frozen=True)
class Array:
  """The traffic of one array: elements moved, and the least possible."""
  name: str
  shape: tuple[int, ...]
  itemsize: int
  moved: int
  least: int
  is_output: bool


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The traffic of a kernel."""
  arrays: tuple[Array, ...]

  def _sum(self, is_output, per):
    return sum(per(a) for a in self.arrays if a.is_output == is_output)

  @property
  def reads(self) -> int:
    return self._sum(False, lambda a: a.moved)

  @property
  def writes(self) -> int:
    return self._sum(True, lambda a: a.moved)

  @property
  def bytes(self) -> int:
    return sum(a.moved * a.itemsize for a in self.arrays)

  @property
  def least_reads(self) -> int:
    return self._sum(False, lambda a: a.least)

  @property
  def least_bytes(self) -> int:
    return sum(a.least * a.itemsize for a in self.arrays)


def matmul(m: int, n: int, k: int, block_m: int, block_n: int, itemsize: int = 4, out_itemsize: int | None = None,
           block_mask: np.ndarray | None = None) -> Traffic:
  """Of C = A B where each tile [block_m, block_n] of C reads its rows of A and columns of B once: MNK (1/bn + 1/bm).

  With a block mask [R, S] of A, blocks that it leaves out are read neither from A nor, against them, from B;
  block_m divides m / R.
  """
  tiles_m, tiles_n = math.ceil(m / block_m), math.ceil(n / block_n)
  if block_mask is None:
    a_once, b_reads = m * k, k * n * tiles_m
  else:
    rows, columns = block_mask.shape
    size_m, size_k = m // rows, k // columns
    a_once = int(block_mask.sum()) * size_m * size_k
    b_reads = int(block_mask.sum()) * (size_m // block_m) * size_k * n
  b_once = k * n if block_mask is None else int(block_mask.any(0).sum()) * (k // block_mask.shape[1]) * n
  return Traffic((
      Array('A', (m, k), itemsize, a_once * tiles_n, a_once, False),
      Array('B', (k, n), itemsize, b_reads, b_once, False),
      Array('C', (m, n), out_itemsize or itemsize, m * n, m * n, True)))


def attention(query_shape: Sequence[int], keys: int, groups: int, mask: Mask, block_q: int, block_k: int,
              itemsize: int = 2) -> Traffic:
  """Of the forward pass: each block of queries reads the blocks of keys and values that its mask does not skip."""
  B, Q, H, K = query_shape
  visible = np.broadcast_to(np.asarray(mask.kinds(block_q, block_k)) > 0,
                            (B, H, math.ceil(Q / block_q), math.ceil(keys / block_k)))
  sizes = np.minimum(block_k, keys - np.arange(visible.shape[-1]) * block_k)
  moved = int((visible * sizes).sum()) * K
  used = int((visible.reshape(B, groups, -1, visible.shape[-1]).any(2) * sizes).sum()) * K
  each = B * Q * H * K
  def row(name, *rest):
    return Array(name, (B, keys, groups, K), itemsize, *rest)
  return Traffic((
      Array('query', tuple(query_shape), itemsize, each, each, False), row('key', moved, used, False),
      row('value', moved, used, False), Array('out', tuple(query_shape), itemsize, each, each, True),
      Array('log-sum-exp', (B, H, Q), 4, B * H * Q, B * H * Q, True)))


def of_pallas(f: Callable, *arguments: Any, reuse: Reuse = 'pipeline') -> list[Traffic]:
  """Of every pallas_call inside f, from its grid and BlockSpecs; arguments as arrays or ShapeDtypeStructs.

  Raises:
    NotImplementedError: an index map that reads prefetched scalars, which are not known without running f.
  """
  return [_of_grid(e.params['grid_mapping'], reuse) for e in _pallas_calls(jax.make_jaxpr(f)(*arguments).jaxpr)]


def _pallas_calls(jaxpr):
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'pallas_call':
      yield equation
      continue
    for parameter in equation.params.values():
      for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from _pallas_calls(inner)


def _of_grid(mapping, reuse: Reuse) -> Traffic:
  if mapping.num_index_operands:
    raise NotImplementedError('an index map reads prefetched scalars; expected one of the grid alone')
  grid = tuple(int(g) for g in mapping.grid)
  points = np.indices(grid).reshape(len(grid), -1)
  arrays = []
  for number, block in enumerate(mapping.block_mappings):
    shape, item = tuple(block.array_aval.shape), block.array_aval.dtype.itemsize
    sizes = [1 if type(b).__name__ == 'Squeezed' or b is None else int(getattr(b, 'block_size', b))
             for b in block.block_shape]
    index_map = block.index_map_jaxpr
    def blocks_of(*point, index_map=index_map):
      return jax.core.eval_jaxpr(index_map.jaxpr, index_map.consts, *point)
    found = jax.vmap(blocks_of)(*jnp.asarray(points, jnp.int32))
    indices = np.stack([np.broadcast_to(np.asarray(x), points.shape[1:]) for x in found])
    # What lies beyond the array's end is not moved.
    inside = np.prod([np.clip(n - i * s, 0, s) for n, i, s in zip(shape, indices, sizes)], axis=0)
    first = np.unique(indices, axis=1, return_index=True)[1]
    changed = np.concatenate([[True], (indices[:, 1:] != indices[:, :-1]).any(0)])
    kept: Any = {'every': slice(None), 'pipeline': changed, 'once': first}[reuse]
    arrays.append(Array(f'operand {number}', shape, item, int(inside[kept].sum()), int(inside[first].sum()),
                        number >= mapping.num_inputs))
  return Traffic(tuple(arrays))


def attainable(intensity: float, flops_per_second: float, bytes_per_second: float) -> float:
  """The roofline: FLOP/s that a kernel of that many FLOPs a byte can reach."""
  return min(flops_per_second, intensity * bytes_per_second)
