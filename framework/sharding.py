"""How arrays lie on a mesh of devices: which mesh axis each logical axis goes to, and what moves between devices.

A mesh has four axes. Rows of a batch are split over `data` and `fsdp`, the window's tokens over `sequence`. Parameters
and the optimizer's state are split over `fsdp`, where a layer's weights are gathered when it runs, and over `tensor`,
where they stay split: every device computes its own heads and channels (Shoeybi et al. 2019, arXiv:1909.08053).

Inside a step `data`, `fsdp` and `sequence` are manual axes, of which the program says what moves; over `tensor` XLA
finds it from shardings. What a model calls here does nothing where the axis in question has one device.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import contextvars
import functools
import math
import operator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from foundation.errors import ConfigError, nearest

AXES = ('data', 'fsdp', 'sequence', 'tensor')  # as devices are numbered: those of a tensor group are neighbours
MANUAL = ('data', 'fsdp', 'sequence')
ROWS = ('data', 'fsdp')
TABLE = {'width': 'fsdp', 'vocabulary': 'tensor', 'heads': 'tensor', 'kv_heads': 'tensor', 'feedforward': 'tensor'}
SPLIT_BY_WINDOW = ('tokens', 'targets', 'weights', 'segments', 'positions')  # arrays of a batch, [B, L]
# In which a program sums over devices, whatever the dtype of its arithmetic; XLA's CPU compiler crashes on bfloat16 there.
REDUCE = jnp.float32


def named(text: str) -> dict[str, int]:
  """{axis: devices} as a setting such as 'data=-1,fsdp=8' names them, -1 among them.

  Raises:
    ConfigError: an axis that there is not, or twice, or a size that is none.
  """
  found: dict[str, int] = {}
  for part in filter(None, (part.strip() for part in text.split(','))):
    name, _, size = (word.strip() for word in part.partition('='))
    if name not in AXES:
      raise ConfigError(f"training.mesh is '{text}', with an axis '{name}'; expected some of {', '.join(AXES)}"
                        f'{nearest(name, AXES)}')
    if name in found:
      raise ConfigError(f"training.mesh is '{text}', with {name} twice; expected each axis once")
    if not (size.isdecimal() and int(size) > 0 or size == '-1'):
      raise ConfigError(f"training.mesh is '{text}', with {name}={size}; expected a number of devices, or -1 for what is "
                        'left')
    found[name] = int(size)
  return found


def sizes(text: str, devices: int) -> dict[str, int]:
  """{axis: devices} of all axes, with what is left of `devices` in place of -1.

  Raises:
    ConfigError: as `named`, or a product that is not `devices`.
  """
  found = named(text)
  free = [name for name, size in found.items() if size == -1]
  product = math.prod(size for size in found.values() if size > 0)
  if len(free) > 1:
    raise ConfigError(f"training.mesh is '{text}', with {len(free)} axes of -1; expected one")
  if free and devices % product == 0:
    found[free[0]] = devices // product
  elif free or product != devices:
    raise ConfigError(f"training.mesh is '{text}', for {'a multiple of ' if free else ''}{product} devices; expected "
                      f'the {devices} that there are, nearest is data=-1')
  return {name: found.get(name, 1) for name in AXES}


def rows(mesh: Mapping[str, int]) -> int:
  """The parts into which a mesh of these sizes splits the rows of a batch."""
  return math.prod(mesh[axis] for axis in ROWS)


def spec(axes: Sequence[str], role: str, shape: Sequence[int], mesh: Mapping[str, int]) -> P:
  """Where a parameter of these logical axes lies on a mesh of those sizes; biases and scales are on every device.

  An axis whose size does not divide is not split over `tensor`; over `fsdp` the longest that divides takes its place.
  """
  if role in ('bias', 'scale'):
    return P()
  parts: list[str | None] = [None] * len(axes)
  for place, (axis, size) in enumerate(zip(axes, shape)):
    name = TABLE.get(axis)
    if name and mesh[name] > 1 and name not in parts and size % mesh[name] == 0:
      parts[place] = name
  if mesh['fsdp'] > 1 and 'fsdp' not in parts:
    able = [place for place, (axis, size) in enumerate(zip(axes, shape))
            if parts[place] is None and axis != 'layers' and size % mesh['fsdp'] == 0]
    if able:
      parts[max(able, key=lambda place: shape[place])] = 'fsdp'
  return P(*parts) if any(parts) else P()


def size(axis: str) -> int:
  """The parts into which the running program has `axis` split; 1 outside a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.shape[axis] if axis in (mesh.manual_axes if axis in MANUAL else mesh.auto_axes) else 1


