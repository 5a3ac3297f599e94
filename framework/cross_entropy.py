"""Cross-entropy between hidden states and targets, in nats, without ever holding [B, L, V] logits.

Tokens are taken in chunks, so that at most CHUNK_LOGITS float32 logits exist at a time. The gradient is computed
chunk by chunk during the forward pass, when the logits are at hand: no product is done twice.
"""

import jax
import jax.numpy as jnp

from framework import sharding

CHUNK_LOGITS = 2**24  # 64 MB of float32


def _chunks(vocabulary: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Reshapes arrays of [n, ...] to [chunks, size, ...], padded with zeros."""
  n = arrays[0].shape[0]
  parts = sharding.size('tensor')  # over which the vocabulary is split, if it divides
  size = min(n, max(1, CHUNK_LOGITS * (parts if vocabulary % parts == 0 else 1) // vocabulary))
  count = -(-n // size)
  pad = count * size - n
  return tuple(jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)).reshape(count, size, *a.shape[1:]) for a in arrays)


def _nats(x_nxD, head_VxD, targets_n):
  """Nats of each target, and what the gradient needs: the logits and their log-sum-exp."""
  logits_nxV = jnp.einsum('nd,vd->nv', x_nxD, head_VxD, preferred_element_type=jnp.float32)
  lse_n = jax.nn.logsumexp(logits_nxV, axis=-1)
  return lse_n - jnp.take_along_axis(logits_nxV, targets_n[:, None], axis=-1)[:, 0], logits_nxV, lse_n


def token_nats(x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array) -> jax.Array:
  """-ln p(target) of every position, float32 [B, L]. Not for gradients: see `sum_nats`."""
  D, V = x_BxLxD.shape[-1], head_VxD.shape[0]
  x_BxLxD = sharding.constrain(x_BxLxD, {1: None, 2: None})
  chunks = _chunks(V, x_BxLxD.reshape(-1, D), targets_BxL.reshape(-1))
  nats = jax.lax.map(lambda chunk: _nats(chunk[0], head_VxD, chunk[1])[0], chunks)
  return nats.reshape(-1)[:targets_BxL.size].reshape(targets_BxL.shape)


@jax.custom_vjp
def sum_nats(x_BxLxD: jax.Array, head_VxD: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array) -> jax.Array:
  """sum of weights * -ln p(target), a float32 scalar. Differentiable in x and head, not in weights."""
  return (token_nats(x_BxLxD, head_VxD, targets_BxL) * weights_BxL).sum()


def _forward(x_BxLxD, head_VxD, targets_BxL, weights_BxL):
  D, V = x_BxLxD.shape[-1], head_VxD.shape[0]
  x_BxLxD = sharding.constrain(x_BxLxD, {1: None, 2: None})
  chunks = _chunks(V, x_BxLxD.reshape(-1, D), targets_BxL.reshape(-1), weights_BxL.reshape(-1))

  def one_chunk(carry, chunk):
    total, d_head_VxD = carry
    x_nxD, targets_n, weights_n = chunk
    nats_n, logits_nxV, lse_n = _nats(x_nxD, head_VxD, targets_n)
    hit_nxV = jnp.arange(V) == targets_n[:, None]
    d_logits_nxV = ((jnp.exp(logits_nxV - lse_n[:, None]) - hit_nxV) * weights_n[:, None]).astype(x_nxD.dtype)
    d_x_nxD = d_logits_nxV @ head_VxD
    d_head_VxD = d_head_VxD + jnp.einsum('nv,nd->vd', d_logits_nxV, x_nxD, preferred_element_type=jnp.float32)
    return (total + (nats_n * weights_n).sum(), d_head_VxD), d_x_nxD

  start = (jnp.zeros((), jnp.float32), jnp.zeros((V, D), jnp.float32))
  if chunks[0].shape[0] == 1:
    (total, d_head_VxD), d_x = one_chunk(start, jax.tree.map(lambda c: c[0], chunks))
  else:
    (total, d_head_VxD), d_x = jax.lax.scan(one_chunk, start, chunks)
  d_x_BxLxD = d_x.reshape(-1, D)[:targets_BxL.size].reshape(x_BxLxD.shape)
  return total, (d_x_BxLxD, d_head_VxD.astype(head_VxD.dtype))


def _backward(residuals, g):
  d_x_BxLxD, d_head_VxD = residuals
  return (d_x_BxLxD * g.astype(d_x_BxLxD.dtype), d_head_VxD * g.astype(d_head_VxD.dtype), None, None)


sum_nats.defvjp(_forward, _backward)
