"""The decoder transformer: tokens -> embedding -> N pre-norm blocks (attention, feed-forward) -> norm -> hidden states.

Letters: B batch, L window, T keys held in a cache, D width, H heads, G key heads, K head width, F feed-forward width,
N layers, V vocabulary. The parameters of the N blocks are stacked on a leading axis whether they run as one scanned
layer or unrolled, so that a checkpoint does not depend on how the model is compiled.
"""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from framework import timestamps
from framework.config import Model
from framework.models import norm
from framework.models.token_model import TokenModel, dropout, fan_in_normal
from pallas_kernels import attention
from pallas_kernels.attention import sharded_attention

Cache = dict[str, jax.Array | list[jax.Array]]
ACTIVATIONS = {'gelu': nn.gelu, 'relu': nn.relu,
               'relu2': lambda x: jnp.square(nn.relu(x))}  # So et al. 2021, arXiv:2109.08668


def rotate(x_BxLxHxK: jax.Array, positions_BxL: jax.Array, base: float) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), channel k paired with channel k + K/2."""
  half = x_BxLxHxK.shape[-1] // 2
  frequency_K = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BxLx1xK = positions_BxL[:, :, None, None].astype(jnp.float32) * frequency_K
  cos, sin = jnp.cos(angle_BxLx1xK), jnp.sin(angle_BxLx1xK)
  a, b = x_BxLxHxK[..., :half], x_BxLxHxK[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxLxHxK.dtype)


def sinusoids(positions_BxL: jax.Array, width: int) -> jax.Array:
  """Sines and cosines of the position, [B, L, D] (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""
  frequency = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = positions_BxL[..., None].astype(jnp.float32) * frequency
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions_BxL.shape, width)


class Norm(nn.Module):
  """RMSNorm (Zhang and Sennrich 2019), LayerNorm (Ba et al. 2016), computed in float32, or nothing."""
  config: Model

  @nn.compact
  def __call__(self, x_BxLxD):
    c = self.config
    if c.norm == 'none':
      return x_BxLxD
    scale_D = self.param('scale', nn.initializers.ones, (c.width,), c.param_dtype)
    x = norm.normalize(x_BxLxD.astype(jnp.float32), scale_D.astype(jnp.float32), c.norm == 'layernorm',
                       c.norm_epsilon)
    if c.bias and c.norm == 'layernorm':
      x = x + self.param('bias', nn.initializers.zeros, (c.width,), c.param_dtype)
    return x.astype(c.dtype)


def head_width(c: Model) -> int:
  """K."""
  return c.head_width or c.width // c.heads


class Linear(nn.Module):
  """Contracts the last `inputs` axes of x with a weight of shape (*in, *out); one matrix product."""
  config: Model
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  gain: float = 1.0

  @nn.compact
  def matrix(self) -> tuple[jax.Array, jax.Array | None]:
    """The weight as [in, out] and the bias as [out], in the compute dtype."""
    c = self.config
    fan_in, fan_out = int(np.prod(self.inputs)), int(np.prod(self.outputs))
    weight = self.param('weight', fan_in_normal(fan_in, self.gain), (*self.inputs, *self.outputs), c.param_dtype)
    bias = self.param('bias', nn.initializers.zeros, self.outputs, c.param_dtype) if c.bias else None
    return (weight.astype(c.dtype).reshape(fan_in, fan_out),
            None if bias is None else bias.astype(c.dtype).reshape(fan_out))

  def __call__(self, x):
    return together(x, self)[0]


def together(x: jax.Array, *linears: Linear) -> list[jax.Array]:
  """Several linear maps of one input as one matrix product."""
  weights, biases = zip(*(linear.matrix() for linear in linears))
  inputs = linears[0].inputs
  lead = x.shape[:x.ndim - len(inputs)]
  y = x.reshape(-1, weights[0].shape[0]) @ (jnp.concatenate(weights, axis=1) if len(weights) > 1 else weights[0])
  if biases[0] is not None:
    y = y + jnp.concatenate(biases)
  parts = jnp.split(y, np.cumsum([w.shape[1] for w in weights])[:-1], axis=1)
  return [part.reshape(*lead, *linear.outputs) for part, linear in zip(parts, linears)]


def room(c: Model, *shape: int) -> list[jax.Array] | jax.Array:
  """Zeros of a shape for each layer: an array a layer where the layers are unrolled, else a stack.

  XLA copies a part of a stack at every step of a loop.
  """
  if not c.scan and c.loops == 1 and c.remat == 'none':
    return [jnp.zeros(shape, c.dtype) for _ in range(c.layers)]
  return jnp.zeros((c.loops * c.layers, *shape), c.dtype)


