"""Attention in XLA, a block of queries and a block of keys at a time: memory linear in the length.

The online softmax is that of Rabe and Staats 2021 (arXiv:2112.05682) and Dao 2023 (arXiv:2307.08691); blocks that the
mask skips for every row and head are not visited. Sizes that are no multiple of a block are padded.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import gradient
from pallas_kernels.attention.mask import Mask
from pallas_kernels.attention.reference import beside_queries

NOTHING = -1e30  # stands for -inf in a running maximum, where inf - inf would be NaN


@dataclasses.dataclass(frozen=True)
class Config:
  """Lengths of the blocks; measured on a CPU, where 128 to 512 differ by a tenth."""
  block_q: int = 256
  block_k: int = 256


def attend(query, key, value, bias, mask: Mask, *, scale, soft_cap, alpha, config, return_residual):
  """See reference.attend."""
  if alpha is not None:
    raise NotImplementedError('attention implementation xla_chunked has no alpha (entmax); xla has')
  config = config or Config()
  settings = gradient.Settings(scale, soft_cap, False, config)
  return gradient.attend(forward, backward, settings, gradient.Arrays(query, key, value, bias, None), mask)


class _Blocks:
  """The arrays of one call padded to whole blocks, and the tile of logits of a pair of blocks.

  Queries are [B, G, N, block_q * M, K]: the M heads of a key head lie beside the queries.
  """

  def __init__(self, arrays, mask: Mask, settings):
    (_, Q, self.H, _), (_, T, self.G, _) = arrays.query.shape, arrays.key.shape
    self.M = self.H // self.G
    self.q = min(settings.config.block_q, Q)
    self.k = min(settings.config.block_k, T)
    self.N = -(-Q // self.q)
    self.arrays, self.mask, self.settings = arrays, mask, settings
    self.query = self.split_queries(arrays.query)
    self.key, self.value = self.split_keys(arrays.key), self.split_keys(arrays.value)
    kinds = mask.kinds(self.q, self.k).max((0, 1))  # what no row and no head reads is skipped
    self.order, self.visible = (-kinds).argsort(-1, stable=True).astype('int32'), (kinds > 0).sum(-1)
    self.start_BxQ, self.end_BxQ = (jnp.pad(x, ((0, 0), (0, -Q % self.q))) for x in mask.intervals())

  def split_queries(self, x_BxQxHxK):
    """[N, B, G, block_q * M, K]."""
    B, Q, H, K = x_BxQxHxK.shape
    x = jnp.pad(x_BxQxHxK, ((0, 0), (0, -Q % self.q), (0, 0), (0, 0)))
    x = x.reshape(B, self.N, self.q, self.G, self.M, K)
    return x.transpose(1, 0, 3, 2, 4, 5).reshape(self.N, B, self.G, self.q * self.M, K)

  def join_queries(self, x_NxBxGxQMxK, Q):
    """The inverse: [B, Q, H, K]."""
    N, B, G, _, K = x_NxBxGxQMxK.shape
    x = x_NxBxGxQMxK.reshape(N, B, G, self.q, self.M, K).transpose(1, 0, 3, 2, 4, 5)
    return x.reshape(B, N * self.q, self.H, K)[:, :Q]

  def split_keys(self, x_BxTxGxK):
    """[block, B, G, block_k, K]."""
    B, T, G, K = x_BxTxGxK.shape
    x = jnp.pad(x_BxTxGxK, ((0, 0), (0, -T % self.k), (0, 0), (0, 0)))
    return x.reshape(B, -1, self.k, G, K).transpose(1, 0, 3, 2, 4)

  def join_keys(self, x_NxBxGxTxK, T):
    N, B, G, _, K = x_NxBxGxTxK.shape
    return x_NxBxGxTxK.transpose(1, 0, 3, 2, 4).reshape(B, -1, G, K)[:, :T]

  def rows(self, x_BxHxQ):
    """[N, B, G, block_q * M, 1]."""
    return self.split_queries(x_BxHxQ.swapaxes(1, 2)[..., None])

  def cut(self, x_BxHxQxT, i, j):
    """The tile (i, j) of something that broadcasts against the logits, [B, G or 1, block_q * M, block_k]."""
    Q, T = x_BxHxQxT.shape[2:]
    rows = i * self.q + jnp.arange(self.q)
    columns = j * self.k + jnp.arange(self.k)
    x = jnp.take(x_BxHxQxT, rows, axis=2, mode='clip') if Q > 1 else jnp.repeat(x_BxHxQxT, self.q, axis=2)
    return beside_queries(jnp.take(x, columns, axis=3, mode='clip') if T > 1 else x, self.H, self.G)

  def allowed(self, i, j):
    """bool [B, G or 1, block_q * M, block_k]."""
    mask = self.mask
    column_T = j * self.k + jnp.arange(self.k)
    def part(x_BxL, at, size):
      return jax.lax.dynamic_slice_in_dim(x_BxL, at * size, size, axis=1)
    def pad(x_BxL, size):
      return jnp.pad(x_BxL, ((0, 0), (0, -x_BxL.shape[1] % size)))
    start, end = part(self.start_BxQ, i, self.q), part(self.end_BxQ, i, self.q)
    seen = (start[:, :, None] <= column_T) & (column_T < end[:, :, None])
    if mask.stamps is not None:
      q, k = part(pad(mask.stamps[0], self.q), i, self.q), part(pad(mask.stamps[1], self.k), j, self.k)
      seen = seen & (k[:, None] <= q[..., None])
    if mask.segments is not None:
      q, k = part(pad(mask.segments[0], self.q), i, self.q), part(pad(mask.segments[1], self.k), j, self.k)
      seen = seen & (k[:, None] == q[..., None])
    seen = beside_queries(seen[:, None], self.H, self.G)
    return seen if mask.dense_BxHxQxT is None else seen & self.cut(mask.dense_BxHxQxT, i, j)

  def logits(self, i, j):
    """(float32 [B, G, block_q * M, block_k], d logits / d before the soft cap or None)."""
    s = self.settings
    exact = self.query.dtype == jnp.float32  # 16 bits would round a scaled query: there the float32 logits are scaled
    query = self.query[i] * s.scale if exact else self.query[i]
    x = jnp.einsum('bgqk,bgtk->bgqt', query, self.key[j], preferred_element_type=jnp.float32)
    x = x if exact else x * s.scale
    if self.arrays.bias is not None:
      x = x + self.cut(self.arrays.bias, i, j).astype(jnp.float32)
    if s.soft_cap is None:
      return x, None
    tanh = jnp.tanh(x / s.soft_cap)
    return s.soft_cap * tanh, 1 - tanh**2


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp [B, H, Q])."""
  blocks = _Blocks(arrays, mask, settings)
  B, Q, H, K = arrays.query.shape
  rows = (B, blocks.G, blocks.q * blocks.M)

  def block_of_queries(i):
    def visit(n, carry):
      out, maximum, total = carry
      j = jnp.asarray(blocks.order)[i, n]
      x = jnp.where(blocks.allowed(i, j), blocks.logits(i, j)[0], -jnp.inf)
      new = jnp.maximum(maximum, x.max(-1))
      p, shrink = jnp.exp(x - new[..., None]), jnp.exp(maximum - new)
      out = out * shrink[..., None] + jnp.einsum(
          'bgqt,bgtk->bgqk', p.astype(arrays.value.dtype), blocks.value[j], preferred_element_type=jnp.float32)
      return out, new, total * shrink + p.sum(-1)
    start = jnp.zeros(rows + (K,), jnp.float32), jnp.full(rows, NOTHING), jnp.zeros(rows, jnp.float32)
    out, maximum, total = jax.lax.fori_loop(0, jnp.asarray(blocks.visible)[i], visit, start)
    some = total > 0
    lse = jnp.where(some, maximum + jnp.log(jnp.where(some, total, 1)), -jnp.inf)
    return (out / jnp.where(some, total, 1)[..., None]).astype(arrays.query.dtype), lse[..., None]

  out, lse = jax.lax.map(block_of_queries, jnp.arange(blocks.N))
  return blocks.join_queries(out, Q), blocks.join_queries(lse, Q)[..., 0].swapaxes(1, 2)


