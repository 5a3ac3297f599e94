"""What every network over tokens has besides its body: an embedding, a head, and the calls of the training loop."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from framework.config import Model


def fan_in_normal(fan_in: int, gain: float = 1.0) -> nn.initializers.Initializer:
  """Normal with variance gain^2 / fan_in (LeCun et al. 1998, "Efficient BackProp", section 4.6)."""
  return nn.initializers.normal(gain * fan_in**-0.5)


def dropout(x_BxLxD: jax.Array, keys_B: jax.Array | None, rate: float, site: int) -> jax.Array:
  """Inverted dropout with one key a row, so that a row's mask depends neither on its batch nor on its device."""
  if keys_B is None or rate == 0.0:
    return x_BxLxD
  def keep_row(key):
    return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x_BxLxD.shape[1:])
  return jnp.where(jax.vmap(keep_row)(keys_B), x_BxLxD / (1.0 - rate), 0)


class TokenModel(nn.Module):
  """A module whose `__call__(tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None)` returns hidden
  states [B, L, D], of which number i predicts token i+1, and the cache, if one was given, with these tokens in it."""
  config: Model
  vocabulary: int
  length: int

  def embed(self, tokens_BxL: jax.Array) -> jax.Array:
    """[B, L, D]; declares the embedding and the head. To be called from a compact method."""
    c = self.config
    embedding_VxD = self.param('embedding', nn.initializers.normal(0.02), (self.vocabulary, c.width), c.param_dtype)
    if not c.tied_head:
      self.param('head', fan_in_normal(c.width), (self.vocabulary, c.width), c.param_dtype)
    return embedding_VxD.astype(c.dtype)[tokens_BxL]

  @property
  def stochastic(self) -> bool:
    """Whether training draws dropout."""
    return self.config.dropout > 0

  def hidden(self, params: Any, batch: dict[str, jax.Array], keys_B: jax.Array | None = None) -> jax.Array:
    """Hidden states of a batch of framework.data.windows, [B, L, D]: what training and evaluation score."""
    return self.apply({'params': params}, batch['tokens'], batch['positions'], batch['segments'], keys_B=keys_B)[0]

  def head(self, params: Any) -> jax.Array:
    """The matrix whose product with a hidden state gives logits, [V, D], in the compute dtype."""
    return (params['embedding'] if self.config.tied_head else params['head']).astype(self.config.dtype)

  def logits(self, params: Any, x_BxLxD: jax.Array) -> jax.Array:
    """[B, L, V], float32."""
    return jnp.einsum('bld,vd->blv', x_BxLxD, self.head(params), preferred_element_type=jnp.float32)