def put(x: list[jax.Array] | jax.Array, new: jax.Array, layer, at: tuple) -> list[jax.Array] | jax.Array:
  """What `room` gave, with `new` written at the place `at` of `layer`."""
  if isinstance(x, list):
    return [jax.lax.dynamic_update_slice(one, new, at) if n == layer else one for n, one in enumerate(x)]
  return jax.lax.dynamic_update_slice(x, new[None], (layer, *at))


def write(cache: Cache, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, layer) -> tuple[Cache, jax.Array, jax.Array]:
  """The cache with these keys and values written at its index, and all keys and values of the layer, [B, T, G, K]."""
  at = (0, cache['index'], 0, 0)
  cache = cache | {'key': put(cache['key'], k_BxLxGxK, layer, at), 'value': put(cache['value'], v_BxLxGxK, layer, at)}
  return cache, cache['key'][layer], cache['value'][layer]


@flax.struct.dataclass
class Memory:
  """What every layer of a decoder may read besides its own tokens, where the mask is true.

  `gate` is what the branch is multiplied with at first; with 0 the decoder begins as if there were no memory.
  """
  values_BxMxE: jax.Array
  positions_BxM: jax.Array
  mask_BxLxM: jax.Array
  gate: float = flax.struct.field(pytree_node=False, default=1.0)


class CrossAttention(nn.Module):
  """Attention from the tokens to a memory (Vaswani et al. 2017, section 3.2.3), times a learned scalar."""
  config: Model

  @nn.compact
  def __call__(self, x_BxLxD, positions_BxL, memory: Memory):
    c = self.config
    D, H, G, K, E = c.width, c.heads, c.kv_heads, head_width(c), memory.values_BxMxE.shape[-1]
    q_BxLxHxK = Linear(c, (D,), (H, K), name='query')(x_BxLxD)
    k_BxMxGxK, v_BxMxGxK = together(memory.values_BxMxE, Linear(c, (E,), (G, K), name='key'),
                                    Linear(c, (E,), (G, K), name='value'))
    if c.position == 'rope':
      q_BxLxHxK = rotate(q_BxLxHxK, positions_BxL, c.rope_base)
      k_BxMxGxK = rotate(k_BxMxGxK, memory.positions_BxM, c.rope_base)
    a_BxLxHxK = sharded_attention(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask=memory.mask_BxLxM[:, None],
                                  implementation=None if c.attention == 'auto' else c.attention)
    gate = self.param('scale', nn.initializers.constant(memory.gate), (), c.param_dtype)
    return gate.astype(c.dtype) * Linear(c, (H, K), (D,), (2 * c.layers) ** -0.5, name='out')(a_BxLxHxK)