def split(*axes: str) -> tuple[str, ...]:
  """Those of the axes that the running program has split over more than one device."""
  return tuple(axis for axis in axes if size(axis) > 1)


class Shard(flax.struct.PyTreeNode):
  """This device's part of a parameter that is split over `fsdp`.

  spec: what each axis is split over, of the last axes, so that it stays true of a slice of stacked layers.
  """
  value: jax.Array
  spec: tuple[str | None, ...] = flax.struct.field(pytree_node=False)


def is_shard(x: Any) -> bool:
  return isinstance(x, Shard)


def whole(tree: Any, dtype: Any = None) -> Any:
  """The tree with every Shard gathered over `fsdp`, in `dtype` or its own: gradients are summed and split again."""
  def one(x):
    return gather(x.value, x.spec, jnp.dtype(dtype or x.value.dtype)) if is_shard(x) else x
  return jax.tree.map(one, tree, is_leaf=is_shard)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x: jax.Array, spec: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
  """All devices' parts of an array, cast to `dtype` before they travel. spec: as of Shard."""
  def local(x):
    # The barrier keeps XLA from casting behind the gather, where layers are computed again for the backward pass.
    x = jax.lax.optimization_barrier(x.astype(dtype))
    return jax.lax.all_gather(x, 'fsdp', axis=x.ndim - len(spec) + spec.index('fsdp'), tiled=True)
  return _beside_tensor(local, x, spec)


def _gathered(x, spec, dtype):
  return gather(x, spec, dtype), jnp.zeros((), x.dtype)


def _scatter(spec, dtype, like, gradient):
  del dtype
  def local(g):
    return jax.lax.psum_scatter(g.astype(REDUCE), 'fsdp', scatter_dimension=g.ndim - len(spec) + spec.index('fsdp'),
                                tiled=True).astype(like.dtype)
  return (_beside_tensor(local, gradient, spec),)


gather.defvjp(_gathered, _scatter)


def _beside_tensor(move, x, spec):
  """`move` on each device's part over `tensor`: left to itself, XLA would gather that too."""
  if size('tensor') == 1 or 'tensor' not in spec:
    return move(x)
  parts = P(*[None] * (x.ndim - len(spec)), *(axis if axis == 'tensor' else None for axis in spec))
  return jax.shard_map(move, mesh=jax.sharding.get_abstract_mesh(), in_specs=parts, out_specs=parts,
                       axis_names={'tensor'}, check_vma=False)(x)


def constrain(x: jax.Array, axes: Mapping[int, str | None]) -> jax.Array:
  """The same array with some of its axes split over 'tensor' or whole (None); one that does not divide stays whole."""
  parts = size('tensor')
  if parts == 1:
    return x
  wanted: list[Any] = [P.UNCONSTRAINED] * x.ndim
  for place, name in axes.items():
    wanted[place] = name if x.shape[place] % parts == 0 else None
  return jax.lax.with_sharding_constraint(x, P(*wanted))


