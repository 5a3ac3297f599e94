"""A recurrent network that reads both sides of a token (Schuster and Paliwal 1997)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework.models import contract, flops
from framework.models.layers import Linear, Norm, dropout, fold_keys
from framework.models.recurrent import CellStack
from framework.models.token_model import TokenModel


class Bidirectional(TokenModel):
  """Token i+1 from one stack over the tokens up to i and another, backwards, over those from i+2 on.

  The two meet only at the end, so that no path leads from a token to its own prediction (Schuster and Paliwal 1997,
  "Bidirectional Recurrent Neural Networks", in the form of Peters et al. 2018, arXiv:1802.05365, section 3.1). Its loss
  is a pseudo-likelihood, not a code length. The stack that runs backwards reads on from the next document into the one
  before: to stop at the right place would tell where the document ends, which is a target.
  """
  two_sided = True

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c = self.config
    x_BxLxD = dropout(self.embed(tokens_BxL), keys_B, c.dropout, 2)
    real_BxL = segments_BxL > 0
    stack = CellStack(c, nn.SimpleCell, parent=None)
    example = jnp.zeros((1, 1, c.width), c.dtype)
    params = [self.param(name, lambda key: stack.init(key, example, example[..., 0] == 0)['params'])
              for name in ('forward', 'backward')]
    # Backwards, the first real token from the right finds no state.
    fresh = [positions_BxL == 0, jnp.flip(~jnp.roll(real_BxL, -1, axis=1), 1)]
    keys = None if keys_B is None else jnp.stack([
        fold_keys(keys_B, c.layers + side) for side in (0, 1)])  # type: ignore[misc]  # keys of keys
    both, _ = jax.vmap(lambda p, x, fresh, keys: stack.apply({'params': p}, x, fresh, keys_B=keys))(
        jax.tree.map(lambda *p: jnp.stack(p), *params), jnp.stack([x_BxLxD, jnp.flip(x_BxLxD, 1)]), jnp.stack(fresh),
        keys)
    left_BxLxD = both[0]
    right_BxLxD = jnp.where(real_BxL[..., None], jnp.flip(both[1], 1), 0)
    right_BxLxD = jnp.pad(right_BxLxD, [(0, 0), (0, 2), (0, 0)])[:, 2:]
    both_BxLx2D = jnp.concatenate([Norm(c, name='left_norm')(left_BxLxD), Norm(c, name='right_norm')(right_BxLxD)],
                                  axis=-1)
    x_BxLxD = nn.gelu(Linear(c, {'two_widths': 2 * c.width}, {'width': c.width}, name='join')(both_BxLx2D))
    return Norm(c, name='norm')(x_BxLxD), None

  def flops(self) -> contract.Flops:
    c = self.config
    forward = 2.0 * self.length * (c.layers * 4 + 2) * c.width**2 + flops.head(c, self.vocabulary, self.length)
    return contract.Flops(forward, 3 * forward)


def build(config: config_lib.Config, vocabulary: int) -> Bidirectional:
  return Bidirectional(config.model, vocabulary, config.data.window)
