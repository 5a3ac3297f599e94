"""What a tier reads in the places of rollouts: the rollouts, fewer of them, or what a control puts there instead."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from framework import config as config_lib
from framework.models import contract
from framework.tiered import nodes
from framework.tiered.nodes import NEVER

DROPOUT, CORRUPTION = 5, 2**31 + 1  # folded into keys, so that no two uses share a stream


class Written(NamedTuple):
  """Rollouts of a tier, int32 [B, G, K, R], and their tokens' hidden states [B, G, K, R, D] where they are read."""
  tokens_BxGxKxR: jax.Array
  hidden_BxGxKxRxD: jax.Array | None = None


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


def control(below: list[Written], batch: contract.Batch, starts_BxG: jax.Array, s: config_lib.Tiered, vocabulary: int,
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
