"""The gradient that every blocked backend shares: what is kept between the passes, under which names.

A backend gives `forward(arrays, settings) -> (out, residual)` and `backward(arrays, out, residual, delta, d_out,
settings) -> gradients`. The residual of softmax is the log-sum-exp l; with p = exp(logits - l),
d_logits = p * (d_out @ value^T - delta), delta = sum(d_out * out) - d_l (Dao 2023, arXiv:2307.08691, section 3.1).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention.mask import Mask

# For jax.checkpoint_policies.save_only_these_names: with both kept, the forward kernel does not run again.
RESIDUALS = ('attention_out', 'attention_residual')


class Arrays(NamedTuple):
  """What has a gradient, [B, Q, H, K], [B, T, G, K] twice, [B or 1, H or 1, Q or 1, T]; and alpha, [H]."""
  query: jax.Array
  key: jax.Array
  value: jax.Array
  bias: jax.Array | None
  alpha: jax.Array | None


class Settings(NamedTuple):
  """What is known at trace time; hashable. `entmax` says that `alpha` is there."""
  scale: float
  soft_cap: float | None
  entmax: bool
  config: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(forward: Callable, backward: Callable, settings: Settings, arrays: Arrays, mask: Mask):
  """(out [B, Q, H, K], residual float32 [B, H, Q]), differentiable in `arrays`."""
  return forward(arrays, mask, settings)


def _attend_forward(forward, backward, settings, arrays, mask):
  out, residual = forward(arrays, mask, settings)
  out, residual = checkpoint_name(out, RESIDUALS[0]), checkpoint_name(residual, RESIDUALS[1])
  return (out, residual), (arrays, mask, out, residual)


def _attend_backward(forward, backward, settings, residuals, gradients):
  arrays, mask, out, residual = residuals
  d_out, d_residual = gradients
  delta_BxHxQ = jnp.einsum('bqhk,bqhk->bhq', out.astype(jnp.float32), d_out.astype(jnp.float32)) - d_residual
  d_arrays = backward(arrays, mask, out, residual, delta_BxHxQ, d_out.astype(out.dtype), settings)
  return d_arrays, None


attend.defvjp(_attend_forward, _attend_backward)


def sum_to(d_bias_BxHxQxT: jax.Array, bias: jax.Array) -> jax.Array:
  """The gradient of a bias, summed over the axes on which it broadcasts."""
  summed = tuple(axis for axis in range(3) if bias.shape[axis] == 1)
  return d_bias_BxHxQxT.sum(summed, keepdims=True).astype(bias.dtype)
