"""What every network over tokens has besides its body: an embedding, a head, and the calls of the training loop."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from framework.config import Model
from framework.models import decoder


class TokenModel(nn.Module):
  """A module whose `__call__(tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None)` returns hidden
  states [B, L, D], of which number i predicts token i+1, and the cache, as the decoder's does."""
  config: Model
  vocabulary: int
  length: int

  def embed(self, tokens_BxL: jax.Array, keys_B: jax.Array | None) -> jax.Array:
    """[B, L, D]; declares the embedding and the head. To be called from a compact method."""
    c = self.config
    embedding_VxD = self.param('embedding', nn.initializers.normal(0.02), (self.vocabulary, c.width), c.param_dtype)
    if not c.tied_head:
      self.param('head', decoder.fan_in_normal(c.width), (self.vocabulary, c.width), c.param_dtype)
    return decoder.dropout(embedding_VxD.astype(c.dtype)[tokens_BxL], keys_B, c.dropout, 2)

  @property
  def stochastic(self) -> bool:
    """Whether training draws dropout."""
    return self.config.dropout > 0

  def hidden(self, params: Any, batch: dict[str, jax.Array], keys_B: jax.Array | None = None) -> jax.Array:
    """Hidden states of a batch of windows of framework.data.windows, [B, L, D]: what training and evaluation score."""
    return self.apply({'params': params}, batch['tokens'], batch['positions'], batch['segments'], keys_B=keys_B)[0]

  def head(self, params: Any) -> jax.Array:
    """The matrix whose product with a hidden state gives logits, [V, D], in the compute dtype."""
    return (params['embedding'] if self.config.tied_head else params['head']).astype(self.config.dtype)

  def logits(self, params: Any, x_BxLxD: jax.Array) -> jax.Array:
    """[B, L, V], float32."""
    return jnp.einsum('bld,vd->blv', x_BxLxD, self.head(params), preferred_element_type=jnp.float32)
