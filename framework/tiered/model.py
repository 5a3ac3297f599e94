"""The tiered rollout model of "TCS for LLMs" (Foster and Madeka, 2023): thinking ahead in text, inside training.

Tier 1 is a decoder. At starts along the text every tier but the top writes rollouts, continuations of R tokens; tier t
reads the text and the rollouts of all tiers below, and predicts the next real token. Tiers are trained one after the
other, lowest first, each with those below frozen: no gradient passes from a tier to another. A rollout adds no
information about the future, only computation (Xu et al. 2020, arXiv:2002.10689): it can help where the next token
takes more steps than the top tier has layers, and text spells those steps out.

What a tier reads is laid out by framework.tiered.nodes; all of it obeys framework.timestamps. The layout `cross` keeps
the real tokens alone and reads rollouts by gated cross-attention in every layer.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework import timestamps
from framework.tiered import nodes, rollouts
from framework.models.decoder import Cache, Decoder, Memory, write
from framework.tiered.nodes import NEVER, Nodes
from pallas_kernels.attention import dot_product_attention

Batch = dict[str, jax.Array]
PHASE, DROPOUT, CORRUPTION = 2**31, 5, 2**31 + 1  # folded into keys, so that no two uses share a stream


class Written(NamedTuple):
  """Rollouts of a tier, int32 [B, G, K, R], and their tokens' hidden states [B, G, K, R, D] where they are read."""
  tokens_BxGxKxR: jax.Array
  hidden_BxGxKxRxD: jax.Array | None = None


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

  def init(self, key: jax.Array) -> dict[str, Any]:
    c, s = self.decoder.config, self.settings
    one = jnp.ones((1, 1), jnp.int32)
    memory = None
    if self.lower and s.layout == 'cross':
      width = self.lower_width if s.read == 'hidden' else c.width
      memory = Memory(jnp.zeros((1, 1, width), c.dtype), one, jnp.ones((1, 1, 1), bool), gate=0.0)
    params = {'decoder': self.decoder.init(key, one, one * 0, one, memory=memory)['params']}
    if self.lower and not (s.layout == 'cross' and s.read == 'hidden'):
      params['kinds'] = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), (self.lower + 1, c.width), c.param_dtype)
    if self.lower and s.layout == 'stamp':
      params['bias'] = jnp.full((c.loops * c.layers, c.heads), s.first_bias, c.param_dtype)
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
    said = nodes.rollout_nodes(real, starts_BxG, [w.tokens_BxGxKxR for w in below], self.settings.delay)
    if self.settings.read == 'hidden':
      hidden = below[-1].hidden_BxGxKxRxD
      values = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])
      said = jax.tree.map(lambda x: x[:, -values.shape[1]:], said)
    else:
      values = params['decoder']['embedding'][said.tokens] + params['kinds'][said.kind - 1]
    allowed = timestamps.may_read(query.tau, said.tau, query.segments, said.segments)
    return Memory(values.astype(self.decoder.config.dtype), said.positions, allowed, gate=0.0)

  def read(self, params: Any, query: Nodes, *, mask_BxNxT: jax.Array | None = None, key: Nodes | None = None,
           memory: Memory | None = None, cache: Cache | None = None,
           keys_B: jax.Array | None = None) -> tuple[jax.Array, Cache | None]:
    """Hidden states of the nodes [B, N, D], and the cache.

    Args:
      mask_BxNxT: for the layout stamp, which of the nodes `key` (the cache's, or the same as `query`) each one reads.
    """
    attend, name = None, self.decoder.config.attention
    if mask_BxNxT is not None and self.lower:
      def attend(q, k, v, mask, cache, layer):
        if cache is not None:
          cache, k, v = write(cache, k, v, layer)
        def part(allowed_BxNxT):
          return dot_product_attention(q, k, v, mask=allowed_BxNxT[:, None], return_residual=True,
                                       implementation=None if name == 'auto' else name)
        return rollouts.merge(*self.parts(params, part, mask[:, 0], key, layer)).astype(q.dtype), cache
    x_BxNxD, cache = self.decoder.apply(
        {'params': params['decoder']}, query.tokens, query.positions, query.segments, cache=cache, keys_B=keys_B,
        added_BxLxD=self.marks(params, query), mask_BxLxT=mask_BxNxT, memory=memory, attend=attend)
    if cache is not None and attend is not None:
      cache = cache | {'index': cache['index'] + query.tokens.shape[1]}
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
    keys = jax.tree.map(lambda x: jnp.moveaxis(x, -3, -1), cache['key'])
    values = jax.tree.map(lambda x: jnp.swapaxes(x, -3, -2), cache['value'])
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


