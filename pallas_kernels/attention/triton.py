"""Attention in Triton, sm80 and later: every mask, bias, soft cap, entmax, both directions. Compiled by jax-triton."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import gradient, triton_backward, triton_entmax, triton_forward
from pallas_kernels.runtime import tune
from pallas_kernels.runtime.batching import over_batch


LEAST_ALPHA = 1.0001  # below, the kernel's float32 threshold knows the weights to less than a thousandth


@dataclasses.dataclass(frozen=True)
class Config:
  """Tiles of the forward kernel, of the backward kernel of queries and of that of keys; unmeasured."""
  block_q: int = 128
  block_k: int = 64
  warps: int = 8
  stages: int = 2
  query_block_q: int = 64
  query_block_k: int = 64
  key_block_q: int = 64
  key_block_k: int = 64
  backward_warps: int = 4
  backward_stages: int = 2


def pick(query: jax.Array, key: jax.Array) -> Config:
  """Tiles without spills by tests/kernels/test_compile.py: smaller ones for float32 and wide heads."""
  size, width = query.dtype.itemsize, query.shape[-1]
  if size == 4:
    c = Config(32, 32, 4, 1, 32, 32, 32, 32, 4 if width <= 64 else 8, 1)
  elif width > 128:
    c = Config(64, 32, 8, 2, 32, 32, 32, 32, 4, 1)
  else:
    c = Config(backward_warps=4 if width <= 64 else 8)
  def fit(block, length):
    return max(16, min(block, 1 << (length - 1).bit_length()))
  Q, T = query.shape[1], key.shape[1]
  return dataclasses.replace(
      c, block_q=fit(c.block_q, Q), query_block_q=fit(c.query_block_q, Q), key_block_q=fit(c.key_block_q, Q),
      block_k=fit(c.block_k, T), query_block_k=fit(c.query_block_k, T), key_block_k=fit(c.key_block_k, T))


def attend(query, key, value, bias, mask, *, scale, soft_cap, alpha, config, return_residual):
  """See reference.attend."""
  if query.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f'attention implementation triton has no {query.dtype}; expected float32, bfloat16 or '
                              'float16')
  if query.shape[-1] > 256:
    raise NotImplementedError(f'attention implementation triton has heads of width up to 256; got {query.shape[-1]}')
  if alpha is not None:
    alpha = jnp.broadcast_to(jnp.maximum(jnp.asarray(alpha, jnp.float32), LEAST_ALPHA), query.shape[2:3])
  config = config or _remembered(query, key) or pick(query, key)
  settings = gradient.Settings(scale, soft_cap, alpha is not None, config)
  arrays = gradient.Arrays(query, key, value, bias, alpha)
  return gradient.attend(forward, backward, settings, arrays, mask)


def _remembered(query, key):
  """What tuning on this device found for the shape."""
  (_, Q, H, K), (T, G) = query.shape, key.shape[1:3]
  return tune.remembered(tune.key('attention', 'triton', query.dtype, Q, T, H, G, K), Config)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp, or entmax's threshold, [B, H, Q])."""
  def one(rows, shared):
    query, key, value = rows
    mask, bias, alpha = shared
    arrays = gradient.Arrays(query, key, value, bias, None if alpha is None else alpha[0])
    return tuple((triton_entmax if settings.entmax else triton_forward).forward(arrays, mask, settings))
  return over_batch(one)(arrays[:3], (mask, arrays.bias, _one_row(arrays.alpha)))


def backward(arrays, mask, out, residual, delta_BxHxQ, d_out, settings):
  """Gradients of `arrays`; those of bias and alpha are summed over the rows here, after any vmap has split them."""
  def one(rows, shared):
    query, key, value, residual, delta, d_out = rows
    mask, bias, alpha = shared
    arrays = gradient.Arrays(query, key, value, bias, None if alpha is None else alpha[0])
    # exp(logits - inf) = 0 for a query that reads nothing
    residual = jnp.where(residual == -jnp.inf, jnp.inf, residual)
    part = triton_entmax if settings.entmax else triton_backward
    return part.backward(arrays, mask, residual, delta, d_out, settings)
  del out
  rows = (*arrays[:3], residual, delta_BxHxQ, d_out)
  gradients = over_batch(one)(rows, (mask, arrays.bias, _one_row(arrays.alpha)))
  return gradients._replace(
      bias=None if arrays.bias is None else gradient.sum_to(gradients.bias, arrays.bias),
      alpha=None if arrays.alpha is None else gradients.alpha.sum((0, 2)))


def _one_row(x):
  return None if x is None else x[None]