def backward(arrays, mask, out, lse_BxHxQ, delta_BxHxQ, d_out, settings):
  """The gradients of arrays, all in one pass over the blocks."""
  blocks = _Blocks(arrays, mask, settings)
  Q, T = arrays.query.shape[1], arrays.key.shape[1]
  dtype = arrays.query.dtype
  d_out = blocks.split_queries(d_out)
  # exp(logits - inf) = 0 for a row that reads nothing
  lse, delta = blocks.rows(jnp.where(lse_BxHxQ == -jnp.inf, jnp.inf, lse_BxHxQ)), blocks.rows(delta_BxHxQ)
  bias = arrays.bias

  def block_of_queries(carry, i):
    def visit(n, carry):
      d_query, d_key, d_value, d_bias = carry
      j = jnp.asarray(blocks.order)[i, n]
      x, d_cap = blocks.logits(i, j)
      p = jnp.where(blocks.allowed(i, j), jnp.exp(x - lse[i]), 0)
      d_value = d_value.at[j].add(jnp.einsum(
          'bgqt,bgqk->bgtk', p.astype(dtype), d_out[i], preferred_element_type=jnp.float32))
      d_p = jnp.einsum('bgqk,bgtk->bgqt', d_out[i], blocks.value[j], preferred_element_type=jnp.float32)
      d_x = p * (d_p - delta[i])
      if d_cap is not None:
        d_x = d_x * d_cap
      if bias is not None:
        d_bias = _add_tile(d_bias, d_x, i, j, blocks)
      d_x = (d_x * settings.scale).astype(dtype)
      d_query = d_query + jnp.einsum('bgqt,bgtk->bgqk', d_x, blocks.key[j], preferred_element_type=jnp.float32)
      d_key = d_key.at[j].add(jnp.einsum(
          'bgqt,bgqk->bgtk', d_x, blocks.query[i], preferred_element_type=jnp.float32))
      return d_query, d_key, d_value, d_bias
    d_query = jnp.zeros(blocks.query.shape[1:], jnp.float32)
    d_query, *carry = jax.lax.fori_loop(0, jnp.asarray(blocks.visible)[i], visit, (d_query, *carry))
    return tuple(carry), d_query.astype(dtype)

  d_keys = jnp.zeros(blocks.key.shape, jnp.float32)
  d_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
  (d_key, d_value, d_bias), d_query = jax.lax.scan(
      block_of_queries, (d_keys, d_keys, d_bias), jnp.arange(blocks.N))
  return gradient.Arrays(
      blocks.join_queries(d_query, Q), blocks.join_keys(d_key, T).astype(dtype),
      blocks.join_keys(d_value, T).astype(dtype), None if bias is None else d_bias.astype(bias.dtype), None)


def _add_tile(d_bias_BxHxQxT, d_x_BxGxQMxT, i, j, blocks):
  """Adds a tile of the logits' gradient, summed over the axes on which the bias broadcasts."""
  B, G = d_x_BxGxQMxT.shape[:2]
  d_x = d_x_BxGxQMxT.reshape(B, G, blocks.q, blocks.M, blocks.k).swapaxes(2, 3).reshape(B, -1, blocks.q, blocks.k)
  summed = tuple(a for a in range(3) if d_bias_BxHxQxT.shape[a] == 1)
  d_x = d_x.sum(summed, keepdims=True)
  rows = i * blocks.q + jnp.arange(blocks.q) if d_bias_BxHxQxT.shape[2] > 1 else jnp.zeros(1, jnp.int32)
  columns = j * blocks.k + jnp.arange(blocks.k)
  return d_bias_BxHxQxT.at[:, :, rows[:, None], columns].add(d_x, mode='drop')