@dataclasses.dataclass(frozen=True)
class Tiered:
  """Tiers 1 .. t, of which the last predicts and is trained; parameters are {'tier_1': ..., 'tier_2': ...}.

  `seed` keys the rollouts. The text of one window is a valid condition of its own: -ln p given seeded rollouts is a
  code length, since a decoder of the code can write the same rollouts.
  """
  tiers: tuple[Tier, ...]
  settings: config_lib.Tiered
  window: int
  seed: int = 0

  @property
  def config(self) -> config_lib.Model:
    return self.tiers[-1].decoder.config

  @property
  def stochastic(self) -> bool:
    """Whether training draws dropout, of channels or of rollouts."""
    return self.config.dropout > 0 or (len(self.tiers) > 1 and self.settings.rollout_dropout > 0)

  def init(self, key: jax.Array, *_) -> dict[str, Any]:
    """{'params': ...}, as a linen module's."""
    return {'params': {f'tier_{n}': tier.init(jax.random.fold_in(key, n)) for n, tier in enumerate(self.tiers, 1)}}

  def head(self, params: Any) -> jax.Array:
    return self.tiers[-1].head(params[f'tier_{len(self.tiers)}'])

  def logits(self, params: Any, x_BxLxD: jax.Array) -> jax.Array:
    return self.tiers[-1].logits(params[f'tier_{len(self.tiers)}'], x_BxLxD)

  def hidden(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
    """Hidden states of the last tier that predict each target of a batch, [B, L, D].

    `batch` may hold `rollouts`, [B, U, G, K, R] of the U tiers below, which are otherwise written now, and `starts`.
    `keys_B` turns on dropout. No gradient reaches the tiers below.
    """
    params = params | {name: jax.lax.stop_gradient(params[name]) for name in list(params)[:-1]}
    tier, own = self.tiers[-1], params[f'tier_{len(self.tiers)}']
    real = nodes.tokens_only(batch['tokens'], batch['positions'], batch['segments'])
    if not tier.lower:
      return tier.read(own, real, keys_B=keys_B)[0]
    starts_BxG = self.starts(params, batch)
    below = self.rollouts(params, batch, starts_BxG)
    below = control(jax.lax.stop_gradient(below), batch, starts_BxG, self.settings, tier.vocabulary, self.seed)
    if keys_B is not None and self.settings.rollout_dropout:
      starts_BxG, below = drop(starts_BxG, below, keys_B, self.settings.rollout_dropout)
    return self.read_all(own, tier, real, starts_BxG, below, keys_B)[0]

  def rollouts(self, params: Any, batch: Batch, starts_BxG: jax.Array) -> list[Written]:
    """Those that the batch brings with it, or written now."""
    if 'rollouts' not in batch:
      return self.write(params, batch, starts_BxG)
    return [Written(x) for x in jnp.moveaxis(batch['rollouts'].astype(jnp.int32), 1, 0)]

  def read_all(self, params: Any, tier: Tier, real: Nodes, starts_BxG: jax.Array, below: Sequence[Written],
               keys_B: jax.Array | None = None, keep: bool = False):
    """Reads a window in one pass: (hidden states of what predicts after each real token [B, L, D], nodes, cache)."""
    own, speaker_BxL = tier.lay_out(real, starts_BxG, below)
    mask = tier.mask(own, own, starts_BxG) if tier.settings.layout == 'stamp' else None
    memory = tier.memory(params, own, real, starts_BxG, below)
    cache = tier.decoder.empty_cache(*own.tokens.shape) if keep else None
    x_BxNxD, cache = tier.read(params, own, mask_BxNxT=mask, key=own, memory=memory, cache=cache, keys_B=keys_B)
    if tier.settings.layout == 'stream' and below:
      x_BxNxD = jnp.take_along_axis(x_BxNxD, speaker_BxL[:, :, None], axis=1)
    return x_BxNxD[:, :speaker_BxL.shape[1]], own, cache

  def write(self, params: Any, batch: Batch, starts_BxG: jax.Array) -> list[Written]:
    """The rollouts of all tiers but the last, each given the rollouts of those below it."""
    real = nodes.tokens_only(batch['tokens'], batch['positions'], batch['segments'])
    place_BxG = batch['start'][:, None] + starts_BxG.astype(jnp.uint32)
    below: list[Written] = []
    for number, tier in enumerate(self.tiers[:-1], 1):
      own_params = params[f'tier_{number}']
      x_BxLxD, own, cache = self.read_all(own_params, tier, real, starts_BxG, below, keep=True)
      index = jnp.clip(starts_BxG, 0, x_BxLxD.shape[1] - 1)[:, :, None]
      keys_BxM = rollouts.keys(self.seed, number, place_BxG, self.settings.samples)
      below = below + [tier.write(own_params, real, own, cache, jnp.take_along_axis(x_BxLxD, index, axis=1), starts_BxG,
                                  starts_BxG, below, keys_BxM)]
    return below

  def starts(self, params: Any, batch: Batch) -> jax.Array:
    """Where rollouts start, int32 [B, G], ascending; NEVER where a window has fewer.

    Whether a token is a start depends on no later token, else its rollout's presence would betray them.
    """
    s = self.settings
    if 'starts' in batch:
      return batch['starts']
    B, L = batch['tokens'].shape
    if s.starts == 'period':
      starts_BxG = jnp.arange(1, (s.most_starts or L // s.period) + 1) * s.period - 1
      phase_Bx1 = jnp.zeros((B, 1), jnp.int32)
      if s.random_phase:
        key = jax.random.fold_in(jax.random.key(self.seed), PHASE)
        phase_Bx1 = jax.vmap(lambda place: jax.random.randint(jax.random.fold_in(key, place), (1,), 0, s.period))(
            batch['start'])
      starts_BxG = starts_BxG + phase_Bx1
    else:
      if s.starts == 'trigger':
        is_start_BxL = batch['tokens'] == s.trigger
      else:
        real = nodes.tokens_only(batch['tokens'], batch['positions'], batch['segments'])
        x_BxLxD, _ = self.tiers[0].read(params['tier_1'], real)
        log_p = jax.nn.log_softmax(self.tiers[0].logits(params['tier_1'], x_BxLxD))
        is_start_BxL = -(jnp.exp(log_p) * log_p).sum(-1) / jnp.log(2.0) >= s.entropy
      starts_BxG = jnp.sort(jnp.where(is_start_BxL, jnp.arange(L), NEVER), axis=1)[:, :s.most_starts]
    return jnp.where(starts_BxG < L, starts_BxG, NEVER).astype(jnp.int32)


def drop(starts_BxG: jax.Array, below: list[Written], keys_B: jax.Array,
         rate: float) -> tuple[jax.Array, list[Written]]:
  """Leaves out the rollouts of a random share of the starts, all samples and tiers together."""
  G = starts_BxG.shape[1]
  dropped_BxG = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, DROPOUT), rate, (G,)))(keys_B)
  starts_BxG = jnp.where(dropped_BxG, NEVER, starts_BxG)
  order_BxG = jnp.argsort(starts_BxG, axis=1)  # starts ascend
  def moved(x):
    return jnp.take_along_axis(x, order_BxG.reshape(order_BxG.shape + (1,) * (x.ndim - 2)), axis=1)
  return jnp.sort(starts_BxG, axis=1), jax.tree.map(moved, below)


