"""Writes the rollouts of all starts of a window together, from one reading of the window.

Every rollout reads the window up to its start and its own earlier tokens. The window's keys and values are held once
and read by all rollouts in one product (as in Hydragen, Juravsky et al. 2024, arXiv:2402.05099); each rollout has a
small cache of its own; the two parts of the softmax are merged by their log-sum-exps.

Letters: B batch, G starts, K samples a start, M = G K rollouts, R rollout length, N nodes of the window; in attention
H heads, and K the width of a head.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from framework import generation, timestamps
from framework.config import Model
from framework.models import layers
from framework.models.attention import head_width

FORBIDDEN = -1e30  # -inf would make the sums of a part without keys undefined


@dataclasses.dataclass(frozen=True)
class Sampler:
  """temperature 0 takes the likeliest token; top_k 0 keeps every token."""
  temperature: float = 1.0
  top_k: int = 0

  def __call__(self, keys_BxM: jax.Array, step, logits_BxMxV: jax.Array) -> jax.Array:
    """The token of each rollout at `step`, int32 [B, M]."""
    if self.temperature == 0.0:
      return jnp.argmax(logits_BxMxV, axis=-1).astype(jnp.int32)
    flat = logits_BxMxV.reshape(-1, logits_BxMxV.shape[-1])
    if self.top_k:
      flat = generation.filter_logits(flat, generation.Sampling(self.temperature, self.top_k))
    else:
      flat = generation.tempered(flat, self.temperature)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_BxM.reshape(-1), step)
    return jax.vmap(jax.random.categorical)(keys, flat).reshape(logits_BxMxV.shape[:2]).astype(jnp.int32)


def keys(seed: int, tier: int, place_BxG: jax.Array, samples: int) -> jax.Array:
  """One key a rollout, [B, G*K], from (seed, tier, place of the start in the whole text, sample).

  So a rollout depends neither on its row, its window, its batch nor its device.
  """
  base = jax.random.fold_in(jax.random.key(seed), tier)
  def one(place):
    at = jax.random.fold_in(base, place)
    return jax.vmap(lambda sample: jax.random.fold_in(at, sample))(jnp.arange(samples))
  return jax.vmap(jax.vmap(one))(place_BxG).reshape(place_BxG.shape[0], -1)


def shared_part(q_BxMxHxK: jax.Array, k_BxGxKxT: jax.Array, v_BxGxTxK: jax.Array,
                mask_BxMxT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Attention of all rollouts to keys that they share, [B, M, H, K], and its log-sum-exp, float32 [B, M, H].

  The heads come before the keys, and the keys are turned, so that each step of each rollout is one plain matrix product
  over them: laid out as a cache is, they would be transposed again at every step. Where all keys are forbidden, the
  log-sum-exp is about FORBIDDEN, so that `merge` gives the part no weight.
  """
  B, M, H, K = q_BxMxHxK.shape
  G = k_BxGxKxT.shape[1]
  q_BxGxQxK = (q_BxMxHxK * K**-0.5).reshape(B, M, G, H // G, K).transpose(0, 2, 1, 3, 4).reshape(B, G, -1, K)
  logits_BxGxQxT = jnp.einsum('bgqk,bgkt->bgqt', q_BxGxQxK, k_BxGxKxT, preferred_element_type=jnp.float32)
  logits_BxGxQxT += jnp.where(jnp.repeat(mask_BxMxT, H // G, axis=1), 0.0, FORBIDDEN)[:, None]
  most_BxGxQx1 = logits_BxGxQxT.max(-1, keepdims=True)
  weights_BxGxQxT = jnp.exp(logits_BxGxQxT - most_BxGxQx1)
  total_BxGxQx1 = weights_BxGxQxT.sum(-1, keepdims=True)
  out_BxGxQxK = jnp.einsum('bgqt,bgtk->bgqk', weights_BxGxQxT.astype(v_BxGxTxK.dtype), v_BxGxTxK) / total_BxGxQx1
  def back(x):
    return x.reshape(B, G, M, H // G, -1).transpose(0, 2, 1, 3, 4).reshape(B, M, H, -1)
  return back(out_BxGxQxK), back(most_BxGxQx1 + jnp.log(total_BxGxQx1))[..., 0]


def merge(*parts: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Attention over all keys from attention over disjoint parts: values [B, M, H, K], log-sum-exps [B, M, H]."""
  values, logs = zip(*parts)
  share = jax.nn.softmax(jnp.stack(logs), axis=0)
  return sum(value * s[..., None].astype(value.dtype) for value, s in zip(values, share))


def write(
    apply: Callable[..., tuple[jax.Array, Any]], logits: Callable[[jax.Array], jax.Array], c: Model,
    shared: Callable[[jax.Array, Any], list[tuple[jax.Array, jax.Array]]], first_logits_BxMxV: jax.Array,
    positions_BxM: jax.Array, keys_BxM: jax.Array, length: int, sampler: Sampler, hidden: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Rollouts int32 [B, M, R] and, where asked, the hidden states of their tokens [B, M, R, D].

  Args:
    apply: (tokens_BxM, positions_BxM, cache, attend) -> (hidden states, cache), the decoder of the tier.
    logits: hidden states -> logits over what may be written.
    shared: (queries, layer) -> parts of the attention to what was there before the rollouts.
    first_logits_BxMxV: the window's own prediction of each rollout's first token.
    positions_BxM: of each rollout's start.
  """
  B, M = positions_BxM.shape
  stack, K = layers.stack_of(c), head_width(c)
  local = {'key': stack.zeros((B * M, c.kv_heads, K, length), c.dtype),
           'value': stack.zeros((B * M, c.kv_heads, length, K), c.dtype)}
  place_R = timestamps.decoder_stamps(length)

  def step(carry, number):
    token_BxM, local = carry
    own_1x1xR = timestamps.may_read(number[None], place_R)[None]

    def attend(q, k, v, _, local, layer):
      def each(x):  # the rollouts as rows of a batch
        return x.reshape(B * M, 1, *x.shape[-2:])
      local = {'key': layers.updated(local['key'], jnp.moveaxis(each(k), 1, 3), layer, (0, 0, 0, number)),
               'value': layers.updated(local['value'], jnp.moveaxis(each(v), 1, 2), layer, (0, 0, number, 0))}
      own = shared_part(each(q), local['key'][layer], local['value'][layer], own_1x1xR)
      rows: Any = tuple(x.reshape(B, M, *x.shape[2:]) for x in own)
      return merge(*shared(q, layer), rows).astype(q.dtype), local

    x_BxMxD, local = apply(token_BxM, positions_BxM + 1 + number, local, attend)
    following = sampler(keys_BxM, number + 1, logits(x_BxMxD))
    return (following, local), (token_BxM, x_BxMxD if hidden else None)

  # The last token is read only if its hidden state is wanted.
  steps = length if hidden else length - 1
  carry = (sampler(keys_BxM, 0, first_logits_BxMxV), local)
  (last, _), (tokens_RxBxM, x_RxBxMxD) = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
  if not hidden:
    return jnp.moveaxis(jnp.concatenate([tokens_RxBxM, last[None]]), 0, 2), None
  return jnp.moveaxis(tokens_RxBxM, 0, 2), jnp.moveaxis(x_RxBxMxD, 0, 2)
