"""What every network over tokens has besides its body: an embedding, a head, and most answers to the contract."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework import sharding
from framework.models import contract
from framework.models.layers import fan_in_normal


class TokenModel(nn.Module):
  """A network whose states depend on what was read so far; a subclass gives `__call__` and `flops`.

  `__call__(tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None)` returns states [B, L, D], of which
  number i predicts token i+1, and the cache, if one was given, with these tokens in it. `length` is the window.
  """
  config: config_lib.Model
  vocabulary: int
  length: int

  def embed(self, tokens_BxL: jax.Array) -> jax.Array:
    """[B, L, D]; declares the embedding and the head. To be called from a compact method."""
    c = self.config
    embedding_VxD = self.param('embedding', contract.parameter(
        nn.initializers.normal(0.02), ('vocabulary', 'width'), 'embedding', ('vocabulary',)),
        (self.vocabulary, c.width), c.param_dtype)
    if not c.tied_head:
      self.param('head', contract.parameter(fan_in_normal(c.width), ('vocabulary', 'width'), 'head', ('width',)),
                 (self.vocabulary, c.width), c.param_dtype)
    return sharding.lookup(embedding_VxD, tokens_BxL, c.dtype)

  def parameters(self, key: jax.Array) -> Any:
    one = jnp.ones((1, 1), jnp.int32)
    return self.init(key, one, one * 0, one)['params']

  @property
  def stochastic(self) -> bool:
    return self.config.dropout > 0

  def hidden(self, params: Any, batch: contract.Batch, keys_B: jax.Array | None = None) -> jax.Array:
    return self.apply({'params': params}, batch['tokens'], batch['positions'], batch['segments'], keys_B=keys_B)[0]

  def head(self, params: Any) -> jax.Array:
    """[V, D], in the dtype of the arithmetic."""
    return (params['embedding'] if self.config.tied_head else params['head']).astype(self.config.dtype)

  def logits(self, params: Any, x_BxLxD: jax.Array) -> jax.Array:
    return jnp.einsum('bld,vd->blv', x_BxLxD, self.head(params), preferred_element_type=jnp.float32)