def whole_layers(x_NxIxO: jax.Array) -> jax.Array:
  """The same matrices, each whole on one device, where parameters are split over `fsdp`: every device has some of them.

  Where they do not divide over the devices, matrices of zeros follow them.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape['fsdp'] == 1 or 'fsdp' not in mesh.auto_axes:
    return x_NxIxO
  axes = ROWS if len(x_NxIxO) % rows(mesh.shape) == 0 else ('fsdp',)
  missing = -len(x_NxIxO) % math.prod(mesh.shape[axis] for axis in axes)
  x_NxIxO = jnp.pad(x_NxIxO, ((0, missing), (0, 0), (0, 0))) if missing else x_NxIxO
  return jax.lax.with_sharding_constraint(x_NxIxO, P(axes))


def taken(table_VxD: jax.Array, rows_BxL: jax.Array, dtype: Any) -> jax.Array:
  """Rows of a table, [B, L, D], in `dtype`; the gradient of a row adds up over all places that took it in float32.

  In bfloat16 it would lose what is small beside its sum: a quarter of it in a batch of 16,384 bytes.
  """
  take = _taken_by_products if _BY_PRODUCTS.get() else operator.getitem
  return take(table_VxD.astype(REDUCE), rows_BxL).astype(dtype)


_BY_PRODUCTS = contextvars.ContextVar('by_products', default=False)


@contextlib.contextmanager
def by_products() -> Iterator[None]:
  """What is traced here has gradients of tables without XLA's scatter: slow, and a check of that."""
  token = _BY_PRODUCTS.set(True)
  try:
    yield
  finally:
    _BY_PRODUCTS.reset(token)


@jax.custom_vjp
def _taken_by_products(table_VxD: jax.Array, rows_BxL: jax.Array) -> jax.Array:
  return table_VxD[rows_BxL]


def _summed_by_products(res, gradient_BxLxD):
  like_VxD, rows_BxL = res
  V, chunk = like_VxD.shape[0], 512  # rows of the table at a time: all at once would be V numbers a token
  def of_chunk(first):
    equal_CxBxL = rows_BxL == (first + jnp.arange(chunk))[:, None, None]
    return jnp.einsum('cbl,bld->cd', equal_CxBxL.astype(REDUCE), gradient_BxLxD, precision='highest')
  sums = jax.lax.map(of_chunk, jnp.arange(0, V, chunk))
  return sums.reshape(-1, sums.shape[-1])[:V], None


_taken_by_products.defvjp(lambda table, rows: (table[rows], (table, rows)), _summed_by_products)


def lookup(table_VxD: jax.Array, tokens_BxL: jax.Array, dtype: Any) -> jax.Array:
  """As `taken`; of a table that is split over `tensor` each device looks up what it has."""
  parts = size('tensor')
  if parts == 1 or table_VxD.shape[0] % parts:
    return taken(table_VxD, tokens_BxL, dtype)
  along = tokens_BxL.shape[1] % parts == 0
  def local(table, tokens):
    place = tokens - jax.lax.axis_index('tensor') * table.shape[0]
    own = (place >= 0) & (place < table.shape[0])
    rows = jnp.where(own[..., None], taken(table, jnp.clip(place, 0, table.shape[0] - 1), REDUCE), 0)
    if along:  # the stream between blocks is split along the window
      return jax.lax.psum_scatter(rows, 'tensor', scatter_dimension=1, tiled=True).astype(dtype)
    return jax.lax.psum(rows, 'tensor').astype(dtype)
  return jax.shard_map(local, mesh=jax.sharding.get_abstract_mesh(), in_specs=(P('tensor'), P()),
                       out_specs=P(None, 'tensor') if along else P(), axis_names={'tensor'}, check_vma=False)(
                           table_VxD, tokens_BxL)


def zigzag(length: int, parts: int) -> np.ndarray:
  """int64 [length]: the tokens of a window in the order in which `parts` devices hold them.

  Device i holds chunk i and chunk 2 n - 1 - i of 2 n, so that under a causal mask all have as much to do.
  """
  if parts == 1:
    return np.arange(length)
  order = [chunk for i in range(parts) for chunk in (i, 2 * parts - 1 - i)]
  return np.arange(length).reshape(2 * parts, -1)[order].reshape(-1)


def places(length: int) -> jax.Array:
  """int32 [length]: where in the window the tokens stand that this device holds."""
  parts = size('sequence')
  if parts == 1:
    return jnp.arange(length, dtype=jnp.int32)
  index, half = jax.lax.axis_index('sequence'), length // 2
  return jnp.concatenate([first * half + jnp.arange(half, dtype=jnp.int32)
                          for first in (index, 2 * parts - 1 - index)])
