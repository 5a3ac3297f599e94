"""Who may read whom, said once: as a dense array for the reference, as skip / partial / full for a kernel's blocks.

A mask is the conjunction of what it holds. Causality, windows, prefixes and lengths all give each query one interval
of keys [start, end); stamps, segments and a dense array are further conditions. For a pair of blocks only the least
and greatest value of each is looked at, so a block may be called partial that is in truth full or empty, never the
other way round.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SKIP, PARTIAL, FULL = 0, 1, 2
KILLED = -1e30  # a bias of at most that hides a key, as a mask does: -inf, and the least number of float32 and bfloat16
Pair = tuple[jax.Array, jax.Array]


class Schedule(NamedTuple):
  """The blocks that each block of queries visits (or, transposed, each block of keys).

  Attributes:
    order: int32 [B, H, N, M], block numbers: the full ones first, then the partial, then the skipped; B, H may be 1.
    full: int32 [B, H, N], how many are full.
    visible: int32 [B, H, N], how many are full or partial.
  """
  order: jax.Array
  full: jax.Array
  visible: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
  """See the module's docstring. Axes B and H may be 1 where rows or heads share a mask.

  Attributes:
    queries, keys: the lengths Q and T.
    is_causal: query i reads keys 0 .. i.
    window: (left, right), query i reads keys i - left .. i + right; None: everywhere.
    prefix_B: with `is_causal`: keys below it are read by every query.
    query_lengths_B, key_lengths_B: queries and keys beyond them are padding.
    stamps: (tau_BxQ, tau_BxT), query i reads keys j with tau_j <= tau_i.
    segments: (segment_BxQ, segment_BxT), query i reads keys of its own segment.
    dense_BxHxQxT: bool.
  """
  queries: int = dataclasses.field(metadata={'static': True})
  keys: int = dataclasses.field(metadata={'static': True})
  is_causal: bool = dataclasses.field(default=False, metadata={'static': True})
  window: tuple[int, int] | None = dataclasses.field(default=None, metadata={'static': True})
  prefix_B: jax.Array | None = None
  query_lengths_B: jax.Array | None = None
  key_lengths_B: jax.Array | None = None
  stamps: Pair | None = None
  segments: Pair | None = None
  dense_BxHxQxT: jax.Array | None = None

  @property
  def is_static(self) -> bool:
    """Whether the mask is known without any array, and so at trace time."""
    return all(x is None for x in (self.prefix_B, self.query_lengths_B, self.key_lengths_B, self.stamps,
                                   self.segments, self.dense_BxHxQxT))

  @property
  def is_everything(self) -> bool:
    return self.is_static and not self.is_causal and self.window is None

  @property
  def numpy(self):
    """NumPy where no condition is a JAX array, so that what follows from them is a constant of the program."""
    return jnp if any(isinstance(x, jax.Array) for x in jax.tree.leaves(self)) else np

  def without(self, bias: jax.Array) -> 'Mask':
    """The mask without the keys that an additive bias takes away: those whose bias is at most KILLED, as -inf is.

    bias: [B or 1, H or 1, Q or 1, T].
    """
    if isinstance(bias, np.ndarray) and (bias > KILLED).all():  # known at trace time; a device would have to be asked
      return self
    alive = jnp.broadcast_to(bias > KILLED, bias.shape[:2] + (self.queries, self.keys))
    return dataclasses.replace(self, dense_BxHxQxT=alive if self.dense_BxHxQxT is None else self.dense_BxHxQxT & alive)

  def intervals(self) -> Pair:
    """The keys [start, end) that the first five conditions leave to each query, int32 [B, Q] twice."""
    xp = self.numpy
    i_1xQ = np.arange(self.queries, dtype=np.int32)[None]
    start, end = np.zeros_like(i_1xQ), np.full_like(i_1xQ, self.keys)
    if self.is_causal:
      end = np.minimum(end, i_1xQ + 1)
      if self.prefix_B is not None:
        end = xp.maximum(end, xp.minimum(self.prefix_B[:, None], self.keys))
    if self.window is not None:
      start = np.maximum(i_1xQ - self.window[0], 0)
      end = xp.minimum(end, i_1xQ + self.window[1] + 1)
    if self.key_lengths_B is not None:
      end = xp.minimum(end, self.key_lengths_B[:, None])
    if self.query_lengths_B is not None:
      end = xp.where(i_1xQ < self.query_lengths_B[:, None], end, 0)
    start = xp.broadcast_to(start, end.shape).astype(np.int32)
    return start, end.astype(np.int32)  # type: ignore[return-value]  # arrays of JAX or of NumPy

  def array(self) -> jax.Array | None:
    """bool [B, H, Q, T], true where a query may read a key; None: everywhere."""
    if self.is_everything:
      return None
    mask = self.dense_BxHxQxT
    conditions = []
    if self.is_causal or self.window or self.query_lengths_B is not None or self.key_lengths_B is not None:
      start_BxQ, end_BxQ = self.intervals()
      j_T = np.arange(self.keys, dtype=np.int32)
      conditions.append((start_BxQ[:, :, None] <= j_T) & (j_T < end_BxQ[:, :, None]))
    if self.stamps is not None:
      conditions.append(self.stamps[1][:, None, :] <= self.stamps[0][:, :, None])
    if self.segments is not None:
      conditions.append(self.segments[1][:, None, :] == self.segments[0][:, :, None])
    for condition_BxQxT in conditions:
      mask = condition_BxQxT[:, None] if mask is None else mask & condition_BxQxT[:, None]
    return jnp.asarray(mask)

  def kinds(self, block_q: int, block_k: int) -> jax.Array:
    """SKIP, PARTIAL or FULL for every pair of blocks, int8 [B, H, ceil(Q / block_q), ceil(T / block_k)].

    A block of keys that hangs over the end is never full; queries beyond the end count for nothing.
    """
    start_BxQ, end_BxQ = self.intervals()
    low_1xM = np.arange(0, self.keys, block_k, dtype=np.int32)
    high_1xM = low_1xM + block_k
    def ends(x_BxL, block):  # least and greatest of every block
      x_BxNxS = _blocks(x_BxL, block, 1)
      return x_BxNxS.min(-1), x_BxNxS.max(-1)
    start, end = ends(start_BxQ, block_q), ends(end_BxQ, block_q)
    empty = (end[1][..., None] <= low_1xM) | (start[0][..., None] >= high_1xM)
    full = (start[1][..., None] <= low_1xM) & (end[0][..., None] >= high_1xM)
    if self.stamps is not None:
      tau_q, tau_k = ends(self.stamps[0], block_q), ends(self.stamps[1], block_k)
      empty = empty | (tau_k[0][:, None] > tau_q[1][..., None])
      full = full & (tau_k[1][:, None] <= tau_q[0][..., None])
    if self.segments is not None:
      q, k = ends(self.segments[0], block_q), ends(self.segments[1], block_k)
      empty = empty | (k[0][:, None] > q[1][..., None]) | (k[1][:, None] < q[0][..., None])
      full = full & (k[0][:, None] == q[1][..., None]) & (k[1][:, None] == q[0][..., None])
    empty, full = empty[:, None], full[:, None]
    if self.dense_BxHxQxT is not None:
      tiles = _blocks(_blocks(self.dense_BxHxQxT, block_q, 2), block_k, 4)  # [B, H, N, block_q, M, block_k]
      empty, full = empty | ~tiles.any((3, 5)), full & tiles.all((3, 5))
    xp = self.numpy
    return xp.where(empty, SKIP, xp.where(full, FULL, PARTIAL)).astype(np.int8)

  def schedule(self, block_q: int, block_k: int, *, by_key: bool = False) -> Schedule:
    """For every block of queries (by_key: of keys) the blocks of the other side that it has to visit."""
    kinds = self.kinds(block_q, block_k)
    if by_key:
      kinds = kinds.swapaxes(2, 3)
    order = self.numpy.argsort(-kinds, axis=-1, stable=True).astype(np.int32)
    return Schedule(order, (kinds == FULL).sum(-1).astype(np.int32), (kinds != SKIP).sum(-1).astype(np.int32))


def _blocks(x: jax.Array, block: int, axis: int) -> jax.Array:
  """Splits an axis into [blocks, block]; the last value is repeated to fill the last block."""
  pad = -x.shape[axis] % block
  if pad:
    widths = [(0, pad if i == axis else 0) for i in range(x.ndim)]
    x = (jnp if isinstance(x, jax.Array) else np).pad(x, widths, mode='edge')
  return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1:])
