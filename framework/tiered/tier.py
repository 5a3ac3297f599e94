"""One tier of the tiered model: a decoder that reads text and the rollouts of the tiers below, and writes its own.

What it reads is laid out by framework.tiered.nodes; all of it obeys framework.timestamps. The layout `cross` keeps the
real tokens alone and reads rollouts by gated cross-attention in every layer.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework import timestamps
from framework.models import backends, contract
from framework.models.attention import Cache, Memory
from framework.models.decoder import Decoder
from framework.tiered import nodes, rollouts
from framework.tiered.content import Written
from framework.tiered.nodes import Nodes
from pallas_kernels.attention import dot_product_attention


@dataclasses.dataclass(frozen=True)
class Tier:
  """One tier: a decoder over nodes. Its vocabulary is the real one and two more tokens, resume and filler."""
  decoder: Decoder
  settings: config_lib.Tiered
  lower: int  # tiers below it
  lower_width: int  # of the tier right below it

  @property
  def vocabulary(self) -> int:
    return self.decoder.vocabulary - 2

  def parameters(self, key: jax.Array) -> dict[str, Any]:
    c, s = self.decoder.config, self.settings
    one = jnp.ones((1, 1), jnp.int32)
    memory = None
    if self.lower and s.layout == 'cross':
      width = self.lower_width if s.read == 'hidden' else c.width
      memory = Memory(jnp.zeros((1, 1, width), c.dtype), one, jnp.ones((1, 1, 1), bool), gate=0.0)
    params = {'decoder': self.decoder.init(key, one, one * 0, one, memory=memory)['params']}
    if self.lower and not (s.layout == 'cross' and s.read == 'hidden'):
      kinds = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), (self.lower + 1, c.width), c.param_dtype)
      params['kinds'] = contract.Parameter(kinds, ('kinds', 'width'), 'embedding', ('kinds',))
    if self.lower and s.layout == 'stamp':
      bias = jnp.full((c.loops * c.layers, c.heads), s.first_bias, c.param_dtype)
      params['bias'] = contract.Parameter(bias, ('layers', 'heads'), 'bias')
    return params

  def lay_out(self, real: Nodes, starts_BxG: jax.Array, below: Sequence[Written]) -> tuple[Nodes, jax.Array]:
    """The tier's nodes, [B, N], and which of them predicts the token after each real one, [B, L]."""
    tokens, s = [w.tokens_BxGxKxR for w in below], self.settings
    if s.layout == 'stream':
      return nodes.stream(real, starts_BxG, tokens, self.vocabulary, s.delay)
    own = nodes.stamp(real, starts_BxG, tokens, s.delay) if s.layout == 'stamp' else real
    return own, jnp.broadcast_to(jnp.arange(real.tokens.shape[1]), real.tokens.shape)

  def mask(self, query: Nodes, key: Nodes, starts_BxG: jax.Array) -> jax.Array:
    s = self.settings
    return nodes.mask(query, key, starts_BxG, delay=s.delay, both_ways=s.both_ways, across=s.across, last=s.last)

  def memory(self, params: Any, query: Nodes, real: Nodes, starts_BxG: jax.Array,
             below: Sequence[Written]) -> Memory | None:
    """What `cross` reads at the nodes `query`: the rollouts' embeddings, or hidden states of the tier right below."""
    if self.settings.layout != 'cross' or not below:
      return None
    rollouts_read = nodes.rollout_nodes(real, starts_BxG, [w.tokens_BxGxKxR for w in below], self.settings.delay)
    if self.settings.read == 'hidden':
      hidden: Any = below[-1].hidden_BxGxKxRxD
      values = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])
      rollouts_read = jax.tree.map(lambda x: x[:, -values.shape[1]:], rollouts_read)
    else:
      values = params['decoder']['embedding'][rollouts_read.tokens] + params['kinds'][rollouts_read.kind - 1]
    allowed = timestamps.may_read(query.tau, rollouts_read.tau, query.segments, rollouts_read.segments)
    return Memory(values.astype(self.decoder.config.dtype), rollouts_read.positions, allowed, gate=0.0)

  def read(self, params: Any, query: Nodes, *, mask_BxNxT: jax.Array | None = None, key: Nodes | None = None,
           memory: Memory | None = None, cache: Cache | None = None,
           keys_B: jax.Array | None = None) -> tuple[jax.Array, Cache | None]:
    """Hidden states of the nodes [B, N, D], and the cache.

    Args:
      mask_BxNxT: for the layout stamp, which of the nodes `key` (the cache's, or the same as `query`) each one reads.
    """
    attend = None
    if mask_BxNxT is not None and self.lower:
      def attend(q, k, v, mask, cache, layer):
        if cache is not None:
          cache, k, v = cache.write(k, v, layer)
        def part(allowed_BxNxT):
          return dot_product_attention(q, k, v, mask=allowed_BxNxT[:, None], return_residual=True,
                                       implementation=backends.implementation(self.decoder.config.attention))
        return rollouts.merge(*self.parts(
            params, part, mask[:, 0], key, layer)).astype(q.dtype), cache  # type: ignore[arg-type]  # a mask has a key
    x_BxNxD, cache = self.decoder.apply(  # type: ignore[assignment]  # no variables are mutable
        {'params': params['decoder']}, query.tokens, query.positions, query.segments, cache=cache, keys_B=keys_B,
        added_BxLxD=self.marks(params, query), mask_BxLxT=mask_BxNxT, memory=memory, attend=attend)
    if cache is not None and attend is not None:
      cache = cache.replace(index=cache.index + query.tokens.shape[1])
    return x_BxNxD, cache

  def marks(self, params: Any, query: Nodes) -> jax.Array | None:
    """What tells rollouts of each tier and resume nodes from real tokens, which have none."""
    if not self.lower or self.settings.layout == 'cross':
      return None
    kinds = jnp.concatenate([jnp.zeros_like(params['kinds'][:1]), params['kinds']])
    return kinds[query.kind]

  def parts(self, params: Any, part, mask_BxNxT, key: Nodes, layer) -> list[tuple[jax.Array, jax.Array]]:
    """Attention and its log-sum-exps by `part`, a function of the mask: apart for real tokens and for rollouts where
    these have a learned bias a head."""
    if 'bias' not in params:
      return [part(mask_BxNxT)]
    said_Bx1xT = (key.kind > 0)[:, None]
    value, lse = part(mask_BxNxT & said_Bx1xT)
    return [part(mask_BxNxT & ~said_Bx1xT), (value, lse + params['bias'][layer])]

  def head(self, params: Any) -> jax.Array:
    """[V, D] over the real vocabulary."""
    return self.decoder.head(params['decoder'])[:self.vocabulary]

  def logits(self, params: Any, x_BxLxD: jax.Array) -> jax.Array:
    """[B, L, V], float32."""
    return jnp.einsum('bld,vd->blv', x_BxLxD, self.head(params), preferred_element_type=jnp.float32)

  def write(self, params: Any, real: Nodes, own: Nodes, cache: Cache, first_x_BxGxD: jax.Array, starts_BxG: jax.Array,
            all_starts: jax.Array, below: Sequence[Written], keys_BxM: jax.Array) -> Written:
    """K rollouts from each start, [B, G, K, R], given the tier's cache over the nodes `own`.

    Args:
      real: the real tokens, which hold the starts.
      first_x_BxGxD: hidden states of the nodes that predict the tokens after the starts.
      all_starts: the starts of `below` and of `own`, of which `starts_BxG` may be a part.
    """
    s, c = self.settings, self.decoder.config
    (B, G), K = starts_BxG.shape, s.samples
    def each(x_BxG):
      return jnp.repeat(x_BxG, K, axis=1)
    zero = jnp.zeros((B, G * K), jnp.int32)
    at = Nodes(zero, each(nodes.take(real.positions, starts_BxG)), each(nodes.take(real.segments, starts_BxG)),
               each(starts_BxG), zero, zero, zero)
    mask_BxMxN = self.mask(at, own, all_starts)
    memory = self.memory(params, at, real, all_starts, below)
    # [B, G, K, T] and [B, G, T, K] a layer, from [B, T, G, K].
    keys = jax.tree.map(lambda x: jnp.moveaxis(x, -3, -1), cache.key)
    values = jax.tree.map(lambda x: jnp.swapaxes(x, -3, -2), cache.value)
    def shared(q, layer):
      def part(allowed):
        return rollouts.shared_part(q, keys[layer], values[layer], allowed)
      return self.parts(params, part, mask_BxMxN, own, layer)
    def apply(tokens_BxM, positions_BxM, local, attend):
      return self.decoder.apply({'params': params['decoder']}, tokens_BxM, positions_BxM, at.segments, cache=local,
                                memory=memory, attend=attend, mask_BxLxT=mask_BxMxN)
    tokens_BxMxR, hidden = rollouts.write(
        apply, lambda x: self.logits(params, x), c, shared, each(self.logits(params, first_x_BxGxD)), at.positions,
        keys_BxM, s.rollout, rollouts.Sampler(s.temperature, s.top_k), s.layout == 'cross' and s.read == 'hidden')
    R = s.rollout
    return Written(tokens_BxMxR.reshape(B, G, K, R), None if hidden is None else hidden.reshape(B, G, K, R, -1))
