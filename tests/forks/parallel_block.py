"""Attention and feed-forward read the same norm side by side (GPT-J, Wang and Komatsuzaki 2021)."""

import flax.linen as nn

from framework.models import decoder
from framework.models.layers import Norm


class ParallelBlock(decoder.Block):

  @nn.compact
  def __call__(self, x_BxLxD, context, layer=0, cache=None, keys_B=None):
    h_BxLxD = Norm(self.config, name='attention_norm')(x_BxLxD)
    a_BxLxD, cache = self.attention(h_BxLxD, context, layer, cache)
    return x_BxLxD + a_BxLxD + self.feedforward(h_BxLxD), cache


def build(config, vocabulary):
  return decoder.Decoder(config.model, vocabulary, config.data.window, ParallelBlock)
