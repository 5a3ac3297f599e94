"""Attention over a mesh: every device computes its own rows and heads, so that nothing is gathered.

XLA cannot look into a kernel and, left to itself, gathers its operands on every device; shard_map says that rows and
heads are independent.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from pallas_kernels.attention.dispatch import dot_product_attention

Axes = str | Sequence[str] | None


def sharded_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None, batch: Axes = 'data', heads: Axes = None,
    **arguments: Any,
) -> Any:
  """dot_product_attention with the batch split over the mesh axes `batch`, and query and key heads over `heads`.

  Args:
    query, key, value: [B, Q, H, K], [B, T, G, K] twice; B is a multiple of the batch axes, G and H of the heads'.
    mesh: of the program; None: that of the context (jax.set_mesh), of whose axes those are meant that are there, that a
      surrounding shard_map has not split yet, and that divide. Without any left, this is dot_product_attention.
    arguments: of dot_product_attention, as keywords.

  Raises:
    ValueError: an axis that the mesh lacks, or rows or heads that do not divide.
  """
  (B, _, H, _), G = query.shape, key.shape[2]
  batch, heads = ((axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in (batch, heads))
  if mesh is None:
    mesh = jax.sharding.get_abstract_mesh()
    batch, heads = (tuple(a for a in axes if a in mesh.auto_axes) for axes in (batch, heads))
    batch, heads = batch if B % _size(mesh, batch) == 0 else (), heads if G % _size(mesh, heads) == 0 else ()
    if not batch + heads:
      return dot_product_attention(query, key, value, **arguments)
  for axis in batch + heads:
    if axis not in mesh.shape:
      what = 'batch' if axis in batch else 'heads'
      raise ValueError(f"{what} is '{axis}'; expected one of the mesh's axes, {', '.join(mesh.shape)}")
  rows, groups = _size(mesh, batch), _size(mesh, heads)
  if B % rows or H % groups or G % groups:
    raise ValueError(f'{B} rows, {H} query heads and {G} key heads; expected multiples of {rows}, {groups} and '
                     f'{groups}, the devices that they are split over')
  arrays = {name: x for name, x in arguments.items() if isinstance(x, tuple | jax.Array) or hasattr(x, 'shape')}
  arrays.pop('local_window_size', None)
  rest = {name: x for name, x in arguments.items() if name not in arrays}

  def spec(name, x):
    if isinstance(x, tuple):
      return tuple(spec(name, part) for part in x)
    if name in ('bias', 'mask'):
      return P(batch if x.shape[0] > 1 else None, heads if x.shape[1] > 1 else None)
    if name == 'alpha':
      return P(heads) if x.ndim else P()
    return P(batch) if x.shape[0] == B and (x.ndim == 2 or name.endswith('lengths')) else P()
  batch, heads = batch or None, heads or None
  whole = P(batch, None, heads)
  specs = {name: spec(name, x) for name, x in arrays.items()}
  def local(query, key, value, arrays):
    return dot_product_attention(query, key, value, **arrays, **rest)
  out = (whole, whole) if rest.get('return_residual') else whole
  return jax.shard_map(local, mesh=mesh, in_specs=(whole, whole, whole, specs), out_specs=out, check_vma=False)(
      query, key, value, arrays)


def _size(mesh, axes):
  return math.prod(mesh.shape[axis] for axis in axes)
