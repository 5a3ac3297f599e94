"""An encoder that reads a long history in any direction, in front of a decoder that predicts what comes next.

"TCS for LLMs" (Foster and Madeka, 2023): a function that is easy from right to left and hard from left to right asks
for a reader that goes from right to left. Of a window of L tokens with stride S the encoder reads the first L - S and
the decoder predicts the S targets of the window's block: every token is a target once an epoch, as for any model.
Every node of the encoder has as its stamp the last token of the history; what it reads of it is its direction's choice:

bidirectional: every token of the history reads every other.
right_to_left: attention to the token itself and those after it.
right_to_left_scan: a gated recurrence from the last token to the first (Cho et al. 2014, arXiv:1406.1078), one such
  layer over the embeddings. It is recomputed in chunks of about the square root of the history (Chen et al. 2016,
  arXiv:1604.06174), so that memory grows with that square root.

`prefix` is the same rule in one stack: a decoder whose first L - S tokens read each other.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework import sharding, timestamps
from framework.config import ConfigError
from framework.models import contract, flops
from framework.models.attention import Memory
from framework.models.decoder import Decoder
from framework.models.layers import fan_in_normal, fold_keys

Params = dict[str, Any]


def init_scan(key: jax.Array, width: int, dtype: str) -> Params:
  """Parameters of a gated recurrent layer: weights [D, 3 D] of inputs and of states, and biases [2, 3 D]."""
  def matrix(key, axis):
    weight = fan_in_normal(width)(key, (width, 3 * width), dtype)
    return {'weight': contract.Parameter(weight, (axis, 'gates'), 'hidden', (axis,))}
  one, two = jax.random.split(key)
  return {'input': matrix(one, 'width'), 'state': matrix(two, 'state'),
          'gates': {'bias': contract.Parameter(jnp.zeros((2, 3 * width), dtype), ('sides', 'gates'), 'bias')}}


def scan_right_to_left(params: Params, x_BxHxE: jax.Array, segments_BxH: jax.Array) -> jax.Array:
  """States of a gated recurrent unit that reads the last token first, [B, H, D]; it starts anew in each segment."""
  B, H, _ = x_BxHxE.shape
  D = params['state']['weight'].shape[0]
  bias_in, bias_state = params['gates']['bias'].astype(x_BxHxE.dtype)
  later_BxH = jnp.concatenate([segments_BxH[:, 1:], segments_BxH[:, -1:]], axis=1)
  size = max(1, math.isqrt(H))
  pad = -H % size  # at the left, which is read last
  def chunks(x):
    x = jnp.pad(x, [(0, 0), (pad, 0)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, -1, size, *x.shape[2:]), 0, 2)

  def one(h_BxD, inputs):
    x_BxE, same_B = inputs
    h_BxD = jnp.where(same_B[:, None], h_BxD, 0)
    a = x_BxE @ params['input']['weight'].astype(x_BxE.dtype) + bias_in
    b = h_BxD @ params['state']['weight'].astype(x_BxE.dtype) + bias_state
    (a_r, a_z, a_n), (b_r, b_z, b_n) = jnp.split(a, 3, axis=-1), jnp.split(b, 3, axis=-1)
    r, z = jax.nn.sigmoid(a_r + b_r), jax.nn.sigmoid(a_z + b_z)
    h_BxD = (1 - z) * jnp.tanh(a_n + r * b_n) + z * h_BxD
    return h_BxD, h_BxD

  @jax.checkpoint
  def chunk(h_BxD, inputs):
    return jax.lax.scan(one, h_BxD, inputs, reverse=True)

  start = jnp.zeros((B, D), x_BxHxE.dtype)
  _, h = jax.lax.scan(chunk, start, (chunks(x_BxHxE), chunks(segments_BxH == later_BxH)), reverse=True)
  return jnp.moveaxis(h, 2, 0).reshape(B, -1, D)[:, pad:]


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
  """Parameters {'encoder': ..., 'decoder': ...}; of `prefix`, {'decoder': ...}. `history` is L - S."""
  kind: str
  encoder: Decoder
  decoder: Decoder
  history: int

  @property
  def config(self) -> config_lib.Model:
    return self.decoder.config

  @property
  def stochastic(self) -> bool:
    return self.config.dropout > 0

  @property
  def vocabulary(self) -> int:
    return self.decoder.vocabulary

  def parameters(self, key: jax.Array) -> Params:
    one = jnp.ones((1, 1), jnp.int32)
    first, second = jax.random.split(key)
    if self.kind == 'prefix':
      return {'decoder': self.decoder.parameters(second)}
    c = self.encoder.config
    memory = Memory(jnp.zeros((1, 1, c.width), c.dtype), one, jnp.ones((1, 1, 1), bool))
    if self.kind == 'right_to_left_scan':
      embedding = 0.02 * jax.random.normal(first, (self.encoder.vocabulary, c.width), c.param_dtype)
      encoder = {'embedding': contract.Parameter(embedding, ('vocabulary', 'width'), 'embedding', ('vocabulary',)),
                 'scan': init_scan(jax.random.fold_in(first, 1), c.width, c.param_dtype)}
    else:
      encoder = self.encoder.parameters(first)
    return {'encoder': encoder, 'decoder': self.decoder.init(second, one, one * 0, one, memory=memory)['params']}

  def flops(self) -> contract.Flops:
    """Of a history of L - S tokens, then of S nodes with all L predictions."""
    m, H, L, V = self.config, self.history, self.decoder.length, self.vocabulary
    S, width = L - H, self.encoder.config.width
    if self.kind == 'prefix':
      forward = flops.blocks(m, L, L)
    elif self.kind == 'right_to_left_scan':
      forward = 2.0 * H * 2 * width * 3 * width + flops.blocks(m, S, S) + flops.cross(m, S, H, width)
    else:
      forward = flops.blocks(self.encoder.config, H, H) + flops.blocks(m, S, S) + flops.cross(m, S, H, width)
    forward += flops.head(m, V, L)
    return contract.Flops(forward, 3 * forward)

  def head(self, params: Params) -> jax.Array:
    return self.decoder.head(params['decoder'])

  def logits(self, params: Params, x_BxLxD: jax.Array) -> jax.Array:
    return self.decoder.logits(params['decoder'], x_BxLxD)

  def encode(self, params: Params, tokens_BxH: jax.Array, positions_BxH: jax.Array, segments_BxH: jax.Array,
             keys_B: jax.Array | None = None) -> jax.Array:
    """What the decoder may read of each token of the history, [B, H, D]."""
    if self.kind == 'right_to_left_scan':
      x_BxHxD = sharding.taken(params['encoder']['embedding'], tokens_BxH, self.encoder.config.dtype)
      # Embeddings begin with a deviation of 0.02, a recurrence wants inputs of about 1.
      return scan_right_to_left(params['encoder']['scan'], x_BxHxD / 0.02, segments_BxH)
    tau_H = timestamps.encoder_stamps(tokens_BxH.shape[1])
    mask = timestamps.may_read(tau_H, tau_H, segments_BxH, segments_BxH)
    if self.kind == 'right_to_left':
      place_H = timestamps.decoder_stamps(tokens_BxH.shape[1])
      mask &= timestamps.may_read(-place_H, -place_H)
    return self.encoder.apply({'params': params['encoder']}, tokens_BxH, positions_BxH, segments_BxH, mask_BxLxT=mask,
                              keys_B=keys_B)[0]

  def hidden(self, params: Params, batch: dict[str, jax.Array], keys_B: jax.Array | None = None) -> jax.Array:
    """Hidden states of a batch of framework.data.windows, [B, L, D]; 0 where the batch has no target.

    The first windows of a text have their block not at the end: rows are turned until it is there, and what would then
    come after the block lies in a segment that nobody reads.
    """
    H = self.history
    B, L = batch['tokens'].shape
    place_L = jnp.arange(L, dtype=jnp.int32)
    last_B = jnp.where(batch['weights'] > 0, place_L, 0).max(1)
    source_BxL = place_L - (L - 1 - last_B[:, None])  # negative: turned round, from beyond the block
    def turned(x):
      return jnp.take_along_axis(x, source_BxL % L, axis=1)
    tokens, positions = turned(batch['tokens']), turned(batch['positions'])
    segments = jnp.where(source_BxL < 0, -1, turned(batch['segments']))
    tau_L = timestamps.prefix_stamps(L, H)
    if self.kind == 'prefix':
      mask = timestamps.may_read(tau_L, tau_L, segments, segments)
      x_BxLxD, _ = self.decoder.apply({'params': params['decoder']}, tokens, positions, segments, mask_BxLxT=mask,
                                      keys_B=keys_B)
      x_BxSxD = x_BxLxD[:, H:]
    else:
      keys = fold_keys(keys_B, 7)
      values = self.encode(params, tokens[:, :H], positions[:, :H], segments[:, :H], keys)
      allowed = timestamps.may_read(tau_L[H:], tau_L[:H], segments[:, H:], segments[:, :H])
      x_BxSxD, _ = self.decoder.apply(
          {'params': params['decoder']}, tokens[:, H:], positions[:, H:], segments[:, H:], keys_B=keys_B,
          memory=Memory(values, positions[:, :H], allowed))
    padded = jnp.pad(x_BxSxD, [(0, 0), (H, 0), (0, 0)])
    back_BxL = (place_L + (L - 1 - last_B[:, None])) % L
    return jnp.take_along_axis(padded, back_BxL[:, :, None], axis=1)


def build(config: config_lib.Config, vocabulary: int) -> EncoderDecoder:
  """A window of L tokens is a history of L - S and a block of S."""
  d = config.data
  return EncoderDecoder(config.encoder.kind, Decoder(encoder_model(config), vocabulary, d.window),
                        Decoder(config.model, vocabulary, d.window), d.window - d.stride)


def resolve(config: config_lib.Config) -> None:
  """Raises ConfigError for an encoder without a history, or of a width that its heads do not divide."""
  d, m, width = config.data, config.model, config.encoder.width or config.model.width
  if d.stride >= d.window:
    raise ConfigError(f"data.stride is {d.stride}; model.name 'encoder_decoder' reads the window's tokens before it, "
                      f'so expected less than data.window {d.window}, nearest is {d.window - 1}')
  if d.scored != 'stride' or d.unscored:
    key, value = ('scored', d.scored) if d.scored != 'stride' else ('unscored', d.unscored)
    raise ConfigError(f"data.{key} is {value}; model.name 'encoder_decoder' scores its block alone: expected "
                      f'{getattr(config_lib.Data(), key)}')
  if config.evaluation.stride != d.stride:
    raise ConfigError(f"evaluation.stride is {config.evaluation.stride}; model.name 'encoder_decoder' predicts "
                      f'data.stride tokens a window: expected {d.stride}')
  if width % (2 * m.heads):
    raise ConfigError(f'encoder.width is {width}; expected a multiple of {2 * m.heads} for model.heads {m.heads}, '
                      f'nearest is {max(1, round(width / (2 * m.heads))) * 2 * m.heads}')


def encoder_model(config: config_lib.Config) -> config_lib.Model:
  m, e = config.model, config.encoder
  width = e.width or m.width
  forward = m.feedforward if width == m.width else max(1, round(m.feedforward * width / m.width))
  return dataclasses.replace(m, layers=e.layers or m.layers, width=width, feedforward=forward)
