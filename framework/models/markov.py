"""The neural Markov model: the next token from the embeddings of the last two (Bengio et al. 2003, "A Neural
Probabilistic Language Model", section 2, with a tied head). Its embeddings learn from two neighbours, as word2vec's
do: framework/baselines/analogy.py asks them for analogies. It has one hidden layer, whatever model.layers says.
"""

import flax.linen as nn
import jax.numpy as jnp

from framework.models import decoder
from framework.models.token_model import TokenModel


class Markov(TokenModel):
  """`markov`. A cache holds the last token."""

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c = self.config
    tokens_Bx1, segments_Bx1 = tokens_BxL[:, :1], jnp.full_like(segments_BxL[:, :1], -1)  # nothing before
    if cache is not None:
      tokens_Bx1, segments_Bx1 = cache['token'], cache['segment']
      cache = {'token': tokens_BxL[:, -1:], 'segment': segments_BxL[:, -1:],
               'index': cache['index'] + tokens_BxL.shape[1]}
    x_BxTxD = self.embed(jnp.concatenate([tokens_Bx1, tokens_BxL], axis=1))
    x_BxTxD = decoder.Norm(c, name='embedding_norm')(decoder.dropout(x_BxTxD, keys_B, c.dropout, 2))
    before_BxL = jnp.concatenate([segments_Bx1, segments_BxL[:, :-1]], axis=1)
    same_BxLx1 = (before_BxL == segments_BxL)[..., None]
    pair_BxLx2D = jnp.concatenate([jnp.where(same_BxLx1, x_BxTxD[:, :-1], 0), x_BxTxD[:, 1:]], axis=-1)
    u_BxLxF = nn.gelu(decoder.Linear(c, (2 * c.width,), (c.feedforward,), name='up')(pair_BxLx2D))
    x_BxLxD = decoder.Linear(c, (c.feedforward,), (c.width,), name='down')(u_BxLxF)
    return decoder.Norm(c, name='norm')(x_BxLxD), cache

  def empty_cache(self, batch: int, length: int):
    """Room for any number of tokens: `length` is not needed."""
    return {'token': jnp.zeros((batch, 1), jnp.int32), 'segment': jnp.full((batch, 1), -1, jnp.int32),
            'index': jnp.zeros((), jnp.int32)}
