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
  """N cells over time, each with a norm before it and a sum after it; all of them in one scan."""
  config: Model

  @nn.compact
  def __call__(self, x_BxLxD, fresh_BxL, states=None, keys_B=None):
    """Returns (x_BxLxD, the states after the last token); a token that is `fresh` finds a state of zeros.

    `states` is a cell's carry with a leading axis over layers; None: zeros. Dropout hides the same channels of a
    layer's output at all times (Gal and Ghahramani 2016, arXiv:1512.05287).
    """
    c = self.config
    # Not flax's orthogonal matrices: their QR, of several matrices on several devices at once, hangs XLA's CPU backend.
    cell = CELLS[c.name](c.width, recurrent_kernel_init=nn.initializers.lecun_normal(), dtype=c.dtype,
                         param_dtype=c.param_dtype, parent=None)
    norm = decoder.Norm(c, parent=None)
    one = jnp.zeros((1, c.width), c.dtype)
    def init_layer(key):
      carry = cell.initialize_carry(key, one.shape)
      return {'cell': cell.init(key, carry, one)['params'], 'norm': norm.init(key, one).get('params', {})}
    layers = decoder.unstack(self.param(
        'blocks', lambda key: jax.vmap(init_layer)(jax.random.split(key, c.layers))))
    ones_Bx1xD = jnp.ones((x_BxLxD.shape[0], 1, c.width), c.dtype)
    kept = [decoder.dropout(ones_Bx1xD, keys_B if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(
        keys_B, number), c.dropout, 0)[:, 0] for number in range(c.layers)]

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

    states = zero_states(c, x_BxLxD.shape[0]) if states is None else states
    states, x_LxBxD = jax.lax.scan(step, states, (x_BxLxD.swapaxes(0, 1), fresh_BxL.T))
    return x_LxBxD.swapaxes(0, 1), states


def zero_states(c: Model, batch: int):
  """A cell's carry of zeros, with a leading axis over layers."""
  zeros = lambda: jnp.zeros((c.layers, batch, c.width), c.dtype)
  return (zeros(), zeros()) if c.name == 'lstm' else zeros()  # two arrays, since each may be donated


class Recurrent(TokenModel):
  """`rnn` and `lstm`. A cache is the state after the tokens read so far."""

  @nn.compact
  def __call__(self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    c = self.config
    x_BxLxD = decoder.dropout(self.embed(tokens_BxL), keys_B, c.dropout, 2)
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
    x_BxLxD = decoder.dropout(self.embed(tokens_BxL), keys_B, c.dropout, 2)
    real_BxL = segments_BxL > 0
    stack = Stack(c, parent=None)
    few = jnp.zeros((1, 1, c.width), c.dtype)
    params = [self.param(name, lambda key: stack.init(key, few, few[..., 0] == 0)['params'])
              for name in ('forward', 'backward')]
    # Backwards, the first real token from the right finds no state.
    fresh = [positions_BxL == 0, jnp.flip(~jnp.roll(real_BxL, -1, axis=1), 1)]
    keys = None if keys_B is None else jnp.stack(
        [jax.vmap(jax.random.fold_in, (0, None))(keys_B, c.layers + side) for side in (0, 1)])
    both, _ = jax.vmap(lambda p, x, fresh, keys: stack.apply({'params': p}, x, fresh, keys_B=keys))(
        jax.tree.map(lambda *p: jnp.stack(p), *params), jnp.stack([x_BxLxD, jnp.flip(x_BxLxD, 1)]), jnp.stack(fresh),
        keys)
    left_BxLxD = both[0]
    right_BxLxD = jnp.where(real_BxL[..., None], jnp.flip(both[1], 1), 0)
    right_BxLxD = jnp.pad(right_BxLxD, [(0, 0), (0, 2), (0, 0)])[:, 2:]
    both_BxLx2D = jnp.concatenate([decoder.Norm(c, name='left_norm')(left_BxLxD),
                                   decoder.Norm(c, name='right_norm')(right_BxLxD)], axis=-1)
    x_BxLxD = nn.gelu(decoder.Linear(c, (2 * c.width,), (c.width,), name='join')(both_BxLx2D))
    return decoder.Norm(c, name='norm')(x_BxLxD), None

  def empty_cache(self, batch: int, length: int):
    refuse_cache(self.config.name)
