"""The one causality rule: every mask and every loss goes through this file.

Every node v of every network carries an integer stamp tau(v), the index of the last real token that it may depend
on. A node u may read v only if tau(v) <= tau(u), and may be scored on token j only if j > tau(u). A decoder's node
has its own index as its stamp; an encoder's node over a whole history has its last, a rollout's the token that it
started from; other models are the same rule with another tau. Segments are documents packed into one window: nodes of
different segments never read each other.
"""

import jax
import jax.numpy as jnp


def may_read(
    tau_query_BxQ: jax.Array, tau_key_BxT: jax.Array,
    segment_query_BxQ: jax.Array | None = None, segment_key_BxT: jax.Array | None = None,
) -> jax.Array:
  """Which keys each query may read, bool [..., Q, T]. Leading axes broadcast; segments default to one."""
  mask_BxQxT = tau_key_BxT[..., None, :] <= tau_query_BxQ[..., :, None]
  if segment_query_BxQ is not None:
    mask_BxQxT = mask_BxQxT & (
        segment_key_BxT[..., None, :] == segment_query_BxQ[..., :, None])  # type: ignore[index]  # both or neither
  return mask_BxQxT


def as_arguments(
    tau_query_BxQ: jax.Array, tau_key_BxT: jax.Array, segment_query_BxQ: jax.Array, segment_key_BxT: jax.Array,
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """The rule of `may_read` as arguments of pallas_kernels.attention.dot_product_attention, from which a kernel finds
  the blocks that it need not visit."""
  return {'stamps': (tau_query_BxQ, tau_key_BxT), 'segment_ids': (segment_query_BxQ, segment_key_BxT)}


def may_score(tau_BxL: jax.Array, target_index_BxL: jax.Array) -> jax.Array:
  """Whether each node may be scored on the token at `target_index`, bool [..., L]."""
  return target_index_BxL > tau_BxL


def decoder_stamps(length: int, first: jax.Array | int = 0) -> jax.Array:
  """Stamps of a decoder's nodes over tokens first .. first+length-1, int32 [L]."""
  return first + jnp.arange(length, dtype=jnp.int32)


def encoder_stamps(length: int) -> jax.Array:
  """Stamps of the nodes over a history of `length` tokens of which each may read all, int32 [L]."""
  return jnp.full(length, length - 1, jnp.int32)


def rollout_stamps(starts_BxG: jax.Array, length: int, delay: int = 0) -> jax.Array:
  """Stamps of rollouts of `length` tokens that know tokens up to their start, int32 [..., G, R].

  With a delay d a rollout is readable from token start + d on, as if it took the time of d tokens to write.
  """
  return jnp.repeat(starts_BxG[..., None] + delay, length, axis=-1)


def prefix_stamps(length: int, prefix: int) -> jax.Array:
  """Stamps of `length` tokens of which each of the first `prefix` may read all of those, int32 [L]: a prefix LM."""
  return jnp.maximum(decoder_stamps(length), min(prefix, length) - 1)