def control(below: list[Written], batch: Batch, starts_BxG: jax.Array, s: config_lib.Tiered, vocabulary: int,
            seed: int) -> list[Written]:
  """Puts in place of the rollouts what `s.content` says; places and computation stay the same.

  own: the rollouts. filler: one learned token throughout. shuffled: those of the next row of the batch. other_document:
  true text of the next row, from the same start. oracle: the true future. corrupted: the true future, each token
  replaced by the rollout's with probability `s.corruption`. The last two break the causality rule, on purpose.
  """
  if s.content == 'own':
    return below
  rows = batch['tokens'].shape[0]
  if s.content in ('shuffled', 'other_document') and rows < 2:
    raise config_lib.ConfigError(f"training.batch gives a device {rows} row; tiered.content '{s.content}' needs at "
                                 'least 2')
  # The last target of a window is none of its inputs.
  text_BxT = jnp.concatenate([batch['tokens'], batch['targets'][:, -1:]], axis=1)
  def future(w: Written, text_BxT):
    ahead_BxGxR = starts_BxG[:, :, None] + 1 + jnp.arange(w.tokens_BxGxKxR.shape[3])
    read = nodes.take(text_BxT, ahead_BxGxR.reshape(rows, -1)).reshape(ahead_BxGxR.shape)
    return jnp.broadcast_to(read[:, :, None], w.tokens_BxGxKxR.shape)
  if s.content == 'filler':
    return [Written(jnp.full_like(w.tokens_BxGxKxR, vocabulary + 1)) for w in below]
  if s.content == 'shuffled':
    return jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), below)
  if s.content == 'other_document':
    return [Written(future(w, jnp.roll(text_BxT, 1, axis=0))) for w in below]
  truth = [future(w, text_BxT) for w in below]
  if s.content == 'oracle':
    return [Written(x) for x in truth]
  key = jax.random.fold_in(jax.random.key(seed), CORRUPTION)
  def corrupted(w: Written, x):
    def one(place):
      return jax.random.bernoulli(jax.random.fold_in(key, place), s.corruption, w.tokens_BxGxKxR.shape[2:])
    places = batch['start'][:, None] + starts_BxG.astype(jnp.uint32)
    return Written(jnp.where(jax.vmap(jax.vmap(one))(places), w.tokens_BxGxKxR, x))
  return [corrupted(w, x) for w, x in zip(below, truth)]


