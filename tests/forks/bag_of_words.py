"""Predicts the next token from the mean of the embeddings so far."""

import flax.linen as nn
import jax.numpy as jnp

from framework.models import contract
from framework.models.layers import Linear, Norm
from framework.models.token_model import TokenModel


class Bag(TokenModel):

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c, count_L = self.config, jnp.arange(1, tokens_BxL.shape[1] + 1)
    mean_BxLxD = jnp.cumsum(self.embed(tokens_BxL), axis=1) / count_L[:, None]
    x_BxLxD = nn.gelu(Linear(c, {'width': c.width}, {'inner': c.width}, name='inner')(mean_BxLxD))
    return Norm(c, name='norm')(x_BxLxD), cache

  def flops(self):
    forward = 2.0 * self.length * self.config.width * (self.config.width + self.vocabulary)
    return contract.Flops(forward, 3 * forward)


def build(config, vocabulary):
  return Bag(config.model, vocabulary, config.data.window)