def attention_weights(weigh: Callable[[jax.Array], jax.Array], like_BxTxGxK: jax.Array) -> jax.Array:
  """What `weigh(values)` weighs each key with, float32 [B, H, Q, T]: it is given values that name their key."""
  B, T, G, K = like_BxTxGxK.shape
  names_PxTxK = np.eye(T, -(-T // K) * K, dtype=np.float32).reshape(T, -1, K).swapaxes(0, 1)
  parts = [weigh(jnp.broadcast_to(names_TxK[None, :, None], (B, T, G, K)).astype(like_BxTxGxK.dtype))
           for names_TxK in names_PxTxK]
  return jnp.concatenate(parts, -1)[..., :T].swapaxes(1, 2).astype(jnp.float32)


class Block(nn.Module):
  """x + attention(norm(x)), then x + cross-attention(norm(x)) if there is a memory, then x + feed-forward(norm(x))."""
  config: Model

  @nn.compact
  def __call__(self, x_BxLxD, positions_BxL, mask_Bx1xQxT, distance_QxT, cache: Cache | None = None, layer=0,
               keys_B=None, memory: Memory | None = None, attend: Callable | None = None, rule: dict | None = None):
    """Returns (x_BxLxD, the cache with this call's keys and values of layer number `layer` written, or None).

    `rule`: the mask in the words of timestamps.as_arguments, for a backend that skips blocks.
    """
    c = self.config
    D, H, G, K, F = c.width, c.heads, c.kv_heads, head_width(c), c.feedforward
    # Both branches add to the stream once a layer: scaled down by sqrt(2 N) its variance stays that of the input
    # (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3).
    residual_gain = (2 * c.loops * c.layers) ** -0.5

    h = Norm(c, name='attention_norm')(x_BxLxD)
    q_BxLxHxK, k_BxTxGxK, v_BxTxGxK = together(
        h, Linear(c, (D,), (H, K), name='query'), Linear(c, (D,), (G, K), name='key'),
        Linear(c, (D,), (G, K), name='value'))
    if c.position == 'rope':
      q_BxLxHxK = rotate(q_BxLxHxK, positions_BxL, c.rope_base)
      k_BxTxGxK = rotate(k_BxTxGxK, positions_BxL, c.rope_base)
    if attend is not None:
      a_BxLxHxK, cache = attend(q_BxLxHxK, k_BxTxGxK, v_BxTxGxK, mask_Bx1xQxT, cache, layer)
    else:
      if cache is not None:
        cache, k_BxTxGxK, v_BxTxGxK = write(cache, k_BxTxGxK, v_BxTxGxK, layer)
      if c.attention_scale == 'log':  # Chiang and Cholak 2022, arXiv:2202.12172, section 5.3
        keys_BxL = jnp.maximum(mask_Bx1xQxT.sum(-1, dtype=jnp.float32)[:, 0], 1)
        q_BxLxHxK = (q_BxLxHxK * jnp.log(keys_BxL)[..., None, None]).astype(c.dtype)
      bias_1xHxQxT = None
      if c.relative_bias:  # a bias a distance, as in T5 (Raffel et al. 2020, arXiv:1910.10683) without its buckets
        R = c.relative_bias
        table_HxR = self.param('relative_bias', nn.initializers.zeros, (H, 2 * R + 1), c.param_dtype)
        bias_1xHxQxT = table_HxR.astype(jnp.float32)[None, :, jnp.clip(distance_QxT, -R, R) + R]
      def weigh(value_BxTxGxK):
        return sharded_attention(q_BxLxHxK, k_BxTxGxK, value_BxTxGxK, bias=bias_1xHxQxT,
                                 **(rule or {'mask': mask_Bx1xQxT}),
                                 scale=1.0 if c.attention_scale == 'one' else None,
                                 implementation=None if c.attention == 'auto' else c.attention)
      if self.is_mutable_collection('intermediates'):
        self.sow('intermediates', 'attention', attention_weights(weigh, k_BxTxGxK))
      a_BxLxHxK = weigh(v_BxTxGxK)
    a_BxLxD = Linear(c, (H, K), (D,), residual_gain, name='out')(a_BxLxHxK)
    x_BxLxD = x_BxLxD + dropout(a_BxLxD, keys_B, c.dropout, 0)

    if memory is not None:
      m_BxLxD = CrossAttention(c, name='cross')(Norm(c, name='cross_norm')(x_BxLxD), positions_BxL, memory)
      x_BxLxD = x_BxLxD + dropout(m_BxLxD, keys_B, c.dropout, 3)

    h = Norm(c, name='feedforward_norm')(x_BxLxD)
    up = Linear(c, (D,), (F,), name='up')
    if c.activation == 'swiglu':  # Shazeer 2020, arXiv:2002.05202
      u_BxLxF, gate_BxLxF = together(h, up, Linear(c, (D,), (F,), name='gate'))
      u_BxLxF = nn.silu(gate_BxLxF) * u_BxLxF
    else:
      u_BxLxF = ACTIVATIONS[c.activation](up(h))
    f_BxLxD = Linear(c, (F,), (D,), residual_gain, name='down')(u_BxLxF)
    return x_BxLxD + dropout(f_BxLxD, keys_B, c.dropout, 1), cache


@jax.custom_vjp
def unstack(tree):
  """The leaves' leading axis as a list of trees. Its gradient is one stack, where slices would add N padded arrays."""
  leaves, treedef = jax.tree.flatten(tree)
  return [treedef.unflatten(parts) for parts in zip(*map(list, leaves))]


unstack.defvjp(lambda tree: (unstack(tree), None),
               lambda _, parts: (jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts),))


class Decoder(TokenModel):
  """See the module's docstring. `length` is the longest position of a learned table."""

  @nn.compact
  def __call__(
      self, tokens_BxL: jax.Array, positions_BxL: jax.Array, segments_BxL: jax.Array, *,
      cache: Cache | None = None, keys_B: jax.Array | None = None, added_BxLxD: jax.Array | None = None,
      mask_BxLxT: jax.Array | None = None, memory: Memory | None = None, attend: Callable | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Hidden states after the last norm, [B, L, D], and the cache if one was given.

    Applied with mutable=['intermediates'] it also gives the attention of every layer, 'attention': [N, B, H, Q, T].

    Args:
      tokens_BxL, positions_BxL: int32; positions count from the start of a row's document.
      segments_BxL: int32, the document of each token; tokens of different segments never read each other.
      cache: from `empty_cache`; this call's tokens are appended to it.
      keys_B: dropout keys, one a row; None: no dropout.
      added_BxLxD: added to the tokens' embeddings.
      mask_BxLxT: which tokens of this call and of the cache each token may read; None: what model.mask says.
      memory: read by every layer.
      attend: takes the place of self-attention, (q, k, v, mask, cache, layer) -> ([B, L, H, K], cache); the cache is
        then its own.
    """
    c = self.config
    x_BxLxD = self.embed(tokens_BxL)
    if c.position == 'learned':
      table = self.param('position', nn.initializers.normal(0.02), (self.length, c.width), c.param_dtype)
      x_BxLxD = x_BxLxD + table.astype(c.dtype)[positions_BxL]
    elif c.position == 'sinusoidal':
      # Vaswani et al. add sinusoids of amplitude 1 to embeddings of deviation 1; here that deviation is 0.02.
      x_BxLxD = x_BxLxD + 0.02 * sinusoids(positions_BxL, c.width).astype(c.dtype)
    if added_BxLxD is not None:
      x_BxLxD = x_BxLxD + added_BxLxD.astype(c.dtype)
    x_BxLxD = dropout(x_BxLxD, keys_B, c.dropout, 2)

    index, segments_BxT = 0, segments_BxL
    if cache is not None and c.mask == 'bidirectional':
      raise ValueError("a cache with model.mask 'bidirectional'; expected 'causal' or 'strict'")
    if cache is not None and attend is None:
      index = cache['index']
      segments_BxT = jax.lax.dynamic_update_slice(cache['segments'], segments_BxL, (0, index))
      cache = cache | {'segments': segments_BxT}
    tau_L = timestamps.decoder_stamps(tokens_BxL.shape[1], index)
    tau_T = timestamps.decoder_stamps(segments_BxT.shape[1])
    distance_QxT = tau_L[:, None] - tau_T
    if c.mask == 'bidirectional':
      tau_L = tau_T = timestamps.encoder_stamps(tokens_BxL.shape[1])
    rule = None
    if mask_BxLxT is None:
      nodes = tau_L - (c.mask == 'strict'), tau_T, segments_BxL, segments_BxT
      mask_BxLxT = timestamps.may_read(*nodes)
      if not attention.reads_dense_mask(None if c.attention == 'auto' else c.attention):
        rule = timestamps.as_arguments(*nodes)
    mask_Bx1xQxT = mask_BxLxT[:, None]

    block = Block(c, parent=None)
    def init_blocks(key):
      zero, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1, 1), bool)
      few = memory and jax.tree.map(lambda x: x[:1, :1], memory).replace(mask_BxLxM=mask[:, 0])
      words = rule and timestamps.as_arguments(zero, zero, zero, zero)
      one = lambda k: block.init(
          k, jnp.zeros((1, 1, c.width), c.dtype), zero, mask, zero, memory=few, rule=words)['params']
      return jax.vmap(one)(jax.random.split(key, c.layers))
    blocks = self.param('blocks', init_blocks)

    watched = self.is_mutable_collection('intermediates') and attend is None
    def layer(carry, inputs):
      (x_BxLxD, cache), (params, number) = carry, inputs
      keys = None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
      out = block.apply({'params': params}, x_BxLxD, positions_BxL, mask_Bx1xQxT, distance_QxT, cache, number, keys,
                        memory, attend, rule, mutable=['intermediates'] if watched else False)
      return out if watched else (out, None)

    if c.remat != 'none':
      layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable if c.remat == 'dots' else None)
    carry = (x_BxLxD, cache)
    if c.scan:
      once = lambda carry, first: jax.lax.scan(layer, carry, (blocks, first + jnp.arange(c.layers)))
    else:
      parts = unstack(blocks)
      def once(carry, first):
        seen = []
        for number, params in enumerate(parts):
          carry, found = layer(carry, (params, first + number))
          seen.append(found)
        return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *seen)
    if c.loops == 1:
      carry, seen = once(carry, 0)
    else:
      carry, seen = jax.lax.scan(once, carry, c.layers * jnp.arange(c.loops))
    x_BxLxD, cache = carry
    if watched:
      weights, = seen['intermediates']['attention']
      self.sow('intermediates', 'attention', weights.reshape(-1, *weights.shape[-4:]))
    if cache is not None and attend is None:
      cache = cache | {'index': index + tokens_BxL.shape[1]}
    return Norm(c, name='norm')(x_BxLxD), cache

  def empty_cache(self, batch: int, length: int) -> Cache:
    """Room for `length` tokens a row. Segment 0 marks an empty place."""
    c = self.config
    shape = batch, length, c.kv_heads, head_width(c)
    return {'key': room(c, *shape), 'value': room(c, *shape),
            'segments': jnp.zeros((batch, length), jnp.int32), 'index': jnp.zeros((), jnp.int32)}