def feedforward(m: config_lib.Model, width: int) -> int:
  """The feed-forward width of a tier of another width than the model's, in the same proportion."""
  return m.feedforward if width == m.width else max(1, round(m.feedforward * width / m.width))


def build(config: config_lib.Config, vocabulary: int, tiers: int = 0) -> Tiered:
  """The lowest `tiers` tiers of a checked config, all by default, for a vocabulary of V real tokens."""
  t, m = config.tiered, config.model
  sizes = list(zip(config_lib.per_tier('tiered.widths', t.widths, t.tiers, m.width),
                   config_lib.per_tier('tiered.layers', t.layers, t.tiers, m.layers)))
  def tier(number: int) -> Tier:
    width, layers = sizes[number]
    model = dataclasses.replace(m, width=width, layers=layers, feedforward=feedforward(m, width))
    return Tier(Decoder(model, vocabulary + 2, config.data.window + t.rollout), t, number, sizes[max(0, number - 1)][0])
  return Tiered(tuple(tier(n) for n in range(tiers or t.tiers)), t, config.data.window, config.training.seed)


def warm_start(params: dict[str, Any], new: int) -> dict[str, Any]:
  """Tier `new` takes over every parameter of the tier below that it has in the same shape."""
  below = {jax.tree_util.keystr(path): leaf
           for path, leaf in jax.tree_util.tree_leaves_with_path(params[f'tier_{new - 1}'])}
  def choose(path, leaf):
    found = below.get(jax.tree_util.keystr(path))
    return found if found is not None and found.shape == leaf.shape else leaf
  return params | {f'tier_{new}': jax.tree_util.tree_map_with_path(choose, params[f'tier_{new}'])}
