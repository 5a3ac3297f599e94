"""Attention inside a layer: what a token may read, keys and values of earlier tokens, and a memory beside them.

Letters: B batch, L tokens of this call, T keys, D width, H heads, G key heads, K head width, M nodes of a memory.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework import sharding, timestamps
from framework.models import backends, contract, rope
from framework.models.layers import Linear, fused, rotate, stack_of, updated
from pallas_kernels import attention
from pallas_kernels.attention import sharded_attention


def head_width(c: config_lib.Model) -> int:
  """K."""
  return c.head_width or c.width // c.heads


def reads_all(c: config_lib.Model, layer: Any) -> Any:
  """Whether a layer reads all tokens in spite of model.sliding_window: a bool, or an array if the number is one."""
  if not c.sliding_window or not c.global_every:
    return not c.sliding_window
  number = layer % c.layers + 1  # of loops each begins anew
  return number % c.global_every == 0


def turned(c: config_lib.Model, positions_BxL: jax.Array, layer: Any, *xs_BxLxHxK: jax.Array) -> tuple[jax.Array, ...]:
  """Queries or keys of a layer, rotated by their positions if model.position is rope."""
  if c.position != 'rope':
    return xs_BxLxHxK
  channels = rope.rotated(head_width(c), c.rope_share)
  if channels == head_width(c) and not c.rope_scaling and not c.rope_base_local:
    def plain_K():
      return c.rope_base ** (-jnp.arange(channels // 2, dtype=jnp.float32) / (channels // 2))
    return tuple(rotate(x, positions_BxL, plain_K()) for x in xs_BxLxHxK)
  frequency_K: Any
  factor: Any
  frequency_K, factor = rope.frequencies(channels, c.rope_base, c.rope_scaling)
  if c.rope_base_local:
    far, (local_K, _) = reads_all(c, layer), rope.frequencies(channels, c.rope_base_local)
    if isinstance(far, bool):
      frequency_K, factor = (frequency_K, factor) if far else (local_K, 1.0)
    else:
      frequency_K, factor = jnp.where(far, frequency_K, local_K), jnp.where(far, factor, 1.0)
  return tuple(rotate(x, positions_BxL, jnp.asarray(frequency_K), factor) for x in xs_BxLxHxK)


class Cache(flax.struct.PyTreeNode):
  """Keys and values of the tokens read so far, [B, T, G, K] a layer; segment 0 marks an empty place."""
  key: list[jax.Array] | jax.Array
  value: list[jax.Array] | jax.Array
  segments: jax.Array
  index: jax.Array

  def write(self, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, layer) -> tuple['Cache', jax.Array, jax.Array]:
    """The cache with these keys and values of `layer` at its index, and all keys and values of that layer."""
    at = (0, self.index, 0, 0)
    cache = self.replace(key=updated(self.key, k_BxLxGxK, layer, at), value=updated(self.value, v_BxLxGxK, layer, at))
    return cache, cache.key[layer], cache.value[layer]


def empty_cache(c: config_lib.Model, batch: int, length: int) -> Cache:
  """A cache with places for `length` tokens a row."""
  shape = batch, length, c.kv_heads, head_width(c)
  stack = stack_of(c)
  return Cache(stack.zeros(shape, c.dtype), stack.zeros(shape, c.dtype), jnp.zeros((batch, length), jnp.int32),
               jnp.zeros((), jnp.int32))


@flax.struct.dataclass
class Memory:
  """What every layer of a decoder may read besides its own tokens, where the mask is true.

  `gate` is what the branch is multiplied with at first; with 0 the decoder begins as if there were no memory.
  """
  values_BxMxE: jax.Array
  positions_BxM: jax.Array
  mask_BxLxM: jax.Array
  gate: float = flax.struct.field(pytree_node=False, default=1.0)


@dataclasses.dataclass(frozen=True)
class Context:
  """What is the same for all layers of one call.

  mask: which keys each token may read. near: those of them in a sliding window; None without one. rule: the mask in the
  words of timestamps.as_arguments, for a backend that skips blocks. distance: of each key before each token. attend:
  takes the place of attention, (q, k, v, mask, cache, layer) -> ([B, L, H, K], cache).
  """
  positions_BxL: jax.Array
  mask_Bx1xLxT: jax.Array
  distance_LxT: jax.Array
  rule: dict | None = None
  memory: Memory | None = None
  attend: Callable | None = None
  near_Bx1xLxT: jax.Array | None = None

  def of_layer(self, c: config_lib.Model, layer: Any) -> 'Context':
    """What one layer may read, where some read a sliding window."""
    far = reads_all(c, layer)
    if self.near_Bx1xLxT is None or far is True:
      return self
    if far is False:
      rule = self.rule and self.rule | {'local_window_size': (c.sliding_window - 1, 0)}
      return dataclasses.replace(self, mask_Bx1xLxT=self.near_Bx1xLxT, rule=rule)
    return dataclasses.replace(self, mask_Bx1xLxT=jnp.where(far, self.mask_Bx1xLxT, self.near_Bx1xLxT), rule=None)

  @classmethod
  def of_one_token(cls, memory: Memory | None, with_rule: bool) -> 'Context':
    """A call with one token, from which parameters are made."""
    zero, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1, 1), bool)
    memory = memory and jax.tree.map(lambda x: x[:1, :1], memory).replace(mask_BxLxM=mask[:, 0])
    return cls(zero, mask, zero, timestamps.as_arguments(*[zero] * 4) if with_rule else None, memory)


class CrossAttention(nn.Module):
  """Attention from the tokens to a memory (Vaswani et al. 2017, section 3.2.3), times a learned scalar."""
  config: config_lib.Model

  @nn.compact
  def __call__(self, x_BxLxD, positions_BxL, memory: Memory):
    c = self.config
    width, heads, kv_heads = {'width': c.width}, {'heads': c.heads, 'head_width': head_width(c)}, {
        'kv_heads': c.kv_heads, 'head_width': head_width(c)}
    memory_width = {'memory_width': memory.values_BxMxE.shape[-1]}
    q_BxLxHxK = Linear(c, width, heads, name='query')(x_BxLxD)
    k_BxMxGxK, v_BxMxGxK = fused(memory.values_BxMxE, Linear(c, memory_width, kv_heads, name='key'),
                                 Linear(c, memory_width, kv_heads, name='value'))
    q_BxLxHxK, = turned(c, positions_BxL, c.global_every - 1, q_BxLxHxK)  # as a layer that reads all
    k_BxMxGxK, = turned(c, memory.positions_BxM, c.global_every - 1, k_BxMxGxK)
    a_BxLxHxK = sharded_attention(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask=memory.mask_BxLxM[:, None],
                                  batch=sharding.ROWS, heads='tensor',
                                  implementation=backends.implementation(c.attention))
    gate = self.param('scale', contract.parameter(nn.initializers.constant(memory.gate), (), 'scale'), (),
                      c.param_dtype)
    return gate.astype(c.dtype) * Linear(c, heads, width, (2 * c.layers) ** -0.5, name='out')(a_BxLxHxK)


def weights_of(weigh: Callable[[jax.Array], jax.Array], like_BxTxGxK: jax.Array) -> jax.Array:
  """What `weigh(values)` weighs each key with, float32 [B, H, L, T]: it is given values that name their key."""
  B, T, G, K = like_BxTxGxK.shape
  names_PxTxK = np.eye(T, -(-T // K) * K, dtype=np.float32).reshape(T, -1, K).swapaxes(0, 1)
  parts = [weigh(jnp.broadcast_to(names_TxK[None, :, None], (B, T, G, K)).astype(like_BxTxGxK.dtype))
           for names_TxK in names_PxTxK]
  return jnp.concatenate(parts, -1)[..., :T].swapaxes(1, 2).astype(jnp.float32)


def context_of(c: config_lib.Model, positions_BxL: jax.Array, segments_BxL: jax.Array, cache: Cache | None,
               mask_BxLxT: jax.Array | None, memory: Memory | None, attend: Callable | None
               ) -> tuple[Context, Cache | None]:
  """The context of a call, and the cache that knows its segments.

  Raises:
    ValueError: a cache of a model that reads in both directions.
    ConfigError: a sliding window, and a mask or attention of the caller's.
  """
  own = mask_BxLxT is not None or attend is not None or memory is not None or c.mask == 'bidirectional'
  if c.sliding_window and (own or sharding.size('sequence') > 1):
    raise config_lib.ConfigError(f"model.sliding_window is {c.sliding_window} with model.name '{c.name}', which says "
                                 'itself what its nodes read; expected 0')
  index: Any = 0
  segments_BxT, length = segments_BxL, segments_BxL.shape[1]
  if cache is not None and c.mask == 'bidirectional':
    raise ValueError("a cache with model.mask 'bidirectional'; expected 'causal' or 'strict'")
  if cache is not None and attend is None:
    index = cache.index
    segments_BxT = jax.lax.dynamic_update_slice(cache.segments, segments_BxL, (0, index))
    cache = cache.replace(segments=segments_BxT)
  split = sharding.size('sequence') > 1
  tau_L = sharding.places(length) if split else timestamps.decoder_stamps(length, index)
  tau_T = tau_L if split else timestamps.decoder_stamps(segments_BxT.shape[1])
  distance_LxT = tau_L[:, None] - tau_T
  if c.mask == 'bidirectional':
    tau_L = tau_T = timestamps.encoder_stamps(length)
  rule = None
  if mask_BxLxT is None:
    nodes = tau_L - (c.mask == 'strict'), tau_T, segments_BxL, segments_BxT
    mask_BxLxT = timestamps.may_read(*nodes)
    if split or not attention.reads_dense_mask(backends.implementation(c.attention)):
      rule = timestamps.as_arguments(*nodes)
  near = (mask_BxLxT & (distance_LxT < c.sliding_window))[:, None] if c.sliding_window else None
  if near is not None and cache is not None:
    rule = None  # a backend counts its window from the first query, a cache from the first key
  return Context(positions_BxL, mask_BxLxT[:, None], distance_LxT, rule, memory, attend, near), cache
