"""Attention over a window that is split over devices: inside a shard_map whose manual axes hold its tokens.

Causality and documents are data (stamps and segment ids), so that tokens may lie in any order over the devices.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention.sharded import sharded_attention

FORMS = ('gathered', 'ring')


def attention_over_sequence(
    query: jax.Array, key: jax.Array, value: jax.Array, axis: str, form: str = 'gathered', *,
    stamps: tuple[jax.Array, jax.Array], segment_ids: tuple[jax.Array, jax.Array], **arguments: Any,
) -> jax.Array:
  """dot_product_attention of this device's queries with the keys and values of all devices along `axis`.

  Args:
    query, key, value: this device's part, [B, Q, H, K], [B, T, G, K] twice.
    axis: the manual mesh axis over which the window is split.
    form: gathered, keys and values of all devices at once (Llama Team 2024, arXiv:2407.21783, section 3.3.2); ring,
      those of one device after the other, which are sent round (Liu et al. 2023, arXiv:2310.01889), and computed again
      for the gradient: memory of one part in place of all.
    stamps, segment_ids: pairs of this device's queries and keys, [B, .] or [.], see dot_product_attention.
    arguments: of sharded_attention.

  Returns:
    [B, Q, H, K], in the dtype of `query`.

  Raises:
    ValueError: no such form.
    NotImplementedError: the ring, with a backend that gives no log-sum-exp.
  """
  B, own = query.shape[0], (stamps[1], segment_ids[1])
  stamps_k, segments_k = (jnp.broadcast_to(x, (B, x.shape[-1])) for x in own)
  if form == 'gathered':
    key, value = _gather(key, axis), _gather(value, axis)
    stamps_k, segments_k = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (stamps_k, segments_k))
    return sharded_attention(query, key, value, stamps=(stamps[0], stamps_k), segment_ids=(segment_ids[0], segments_k),
                             **arguments)
  if form != 'ring':
    raise ValueError(f"form is '{form}'; expected one of {', '.join(FORMS)}")
  return _ring(query, (key, value, stamps_k, segments_k), axis, stamps[0], segment_ids[0], arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x, axis):
  """The parts of all devices along the window; their gradients are summed in float32."""
  return jax.lax.all_gather(x, axis, axis=1, tiled=True)


def _scatter(axis, dtype, gradient):
  part = jax.lax.psum_scatter(gradient.astype(jnp.float32), axis, scatter_dimension=1, tiled=True)
  return (part.astype(dtype.dtype),)


_gather.defvjp(lambda x, axis: (_gather(x, axis), jnp.zeros((), x.dtype)), _scatter)


def _ring(query, held, axis, stamps_q, segments_q, arguments):
  parts = jax.lax.axis_size(axis)
  onwards = [(i, (i + 1) % parts) for i in range(parts)]

  @jax.checkpoint  # else the keys and values of every step are kept for the gradient
  def visit(out, lse, held):
    key, value, stamps_k, segments_k = held
    one, lse_one = sharded_attention(
        query, key, value, stamps=(stamps_q, stamps_k), segment_ids=(segments_q, segments_k), return_residual=True,
        **arguments)
    return merged(out, lse, one, lse_one)

  out, lse = jnp.zeros(query.shape, jnp.float32), jnp.full(query.shape[:3], -jnp.inf, jnp.float32)
  for step in range(parts):
    out, lse = visit(out, lse, held)
    if step < parts - 1:
      held = jax.tree.map(lambda x: jax.lax.ppermute(x, axis, onwards), held)
  return out.astype(query.dtype)


def merged(out, lse, one, lse_one):
  """Attention to two sets of keys, of the attention to each and the log-sum-exp of its logits; -inf: nothing is read."""
  total = jnp.logaddexp(lse, lse_one)
  finite = jnp.where(jnp.isneginf(total), 0.0, total)
  share, share_one = (jnp.exp(jnp.where(jnp.isneginf(x), -1e30, x) - finite)[..., None] for x in (lse, lse_one))
  return out * share + one.astype(jnp.float32) * share_one, total
