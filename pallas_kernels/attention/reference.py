"""Attention in plain XLA operations: the definition that every other backend is held to."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def _masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax over the last axis where `mask`, 0 elsewhere; a row without any key is 0."""
  # A finite floor keeps an empty row free of NaN, in the value and in the gradient.
  weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
  return jnp.where(mask, weights, 0)


def _softmax_forward(logits, mask):
  weights = _masked_softmax(logits, mask)
  return weights, weights


def _softmax_backward(weights, g):
  # From the weights alone: XLA's own derivative would keep the logits' exponentials and sums as well.
  return weights * (g - (weights * g).sum(-1, keepdims=True)), None


_masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, bias: jax.Array | None = None,
    scale: float,
) -> jax.Array:
  """See dispatch.dot_product_attention. Logits and softmax are float32; memory is O(B H Q T)."""
  B, Q, H, K = query.shape
  T, G = key.shape[1:3]
  M = H // G
  # The M query heads of a key head lie beside the queries, so that both products are plain batched ones.
  query_BxQMxGxK = (query * scale).reshape(B, Q, G, M, K).swapaxes(2, 3).reshape(B, Q * M, G, K)
  if mask is None:
    mask = jnp.ones((1, 1, 1), bool)
  else:
    mask = jnp.repeat(mask, M, axis=1)
  logits_BxGxQMxT = jnp.einsum('bqgk,btgk->bgqt', query_BxQMxGxK, key, preferred_element_type=jnp.float32)
  if bias is not None:
    logits_BxGxQMxT += bias.reshape(G, M, Q, T).swapaxes(1, 2).reshape(G, Q * M, T)
  weights_BxGxQMxT = _masked_softmax(logits_BxGxQMxT, mask[:, None])
  out_BxQMxGxK = jnp.einsum('bgqt,btgk->bqgk', weights_BxGxQMxT.astype(value.dtype), value)
  return out_BxQMxGxK.reshape(B, Q, M, G, K).swapaxes(2, 3).reshape(B, Q, H, K).astype(query.dtype)
