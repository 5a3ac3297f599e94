"""Attention in plain XLA operations: the definition that every other backend is held to."""

import jax
import jax.numpy as jnp


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, scale: float,
) -> jax.Array:
  """See dispatch.dot_product_attention. Logits and softmax are float32; memory is O(B H Q T)."""
  B, Q, H, K = query.shape
  G = key.shape[2]
  query_BxQxGxMxK = query.reshape(B, Q, G, H // G, K)
  logits_BxGxMxQxT = jnp.einsum('bqgmk,btgk->bgmqt', query_BxQxGxMxK, key, preferred_element_type=jnp.float32) * scale
  if mask is None:
    weights = jax.nn.softmax(logits_BxGxMxQxT, axis=-1)
  else:
    # A finite floor keeps a row without any key free of NaN, in the value and in the gradient; `where` zeroes it.
    mask = mask[:, None, None]
    weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits_BxGxMxQxT, -1e30), axis=-1), 0)
  out_BxQxGxMxK = jnp.einsum('bgmqt,btgk->bqgmk', weights.astype(value.dtype), value)
  return out_BxQxGxMxK.reshape(B, Q, H, K).astype(query.dtype)
