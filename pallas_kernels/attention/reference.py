"""Attention in plain XLA operations: the definition that every other backend is held to."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention import entmax
from pallas_kernels.attention.mask import Mask


@jax.custom_jvp
def _masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax over the last axis where `mask`, 0 elsewhere; a row without any key is 0."""
  # A finite floor keeps an empty row free of NaN, in the value and in the gradient.
  weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
  return jnp.where(mask, weights, 0)


@_masked_softmax.defjvp
def _softmax_slope(primals, tangents):
  """From the weights alone: XLA's own derivative would keep the logits' exponentials and sums as well."""
  weights = _masked_softmax(*primals)
  moved = weights * tangents[0]
  return weights, moved - weights * moved.sum(-1, keepdims=True)


def _log_sum_exp(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Over the last axis where `mask`; a row without any key is -inf, with gradient 0."""
  some = mask.any(-1)
  # The inner where keeps NaN out of the gradient of rows that the outer where drops.
  value = jax.nn.logsumexp(jnp.where(mask, logits, -1e30), axis=-1)
  return jnp.where(some, value, -jnp.inf)


def beside_queries(x_BxHxQxT: jax.Array, heads: int, groups: int) -> jax.Array:
  """[B, H or 1, Q or 1, T] as [B, G or 1, Q M or M, T]: the M heads of a key head lie beside the queries."""
  M = heads // groups
  if x_BxHxQxT.shape[1] == 1:
    return jnp.repeat(x_BxHxQxT, M, axis=2)
  B, _, Q, T = x_BxHxQxT.shape
  return x_BxHxQxT.reshape(B, groups, M, Q, T).swapaxes(2, 3).reshape(B, groups, Q * M, T)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, mask: Mask, *, scale: float,
    soft_cap: float | None, alpha: float | jax.Array | None, config: None = None, return_residual: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """See dispatch.dot_product_attention; the residual is [B, H, Q]. Logits and softmax are float32; O(B H Q T)."""
  if config is not None:
    raise NotImplementedError(f'attention implementation xla has no config; got {config}')
  B, Q, H, K = query.shape
  T, G = key.shape[1:3]
  M = H // G
  # The M query heads of a key head lie beside the queries, so that both products are plain batched ones.
  exact = query.dtype == jnp.float32  # 16 bits would round a scaled query: there the float32 logits are scaled
  query_BxQMxGxK = (query * scale if exact else query).reshape(B, Q, G, M, K).swapaxes(2, 3).reshape(B, Q * M, G, K)
  mask_BxGxQMxT = mask.array()
  if mask_BxGxQMxT is None:
    mask_BxGxQMxT = jnp.ones((1, 1, 1, 1), bool)
  else:
    mask_BxGxQMxT = beside_queries(mask_BxGxQMxT, H, G)
  logits_BxGxQMxT = jnp.einsum('bqgk,btgk->bgqt', query_BxQMxGxK, key, preferred_element_type=jnp.float32)
  if not exact:
    logits_BxGxQMxT = logits_BxGxQMxT * scale
  if bias is not None:
    bias_BxGxQMxT = beside_queries(bias, H, G)
    if bias.shape[2] == 1:
      bias_BxGxQMxT = jnp.tile(bias_BxGxQMxT, (1, 1, Q, 1))
    logits_BxGxQMxT = logits_BxGxQMxT + bias_BxGxQMxT.astype(jnp.float32)
  if soft_cap is not None:
    logits_BxGxQMxT = soft_cap * jnp.tanh(logits_BxGxQMxT / soft_cap)
  if alpha is None:
    weights_BxGxQMxT = _masked_softmax(logits_BxGxQMxT, mask_BxGxQMxT)
  else:
    if jnp.ndim(alpha):  # one a head
      alpha = jnp.tile(jnp.reshape(alpha, (1, G, 1, M)), (1, 1, Q, 1)).reshape(1, G, Q * M, 1)
    weights_BxGxQMxT = entmax.masked_entmax(logits_BxGxQMxT, mask_BxGxQMxT, alpha)
  out_BxQMxGxK = jnp.einsum('bgqt,btgk->bqgk', weights_BxGxQMxT.astype(value.dtype), value)
  V = value.shape[-1]
  out = out_BxQMxGxK.reshape(B, Q, M, G, V).swapaxes(2, 3).reshape(B, Q, H, V).astype(query.dtype)
  residual_BxHxQ = None
  if return_residual:
    residual_BxGxQM = _log_sum_exp(logits_BxGxQMxT, jnp.broadcast_to(mask_BxGxQMxT, logits_BxGxQMxT.shape))
    residual_BxHxQ = residual_BxGxQM.reshape(B, G, Q, M).swapaxes(2, 3).reshape(B, H, Q)
  return out, residual_BxHxQ
