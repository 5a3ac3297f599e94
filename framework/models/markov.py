"""The neural Markov model: the next token from the embeddings of the last two (Bengio et al. 2003, "A Neural
Probabilistic Language Model", section 2, with a tied head). Its embeddings learn from two neighbours, as word2vec's
do: framework/baselines/analogy.py asks them for analogies. It has one hidden layer, whatever model.layers says.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework.models import contract, flops
from framework.models.layers import Linear, Norm, dropout
from framework.models.token_model import TokenModel


@flax.struct.dataclass
class Cache:
  """The last token of each row and its segment, [B, 1]."""
  token: jax.Array
  segment: jax.Array
  index: jax.Array


class Markov(TokenModel):
  """Predicts from two tokens; see the module's docstring."""

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c = self.config
    tokens_Bx1, segments_Bx1 = tokens_BxL[:, :1], jnp.full_like(segments_BxL[:, :1], -1)  # nothing before
    if cache is not None:
      tokens_Bx1, segments_Bx1 = cache.token, cache.segment
      cache = Cache(tokens_BxL[:, -1:], segments_BxL[:, -1:], cache.index + tokens_BxL.shape[1])
    x_BxTxD = self.embed(jnp.concatenate([tokens_Bx1, tokens_BxL], axis=1))
    x_BxTxD = Norm(c, name='embedding_norm')(dropout(x_BxTxD, keys_B, c.dropout, 2))
    before_BxL = jnp.concatenate([segments_Bx1, segments_BxL[:, :-1]], axis=1)
    same_BxLx1 = (before_BxL == segments_BxL)[..., None]
    pair_BxLx2D = jnp.concatenate([jnp.where(same_BxLx1, x_BxTxD[:, :-1], 0), x_BxTxD[:, 1:]], axis=-1)
    pair, inner, width = {'two_widths': 2 * c.width}, {'feedforward': c.feedforward}, {'width': c.width}
    u_BxLxF = nn.gelu(Linear(c, pair, inner, name='up')(pair_BxLx2D))
    return Norm(c, name='norm')(Linear(c, inner, width, name='down')(u_BxLxF)), cache

  def empty_cache(self, batch: int, length: int) -> Cache:
    """It has a place for any number of tokens: `length` is not needed."""
    return Cache(jnp.zeros((batch, 1), jnp.int32), jnp.full((batch, 1), -1, jnp.int32), jnp.zeros((), jnp.int32))

  def flops(self) -> contract.Flops:
    c = self.config
    forward = 2.0 * self.length * 3 * c.width * c.feedforward + flops.head(c, self.vocabulary, self.length)
    return contract.Flops(forward, 3 * forward)


def build(config: config_lib.Config, vocabulary: int) -> Markov:
  return Markov(config.model, vocabulary, config.data.window)
