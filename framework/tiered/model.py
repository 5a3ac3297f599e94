"""The tiered rollout model of "TCS for LLMs" (Foster and Madeka, 2023): thinking ahead in text, inside training.

Tier 1 is a decoder. At starts along the text every tier but the top writes rollouts, continuations of R tokens; tier t
reads the text and the rollouts of all tiers below, and predicts the next real token. Tiers are trained one after the
other, lowest first, each with those below frozen: no gradient passes from a tier to another. A rollout adds no
information about the future, only computation (Xu et al. 2020, arXiv:2002.10689): it can help where the next token
takes more steps than the top tier has layers, and text spells those steps out.

`tier` is one of them, `content` what its rollouts are replaced by in a control, `nodes` the layout of what it reads.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework.models import contract
from framework.models.decoder import Decoder
from framework.tiered import content, flops, generation, nodes, rollouts
from framework.tiered.content import Written
from framework.tiered.nodes import NEVER, Nodes
from framework.tiered.settings import per_tier
from framework.tiered.tier import Tier

PHASE = 2**31  # folded into keys, so that no two uses share a stream


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

  @property
  def vocabulary(self) -> int:
    return self.tiers[-1].vocabulary

  @property
  def trained(self) -> str:
    """The top tier: those below it are frozen."""
    return f'tier_{len(self.tiers)}' if len(self.tiers) > 1 else ''

  @property
  def with_seed(self) -> Callable[[Any], 'Tiered'] | None:
    """The same with other rollouts, by their seed; None of a single tier, which reads none."""
    return self._with_seed if len(self.tiers) > 1 else None

  def _with_seed(self, seed: Any) -> 'Tiered':
    return dataclasses.replace(self, seed=seed)

  def parameters(self, key: jax.Array) -> dict[str, Any]:
    return {f'tier_{n}': tier.parameters(jax.random.fold_in(key, n)) for n, tier in enumerate(self.tiers, 1)}

  def flops(self) -> contract.Flops:
    """Of the top tier and of the rollouts that it reads, which training finds on a disk where they are cached."""
    sizes = [tier.decoder.config for tier in self.tiers]
    read = flops.read(sizes, self.settings, len(self.tiers), self.vocabulary, self.window)
    write = flops.write_below(sizes, self.settings, self.vocabulary, self.window)
    return contract.Flops(read + write, 3 * read + (0.0 if self.settings.cached else write))

  def generate(self, params: Any, prompt: np.ndarray, *, tokens: int, settings: Any, seed: int
               ) -> Iterator[tuple[int, list[np.ndarray] | None]]:
    """Tokens with the rollouts written just before them, see framework.tiered.generation."""
    return generation.generate(self, params, prompt, tokens=tokens, settings=settings, seed=seed)

  def head(self, params: Any) -> jax.Array:
    return self.tiers[-1].head(params[f'tier_{len(self.tiers)}'])

  def logits(self, params: Any, x_BxLxD: jax.Array) -> jax.Array:
    return self.tiers[-1].logits(params[f'tier_{len(self.tiers)}'], x_BxLxD)

  def hidden(self, params: Any, batch: contract.Batch, keys_B: jax.Array | None = None) -> jax.Array:
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
    below = content.control(jax.lax.stop_gradient(below), batch, starts_BxG, self.settings, tier.vocabulary, self.seed)
    if keys_B is not None and self.settings.rollout_dropout:
      starts_BxG, below = content.drop(starts_BxG, below, keys_B, self.settings.rollout_dropout)
    return self.read_all(own, tier, real, starts_BxG, below, keys_B)[0]

  def rollouts(self, params: Any, batch: contract.Batch, starts_BxG: jax.Array) -> list[Written]:
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

  def write(self, params: Any, batch: contract.Batch, starts_BxG: jax.Array) -> list[Written]:
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

  def starts(self, params: Any, batch: contract.Batch) -> jax.Array:
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


def feedforward(m: config_lib.Model, width: int) -> int:
  """The feed-forward width of a tier of another width than the model's, in the same proportion."""
  return m.feedforward if width == m.width else max(1, round(m.feedforward * width / m.width))


def tier_models(config: config_lib.Config) -> list[config_lib.Model]:
  """The decoder of each tier of a resolved config, lowest first."""
  t, m = config.tiered, config.model
  return [dataclasses.replace(m, width=width, layers=layers, feedforward=feedforward(m, width))
          for width, layers in zip(per_tier(t, 'widths', m.width), per_tier(t, 'layers', m.layers))]


def build(config: config_lib.Config, vocabulary: int, tiers: int = 0) -> Tiered:
  """The lowest `tiers` tiers of a resolved config, all by default, for a vocabulary of V real tokens."""
  t, models = config.tiered, tier_models(config)
  def tier(number: int) -> Tier:
    decoder = Decoder(models[number], vocabulary + 2, config.data.window + t.rollout)
    return Tier(decoder, t, number, models[max(0, number - 1)].width)
  return Tiered(tuple(tier(n) for n in range(tiers or t.tiers)), t, config.data.window, config.training.seed)


def warm_start(params: dict[str, Any], new: int) -> dict[str, Any]:
  """Tier `new` takes over every parameter of the tier below that it has in the same shape."""
  below = {jax.tree_util.keystr(path): leaf
           for path, leaf in jax.tree_util.tree_leaves_with_path(params[f'tier_{new - 1}'])}
  def choose(path, leaf):
    found = below.get(jax.tree_util.keystr(path))
    return found if found is not None and found.shape == leaf.shape else leaf
  return params | {f'tier_{new}': jax.tree_util.tree_map_with_path(choose, params[f'tier_{new}'])}
