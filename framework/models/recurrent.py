"""Recurrent networks: RNN (Elman 1990) and LSTM (Hochreiter and Schmidhuber 1997), and an RNN that reads both sides.

The skeleton is the decoder's: N layers x + cell(norm(x)) and a last norm, with flax's cells, scanned over the window,
in the place of attention and feed-forward. The state begins anew with every document.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from framework.config import ConfigError, Model
from framework.models import decoder
from framework.models.token_model import TokenModel

CELLS = {'rnn': nn.SimpleCell, 'lstm': nn.OptimizedLSTMCell, 'birnn': nn.SimpleCell}  # by model.name
TWO_SIDED = ('birnn', 'masked')  # by model.name: losses that are no code lengths


class Stack(nn.Module):
  """N cells over time, each with a norm before it and a sum after it."""
  config: Model

  @nn.compact
  def __call__(self, x_BxLxD, fresh_BxL, states=None, keys_B=None):
    """Returns (x_BxLxD, the states after the last token); a token that is `fresh` finds a state of zeros.

    `states` is a cell's carry with a leading axis over layers; None: zeros.
    """
    c = self.config
    cell = CELLS[c.name](c.width, dtype=c.dtype, param_dtype=c.param_dtype, parent=None)
    norm = decoder.Norm(c, parent=None)
    one = jnp.zeros((1, c.width), c.dtype)
    def init_layer(key):
      carry = cell.initialize_carry(key, one.shape)
      return {'cell': cell.init(key, carry, one)['params'], 'norm': norm.init(key, one)['params']}
    layers = self.param('blocks', lambda key: jax.vmap(init_layer)(jax.random.split(key, c.layers)))
    if states is None:
      states = zero_states(c, x_BxLxD.shape[0])

    def layer(x_BxLxD, state, params, keys_B):
      def step(state, inputs):
        h_BxD, fresh_B = inputs
        state = jax.tree.map(lambda s: jnp.where(fresh_B[:, None], 0, s), state)
        return cell.apply({'params': params['cell']}, state, h_BxD)
      h_BxLxD = norm.apply({'params': params['norm']}, x_BxLxD)
      state, h_LxBxD = jax.lax.scan(step, state, (h_BxLxD.swapaxes(0, 1), fresh_BxL.T))
      return x_BxLxD + decoder.dropout(h_LxBxD.swapaxes(0, 1), keys_B, c.dropout, 0), state

    after = []
    for number, (params, state) in enumerate(zip(decoder.unstack(layers), decoder.unstack(states))):
      keys = None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
      x_BxLxD, state = layer(x_BxLxD, state, params, keys)
      after.append(state)
    return x_BxLxD, jax.tree.map(lambda *s: jnp.stack(s), *after)


def zero_states(c: Model, batch: int):
  """A cell's carry of zeros, with a leading axis over layers."""
  zeros = jnp.zeros((c.layers, batch, c.width), c.dtype)
  return (zeros, zeros) if c.name == 'lstm' else zeros


class Recurrent(TokenModel):
  """`rnn` and `lstm`. A cache is the state after the tokens read so far."""

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c = self.config
    x_BxLxD = self.embed(tokens_BxL, keys_B)
    x_BxLxD, states = Stack(c, name='forward')(x_BxLxD, positions_BxL == 0, cache and cache['states'], keys_B)
    if cache is not None:
      cache = {'states': states, 'index': cache['index'] + tokens_BxL.shape[1]}
    return decoder.Norm(c, name='norm')(x_BxLxD), cache

  def empty_cache(self, batch: int, length: int):
    """Room for any number of tokens: `length` is not needed."""
    return {'states': zero_states(self.config, batch), 'index': jnp.zeros((), jnp.int32)}


def refuse_cache(name: str):
  """Raises ConfigError: a model that reads what follows its target can be evaluated, but writes nothing."""
  raise ConfigError(f"model.name is '{name}', which reads on both sides of its target and so can neither generate nor "
                    "compress; expected decoder, rnn, lstm or markov")


class Bidirectional(TokenModel):
  """`birnn`: token i+1 from one stack over the tokens up to i and another, backwards, over those from i+2 on.

  The two meet only at the end, so that no path leads from a token to its own prediction (Schuster and Paliwal 1997,
  "Bidirectional Recurrent Neural Networks", in the form of Peters et al. 2018, arXiv:1802.05365, section 3.1). Its loss
  is a pseudo-likelihood, not a code length. The stack that runs backwards reads on from the next document into the one
  before: to stop at the right place would tell where the document ends, which is a target.
  """

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c = self.config
    x_BxLxD = self.embed(tokens_BxL, keys_B)
    left_BxLxD, _ = Stack(c, name='forward')(x_BxLxD, positions_BxL == 0, keys_B=keys_B)
    real_BxL = segments_BxL > 0
    fresh_BxL = ~jnp.roll(real_BxL, -1, axis=1)  # the first real token from the right finds no state
    keys = None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, c.layers)
    back_BxLxD, _ = Stack(c, name='backward')(jnp.flip(x_BxLxD, 1), jnp.flip(fresh_BxL, 1), keys_B=keys)
    right_BxLxD = jnp.where(real_BxL[..., None], jnp.flip(back_BxLxD, 1), 0)
    right_BxLxD = jnp.pad(right_BxLxD, [(0, 0), (0, 2), (0, 0)])[:, 2:]
    both_BxLx2D = jnp.concatenate([decoder.Norm(c, name='left_norm')(left_BxLxD),
                                   decoder.Norm(c, name='right_norm')(right_BxLxD)], axis=-1)
    x_BxLxD = nn.gelu(decoder.Linear(c, (2 * c.width,), (c.width,), name='join')(both_BxLx2D))
    return decoder.Norm(c, name='norm')(x_BxLxD), None

  def empty_cache(self, batch: int, length: int):
    refuse_cache(self.config.name)
