"""Attention in Triton, sm80 and later: every mask, bias, soft cap, entmax, both directions. Compiled by jax-triton."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import gradient, triton_backward, triton_entmax, triton_forward
from pallas_kernels.runtime.batching import over_batch


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
  """Tiles without spills by tests/kernels/test_compile_gpu.py; smaller ones for float32 and wide heads."""
  wide = query.dtype.itemsize * query.shape[-1] > 256
  c = Config(64, 32, 4, 2, 32, 32, 32, 32, 4, 1) if wide else Config()
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
    alpha = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), query.shape[2:3])
  settings = gradient.Settings(scale, soft_cap, alpha is not None, config or pick(query, key))
  arrays = gradient.Arrays(query, key, value, bias, alpha)
  return gradient.attend(forward, backward, settings, arrays, mask)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp, or entmax's threshold, [B, H, Q])."""
  def one(batched, mask, alpha):
    kernel = triton_entmax if settings.entmax else triton_forward
    return tuple(kernel.forward(batched._replace(alpha=None if alpha is None else alpha[0]), mask, settings))
  alpha = None if arrays.alpha is None else arrays.alpha[None]
  return over_batch(one)(arrays._replace(alpha=None), mask, alpha)


def backward(arrays, mask, out, residual, delta_BxHxQ, d_out, settings):
  """Gradients of `arrays`."""
  def one(batched, mask, alpha, residual, delta, d_out):
    if settings.entmax:
      return triton_entmax.backward(batched._replace(alpha=alpha[0]), mask, residual, delta, d_out, settings)
    # exp(logits - inf) = 0 for a query that reads nothing
    residual = jnp.where(residual == -jnp.inf, jnp.inf, residual)
    return triton_backward.backward(batched, mask, residual, delta, d_out, settings)
  del out
  alpha = None if arrays.alpha is None else arrays.alpha[None]
  return over_batch(one)(arrays._replace(alpha=None), mask, alpha, residual, delta_BxHxQ, d_out)
