"""The decoder transformer: tokens -> embedding -> N pre-norm blocks (attention, feed-forward) -> norm -> states.

A variant is a subclass with a `block` of its own; see framework.models for how it gets a name.

Letters: B batch, L window, T keys held in a cache, D width, H heads, G key heads, K head width, F feed-forward width,
N layers, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from foundation import entries
from foundation.errors import ConfigError
from framework import config as config_lib
from framework import sharding
from framework.models import attention, backends, contract, flops
from framework.models.attention import Cache, Context, CrossAttention, Memory, head_width, turned
from framework.models.layers import (
    ACTIVATIONS, HeadNorm, Linear, Norm, dropout, fold_keys, fused, sinusoids, stack_of)
from framework.models.token_model import TokenModel
from pallas_kernels.attention import attention_over_sequence, sharded_attention


class Block(nn.Module):
  """x + attention(norm(x)), then x + cross-attention(norm(x)) if there is a memory, then x + feed-forward(norm(x)).

  The settings model.norm_place and model.parallel put the norms elsewhere, or the branches side by side.
  """
  config: config_lib.Model

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array, context: Context, layer: Any = 0, cache: Cache | None = None,
               keys_B: jax.Array | None = None) -> tuple[jax.Array, Cache | None]:
    """(x_BxLxD, the cache with this call's keys and values of layer number `layer`, or None)."""
    c, first_BxLxD = self.config, x_BxLxD
    a_BxLxD, cache = self.attention(self.before(x_BxLxD, 'attention'), context, layer, cache)
    x_BxLxD = x_BxLxD + dropout(self.after(a_BxLxD, 'attention'), keys_B, c.dropout, 0)
    if context.memory is not None:
      h = Norm(c, name='cross_norm')(x_BxLxD)
      m_BxLxD = CrossAttention(c, name='cross')(h, context.positions_BxL, context.memory)
      x_BxLxD = x_BxLxD + dropout(m_BxLxD, keys_B, c.dropout, 3)
    f_BxLxD = self.feedforward(self.before(first_BxLxD if c.parallel else x_BxLxD, 'feedforward'))
    return x_BxLxD + dropout(self.after(f_BxLxD, 'feedforward'), keys_B, c.dropout, 1), cache

  def before(self, x_BxLxD: jax.Array, branch: str) -> jax.Array:
    """What a branch reads of the stream."""
    return x_BxLxD if self.config.norm_place == 'after' else Norm(self.config, name=f'{branch}_norm')(x_BxLxD)

  def after(self, x_BxLxD: jax.Array, branch: str) -> jax.Array:
    """What is added to the stream of what a branch wrote."""
    return x_BxLxD if self.config.norm_place == 'before' else Norm(self.config, name=f'{branch}_after_norm')(x_BxLxD)

  @property
  def residual_gain(self) -> float:
    """Both branches add to the stream once a layer: scaled down by sqrt(2 N) its variance stays that of the input
    (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3)."""
    return (2 * self.config.loops * self.config.layers) ** -0.5

  def attention(self, h_BxLxD: jax.Array, context: Context, layer: Any, cache: Cache | None
                ) -> tuple[jax.Array, Cache | None]:
    """What the tokens read of each other, [B, L, D], and the cache."""
    c = self.config
    width, heads = {'width': c.width}, {'heads': c.heads, 'head_width': head_width(c)}
    kv_heads = {'kv_heads': c.kv_heads, 'head_width': head_width(c)}
    q_BxLxHxK, k_BxTxGxK, v_BxTxGxK = fused(
        h_BxLxD, Linear(c, width, heads, part='qkv', name='query'), Linear(c, width, kv_heads, part='qkv', name='key'),
        Linear(c, width, kv_heads, part='qkv', name='value'))
    if c.query_norm != 'none':
      q_BxLxHxK, k_BxTxGxK = HeadNorm(c, name='query_norm')(q_BxLxHxK), HeadNorm(c, name='key_norm')(k_BxTxGxK)
    context = context.of_layer(c, layer)
    q_BxLxHxK, k_BxTxGxK = turned(c, context.positions_BxL, layer, q_BxLxHxK, k_BxTxGxK)
    if context.attend is not None:
      a_BxLxHxK, cache = context.attend(q_BxLxHxK, k_BxTxGxK, v_BxTxGxK, context.mask_Bx1xLxT, cache, layer)
    else:
      if cache is not None:
        cache, k_BxTxGxK, v_BxTxGxK = cache.write(k_BxTxGxK, v_BxTxGxK, layer)
      a_BxLxHxK = self.weighted_values(q_BxLxHxK, k_BxTxGxK, v_BxTxGxK, context)
    return Linear(c, heads, width, self.residual_gain, part='out', name='out')(a_BxLxHxK), cache

  def weighted_values(self, q_BxLxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, context: Context
                      ) -> jax.Array:
    """softmax(q k) v under the mask, [B, L, H, K]; its weights are kept where somebody asks for them."""
    c, bias_1xHxLxT = self.config, None
    if c.attention_scale == 'log':  # Chiang and Cholak 2022, arXiv:2202.12172, section 5.3
      keys_BxL = jnp.maximum(context.mask_Bx1xLxT.sum(-1, dtype=jnp.float32)[:, 0], 1)
      q_BxLxHxK = (q_BxLxHxK * jnp.log(keys_BxL)[..., None, None]).astype(c.dtype)
    if c.relative_bias:  # a bias a distance, as in T5 (Raffel et al. 2020, arXiv:1910.10683) without its buckets
      R = c.relative_bias
      table_HxR = self.param('relative_bias', contract.parameter(nn.initializers.zeros, ('heads', 'distances'), 'bias'),
                             (c.heads, 2 * R + 1), c.param_dtype)
      bias_1xHxLxT = table_HxR.astype(jnp.float32)[None, :, jnp.clip(context.distance_LxT, -R, R) + R]
    def weigh(value_BxTxGxK):
      how: dict[str, Any] = {
          'scale': 1.0 if c.attention_scale == 'one' else None, 'heads': 'tensor',
          'implementation': backends.implementation(c.attention), **(context.rule or {'mask': context.mask_Bx1xLxT})}
      if sharding.size('sequence') > 1:
        return attention_over_sequence(q_BxLxHxK, k_BxTxGxK, value_BxTxGxK, 'sequence', c.sequence, **how)
      return sharded_attention(q_BxLxHxK, k_BxTxGxK, value_BxTxGxK, bias=bias_1xHxLxT, batch=sharding.ROWS, **how)
    if self.is_mutable_collection('intermediates'):
      self.sow('intermediates', 'attention', attention.weights_of(weigh, k_BxTxGxK))
    return weigh(v_BxTxGxK)

  def feedforward(self, h_BxLxD: jax.Array) -> jax.Array:
    """Two linear maps with an activation between them, [B, L, D]."""
    c = self.config
    width, inner = {'width': c.width}, {'feedforward': c.feedforward}
    up, activation = Linear(c, width, inner, part='feedforward', name='up'), ACTIVATIONS[c.activation]
    if c.activation in config_lib.GATED:
      u_BxLxF, gate_BxLxF = fused(h_BxLxD, up, Linear(c, width, inner, part='feedforward', name='gate'))
      u_BxLxF = activation(gate_BxLxF) * u_BxLxF
    else:
      u_BxLxF = activation(up(h_BxLxD))
    return Linear(c, inner, width, self.residual_gain, part='feedforward', name='down')(u_BxLxF)


class Decoder(TokenModel):
  """See the module's docstring. `length` is the longest position of a learned table; `block` makes a layer."""
  block: type[Block] = Block
  gathers = ('blocks',)  # its stack gathers them, a layer at a time

  @property
  def splits_windows(self) -> bool:
    """Of a variant only if it says so: its block, or its call, may look at neighbours, which another device has."""
    own = type(self).__call__ is Decoder.__call__ and self.block is Block
    return own or getattr(self.block, 'splits_windows', False) is True

  @nn.compact
  def __call__(
      self, tokens_BxL: jax.Array, positions_BxL: jax.Array, segments_BxL: jax.Array, *,
      cache: Cache | None = None, keys_B: jax.Array | None = None, added_BxLxD: jax.Array | None = None,
      mask_BxLxT: jax.Array | None = None, memory: Memory | None = None, attend: Callable | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """States after the last norm, [B, L, D], and the cache if one was given.

    Args:
      tokens_BxL, positions_BxL: int32; positions count from the start of a row's document.
      segments_BxL: int32, the document of each token; tokens of different segments never read each other.
      cache: from `empty_cache`; this call's tokens are appended to it.
      keys_B: dropout keys, one a row; None: no dropout.
      added_BxLxD: added to the tokens' embeddings.
      mask_BxLxT: which tokens of this call and of the cache each token may read; None: what model.mask says.
      memory: read by every layer.
      attend: takes the place of self-attention, see Context; the cache is then its own.
    """
    c = self.config
    x_BxLxD = self.embed(tokens_BxL)
    if c.embedding_scale != 1:
      x_BxLxD = x_BxLxD * jnp.asarray(c.embedding_scale, c.dtype)
    x_BxLxD = self.placed(x_BxLxD, positions_BxL)
    if added_BxLxD is not None:
      x_BxLxD = x_BxLxD + added_BxLxD.astype(c.dtype)
    x_BxLxD = dropout(x_BxLxD, keys_B, c.dropout, 2)
    context, cache = attention.context_of(c, positions_BxL, segments_BxL, cache, mask_BxLxT, memory, attend)

    block, stack, subject = self.block(c, parent=None), stack_of(c), f"model.name is '{c.name}'"
    entries.check_takes(block, 'block(x_BxLxD, context, layer=0, cache=None, keys_B=None)', subject, __name__)
    def checked(out, shape):
      right = isinstance(out, tuple) and len(out) == 2 and getattr(out[0], 'shape', ()) == shape
      entries.gives(out, right, f'(x_BxLxD, cache) with x of shape {shape}', subject, 'block')
    def init_block(key):
      example = Context.of_one_token(memory, context.rule is not None)
      out, variables = block.init_with_output(key, jnp.zeros((1, 1, c.width), c.dtype), example)
      checked(out, (1, 1, c.width))
      if 'params' not in variables:
        raise ConfigError(f'{subject}, whose block has no parameters; expected some, else layers are no layers')
      return variables['params']
    blocks: Any
    if self.has_variable('params', 'blocks'):  # flax would trace a layer again, to compare its shapes with a shard's
      blocks = self.get_variable('params', 'blocks')
    else:
      blocks = self.param('blocks', lambda key: stack.init(init_block, key))
    watched = self.is_mutable_collection('intermediates') and attend is None
    def layer(carry, inputs):
      (x_BxLxD, cache), (params, number) = carry, inputs
      out = block.apply({'params': params}, x_BxLxD, context, number, cache, fold_keys(keys_B, number),
                        mutable=['intermediates'] if watched else False)
      checked(out[0] if watched else out, x_BxLxD.shape)
      return out if watched else (out, None)
    (x_BxLxD, cache), outputs = stack(layer, blocks, (x_BxLxD, cache))

    if watched:
      weights, = outputs['intermediates']['attention']
      self.sow('intermediates', 'attention', weights.reshape(-1, *weights.shape[-4:]))
    if cache is not None and attend is None:
      cache = cache.replace(index=cache.index + tokens_BxL.shape[1])
    return Norm(c, name='norm')(x_BxLxD), cache

  def placed(self, x_BxLxD: jax.Array, positions_BxL: jax.Array) -> jax.Array:
    """The embeddings with what tells a token its place, unless attention does."""
    c = self.config
    if c.position == 'learned':
      table = self.param('position', contract.parameter(
          nn.initializers.normal(0.02), ('positions', 'width'), 'embedding', ('positions',)), (self.length, c.width),
          c.param_dtype)
      return x_BxLxD + sharding.taken(table, positions_BxL, c.dtype)
    if c.position == 'sinusoidal':
      # Vaswani et al. add sinusoids of amplitude 1 to embeddings of deviation 1; here that deviation is 0.02.
      return x_BxLxD + 0.02 * sinusoids(positions_BxL, c.width).astype(c.dtype)
    return x_BxLxD

  def empty_cache(self, batch: int, length: int) -> Cache:
    return attention.empty_cache(self.config, batch, length)

  def attention(self, params: Any, tokens_BxL: np.ndarray) -> jax.Array:
    """What every layer and head attends to when it reads these tokens, float32 [N, B, H, L, L]."""
    positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    _, state = self.apply({'params': params}, tokens_BxL, positions_BxL, jnp.ones_like(tokens_BxL),
                          mutable='intermediates')
    weights, = state['intermediates']['attention']
    return weights

  def flops(self) -> contract.Flops:
    forward = flops.blocks(self.config, self.length, self.length) + flops.head(self.config, self.vocabulary,
                                                                               self.length)
    return contract.Flops(forward, 3 * forward)


def build(config: config_lib.Config, vocabulary: int) -> Decoder:
  return Decoder(config.model, vocabulary, config.data.window)
