"""Recurrent networks over tokens: cells of flax, stacked as the decoder's blocks are and scanned over the window.

The skeleton is the decoder's: N layers x + cell(norm(x)) and a last norm, in the place of attention and feed-forward.
The state begins anew with every document. `rnn`, `lstm` and `birnn` are the models.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework.models import contract, flops
from framework.models.layers import Norm, Stack, dropout, fold_keys, unstack
from framework.models.token_model import TokenModel


def describe_cell(params: Any) -> Any:
  """A cell's parameters with their axes and roles: each kernel maps D inputs or D states to D outputs."""
  def one(leaf):
    if leaf.ndim == 1:
      return contract.Parameter(leaf, ('state',), 'bias')
    return contract.Parameter(leaf, ('width', 'state'), 'hidden', ('width',))
  return jax.tree.map(one, params)


class CellStack(nn.Module):
  """N cells over time, each with a norm before it and a sum after it; all of them in one scan."""
  config: config_lib.Model
  cell: Callable[..., nn.RNNCellBase]

  @nn.compact
  def __call__(self, x_BxLxD, fresh_BxL, states=None, keys_B=None):
    """Returns (x_BxLxD, the states after the last token); a token that is `fresh` finds a state of zeros.

    `states` is a cell's carry with a leading axis over layers; None: zeros. Dropout hides the same channels of a
    layer's output at all times (Gal and Ghahramani 2016, arXiv:1512.05287).
    """
    c = self.config
    # Not flax's orthogonal matrices: their QR, of several matrices on several devices at once, hangs XLA's CPU backend.
    cell: Any = self.cell(c.width, recurrent_kernel_init=nn.initializers.lecun_normal(), dtype=c.dtype,
                     param_dtype=c.param_dtype, parent=None)
    norm = Norm(c, parent=None)
    one = jnp.zeros((1, c.width), c.dtype)
    def init_layer(key):
      carry = cell.initialize_carry(key, one.shape)
      return {'cell': describe_cell(cell.init(key, carry, one)['params']),
              'norm': norm.init(key, one).get('params', {})}
    layers = unstack(self.param('blocks', lambda key: Stack(c.layers).init(init_layer, key)))
    ones_Bx1xD = jnp.ones((x_BxLxD.shape[0], 1, c.width), c.dtype)
    kept = [dropout(ones_Bx1xD, fold_keys(keys_B, number), c.dropout, 0)[:, 0] for number in range(c.layers)]

    def step(states, inputs):
      x_BxD, fresh_B = inputs
      states = jax.tree.map(lambda s_NxBxD: jnp.where(fresh_B[:, None], 0, s_NxBxD), states)
      after = []
      for number, (params, kept_BxD) in enumerate(zip(layers, kept)):
        state = jax.tree.map(lambda s_NxBxD: s_NxBxD[number], states)
        state, h_BxD = cell.apply({'params': params['cell']}, state, norm.apply({'params': params['norm']}, x_BxD))
        x_BxD = x_BxD + h_BxD * kept_BxD
        after.append(state)
      return jax.tree.map(lambda *s: jnp.stack(s), *after), x_BxD

    states = zero_states(c, self.cell, x_BxLxD.shape[0]) if states is None else states
    states, x_LxBxD = jax.lax.scan(step, states, (x_BxLxD.swapaxes(0, 1), fresh_BxL.T))
    return x_LxBxD.swapaxes(0, 1), states


def zero_states(c: config_lib.Model, cell: Callable[..., nn.RNNCellBase], batch: int) -> Any:
  """A cell's carry of zeros, with a leading axis over layers; each part is an array of its own, to be donated."""
  one = cell(c.width, dtype=c.dtype, parent=None)
  carry = jax.eval_shape(lambda: one.initialize_carry(jax.random.key(0), (batch, c.width)))
  return jax.tree.map(lambda part: jnp.zeros((c.layers, *part.shape), c.dtype), carry)


@flax.struct.dataclass
class Cache:
  """The states after the tokens read so far, whose number is `index`."""
  states: Any
  index: jax.Array


class Recurrent(TokenModel):
  """Reads from left to right by cells of one kind; a cache is the state after the tokens read so far."""
  cell: type[nn.RNNCellBase]
  maps: int  # D x D products of a cell and token

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c = self.config
    x_BxLxD = dropout(self.embed(tokens_BxL), keys_B, c.dropout, 2)
    x_BxLxD, states = CellStack(c, self.cell, name='forward')(x_BxLxD, positions_BxL == 0, cache and cache.states,
                                                              keys_B)
    if cache is not None:
      cache = Cache(states, cache.index + tokens_BxL.shape[1])
    return Norm(c, name='norm')(x_BxLxD), cache

  def empty_cache(self, batch: int, length: int) -> Cache:
    """It has a place for any number of tokens: `length` is not needed."""
    return Cache(zero_states(self.config, self.cell, batch), jnp.zeros((), jnp.int32))

  def flops(self) -> contract.Flops:
    c = self.config
    forward = 2.0 * self.length * c.layers * self.maps * c.width**2 + flops.head(c, self.vocabulary, self.length)
    return contract.Flops(forward, 3 * forward)
