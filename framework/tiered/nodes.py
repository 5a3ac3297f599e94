"""What a tier reads: real tokens and the rollouts of the tiers below, as nodes with stamps.

A start is a real token s after which every tier below writes K rollouts of R tokens, guesses of tokens s+1 .. s+R. The
tier above reads them as nodes of stamp s + delay. Two layouts hold them:

stream: nodes sorted by stamp, each start's rollouts closed by a resume node that predicts the token after them; then
  ordinary causal attention keeps the causality rule, and the model is a decoder over an annotated text.
stamp: real tokens, then rollouts, in any order; the mask comes from the stamps. A start's own node reads its rollouts
  and predicts the next token itself. More edges are legal here: `mask` says which are kept.

Letters: B batch, L window, G starts, K samples, R rollout length, N nodes.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from framework import timestamps

NEVER = 2**30  # the stamp of what nobody may read: a start that a window does not have, an empty place of a cache


class Nodes(flax.struct.PyTreeNode):
  """One array a property, int32 [B, N].

  kind: 0 for real tokens, u for rollouts of tier u, one more than the highest tier below for resume nodes.
  line: names the rollout that a node is part of, from 1 in the order of starts; 0 outside rollouts.
  start: how many starts came before the node's own; 0 outside rollouts.
  """
  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array
  tau: jax.Array
  kind: jax.Array
  line: jax.Array
  start: jax.Array


def take(x_BxL: jax.Array, index_BxN: jax.Array) -> jax.Array:
  """x[b, index[b, n]], the index held inside the row."""
  return jnp.take_along_axis(x_BxL, jnp.clip(index_BxN, 0, x_BxL.shape[1] - 1), axis=1)


def tokens_only(tokens_BxL: jax.Array, positions_BxL: jax.Array, segments_BxL: jax.Array) -> Nodes:
  """The nodes of a tier that reads no rollouts: a decoder's."""
  zero = jnp.zeros_like(tokens_BxL)
  tau_BxL = jnp.broadcast_to(timestamps.decoder_stamps(tokens_BxL.shape[1]), tokens_BxL.shape)
  return Nodes(tokens_BxL, positions_BxL, segments_BxL, tau_BxL, zero, zero, zero)


def rollout_nodes(real: Nodes, starts_BxG: jax.Array, rollouts: Sequence[jax.Array], delay: int) -> Nodes:
  """The rollouts of tiers 1, 2, ... as nodes, [B, U*G*K*R]. `starts` ascend; those of NEVER have stamp NEVER."""
  parts, lines = [], 0
  B, G = starts_BxG.shape
  for tier, tokens_BxGxKxR in enumerate(rollouts, 1):
    K, R = tokens_BxGxKxR.shape[2:]
    def spread(x_BxG):
      return jnp.repeat(x_BxG, K * R, axis=1)
    stamps_BxGxR = timestamps.rollout_stamps(starts_BxG, R, delay)
    ahead = jnp.tile(1 + jnp.arange(R, dtype=jnp.int32), G * K)
    line = lines + 1 + jnp.repeat(jnp.arange(G * K, dtype=jnp.int32), R)
    lines += G * K
    parts.append(Nodes(
        tokens=tokens_BxGxKxR.reshape(B, -1).astype(jnp.int32),
        positions=spread(take(real.positions, starts_BxG)) + ahead,
        segments=spread(take(real.segments, starts_BxG)),
        tau=jnp.broadcast_to(stamps_BxGxR[:, :, None], tokens_BxGxKxR.shape).reshape(B, -1),
        kind=jnp.full((B, G * K * R), tier, jnp.int32),
        line=jnp.broadcast_to(line, (B, G * K * R)),
        start=jnp.broadcast_to(jnp.repeat(jnp.arange(G, dtype=jnp.int32), K * R), (B, G * K * R))))
  return concatenate(*parts)


def resume_nodes(real: Nodes, starts_BxG: jax.Array, resume: int, tiers: int, delay: int) -> Nodes:
  """A node a start, in the place of the token at start + delay. `resume` is its token, `tiers` those below."""
  at_BxG = starts_BxG + delay
  zero = jnp.zeros_like(starts_BxG)
  return Nodes(jnp.full_like(starts_BxG, resume), take(real.positions, at_BxG), take(real.segments, at_BxG),
               jnp.where(at_BxG < real.tokens.shape[1], at_BxG, NEVER), zero + tiers + 1, zero, zero)


def concatenate(*parts: Nodes) -> Nodes:
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


def stream(real: Nodes, starts_BxG: jax.Array, rollouts: Sequence[jax.Array], resume: int,
           delay: int = 0) -> tuple[Nodes, jax.Array]:
  """The nodes sorted by stamp and, for every real token, the node that predicts the token after it, int32 [B, L].

  N = L + G (U K R + 1) for U tiers below. At equal stamps the order is: the token, the rollouts by tier and start, the
  resume node.
  """
  if not rollouts:
    return real, jnp.broadcast_to(jnp.arange(real.tokens.shape[1]), real.tokens.shape)
  ends = resume_nodes(real, starts_BxG, resume, len(rollouts), delay)
  nodes = concatenate(real, rollout_nodes(real, starts_BxG, rollouts, delay), ends)
  order_BxN = jnp.argsort(nodes.tau, axis=1, stable=True)
  place_BxN = jnp.argsort(order_BxN, axis=1)
  sorted_nodes = jax.tree.map(lambda x: take(x, order_BxN), nodes)
  # Which node speaks for a real token: itself, or the resume node of the same stamp.
  L, N = real.tokens.shape[1], order_BxN.shape[1]
  first_end = N - starts_BxG.shape[1]
  speaker_BxL = jnp.broadcast_to(jnp.arange(L), real.tokens.shape)
  rows = jnp.arange(real.tokens.shape[0])[:, None]
  speaker_BxL = speaker_BxL.at[rows, ends.tau].set(first_end + jnp.arange(starts_BxG.shape[1]), mode='drop')
  return sorted_nodes, take(place_BxN, speaker_BxL)


def stamp(real: Nodes, starts_BxG: jax.Array, rollouts: Sequence[jax.Array], delay: int = 0) -> Nodes:
  """Real tokens, which predict the tokens after them, then rollouts. N = L + U G K R."""
  return concatenate(real, rollout_nodes(real, starts_BxG, rollouts, delay)) if rollouts else real


def mask(query: Nodes, key: Nodes, starts_BxG: jax.Array, *, delay: int = 0, both_ways: bool = False,
         across: bool = True, last: int = 0) -> jax.Array:
  """Which key nodes each query node may read, bool [B, Q, T]: what the stamps allow, less what the options withhold.

  Args:
    both_ways: the tokens of one rollout read each other in both directions, not only the earlier ones.
    across: rollouts read other rollouts of no later stamp.
    last: nodes read the rollouts of this many starts before them, the newest; 0: of all.
  """
  allowed = timestamps.may_read(query.tau, key.tau, query.segments, key.segments)
  line_q, line_k = query.line[:, :, None], key.line[:, None, :]
  same = (line_q == line_k) & (line_k > 0)
  if not both_ways:
    allowed &= ~same | (key.positions[:, None, :] <= query.positions[:, :, None])
  if not across:
    allowed &= same | (line_q == 0) | (line_k == 0)
  if last:
    passed_BxQ = (starts_BxG[:, None, :] + delay <= query.tau[:, :, None]).sum(-1)
    allowed &= (line_k == 0) | same | (passed_BxQ[:, :, None] - key.start[:, None, :] <= last)
  return allowed
