"""alpha-entmax: a softmax whose small probabilities are exactly 0 (Peters et al. 2019, arXiv:1905.05702).

p = argmax over the simplex of p.z + H_alpha(p), where H_alpha is the Tsallis entropy; then
p_i = max(0, (alpha - 1) z_i - tau) ^ (1 / (alpha - 1)), with tau such that the p_i sum to 1. alpha = 1 is softmax,
alpha = 2 sparsemax. tau is exact from sorted values for 1.5 and 2 (Peters et al., algorithm 2; Martins and Astudillo
2016, arXiv:1602.02068, algorithm 1), by bisection otherwise (Blondel et al. 2019, arXiv:1901.02324, algorithm 1).
"""

import functools

import jax
import jax.numpy as jnp

BISECTIONS = 40  # halve an interval of length 1 to below the spacing of float32 at any tau


def masked_entmax(logits: jax.Array, mask: jax.Array, alpha: float | jax.Array) -> jax.Array:
  """alpha-entmax over the last axis where `mask`, 0 elsewhere; a row without any key is 0. float32.

  Args:
    logits: [..., T]; mask broadcasts against it.
    alpha: a number > 1, or an array that broadcasts against [..., 1]; differentiable if an array.
  """
  fixed = float(alpha) if isinstance(alpha, (int, float)) else None
  return _entmax(logits, jnp.broadcast_to(mask, logits.shape), jnp.asarray(alpha, jnp.float32), fixed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _entmax(logits, mask, alpha, fixed):
  """`fixed` is alpha where it is a Python number, which chooses the exact algorithms."""
  scaled = jnp.where(mask, logits, -1e30) * (alpha - 1)
  scaled = scaled - scaled.max(-1, keepdims=True)  # tau lies in [-1, 0)
  if fixed == 2.0:
    tau = _sorted_tau_2(scaled)
  elif fixed == 1.5:
    tau = _sorted_tau_1p5(scaled)
  else:
    tau = _bisected_tau(scaled, alpha)
  weights = jnp.where(mask, _power(scaled - tau, 1 / (alpha - 1)), 0)
  total = weights.sum(-1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


def _power(x, exponent):
  """max(0, x) ^ exponent, 0 at 0."""
  return jnp.where(x > 0, jnp.exp(exponent * jnp.log(jnp.where(x > 0, x, 1))), 0)


def _sorted_tau_2(z):
  z_sorted = -jnp.sort(-z, axis=-1)
  count = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
  tau = (jnp.cumsum(z_sorted, -1) - 1) / count
  support = (z_sorted > tau).sum(-1, keepdims=True)
  return jnp.take_along_axis(tau, support - 1, axis=-1)


def _sorted_tau_1p5(z):
  z_sorted = -jnp.sort(-z, axis=-1)
  z_sorted = jnp.maximum(z_sorted, -4)  # below -1 nothing is in the support; keeps the squares small
  count = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
  mean = jnp.cumsum(z_sorted, -1) / count
  variance = jnp.cumsum(z_sorted**2, -1) / count - mean**2  # of the largest `count`
  tau = mean - jnp.sqrt(jnp.maximum(1 / count - variance, 0))
  support = (z_sorted >= tau).sum(-1, keepdims=True)
  return jnp.take_along_axis(tau, support - 1, axis=-1)


def _bisected_tau(z, alpha):
  low = jnp.broadcast_to(jnp.float32(-1), z.shape[:-1] + (1,))
  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    too_low = _power(z - middle, 1 / (alpha - 1)).sum(-1, keepdims=True) >= 1
    return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)
  return jax.lax.fori_loop(0, BISECTIONS, halve, (low, jnp.zeros_like(low)))[0]


def _entmax_forward(logits, mask, alpha, fixed):
  weights = _entmax(logits, mask, alpha, fixed)
  return weights, (weights, alpha)


def _entmax_backward(fixed, residuals, g):
  weights, alpha = residuals
  # Jacobian in z: diag(s) - s s^T / sum s, s = p^(2 - alpha) on the support (Peters et al. 2019, proposition 2).
  s = _power(weights, 2 - alpha)
  total = s.sum(-1, keepdims=True)
  share = s / jnp.where(total > 0, total, 1)
  mean = (share * g).sum(-1, keepdims=True)
  if fixed is not None:
    return s * (g - mean), None, jnp.zeros_like(alpha)
  # In alpha: Correia et al. 2019, arXiv:1909.00015, proposition 1.
  entropy = -weights * jnp.log(jnp.where(weights > 0, weights, 1))
  d_alpha = ((weights - share) / (alpha - 1)**2
             + (entropy - share * entropy.sum(-1, keepdims=True)) / (alpha - 1))
  d_alpha = (g * d_alpha).sum(-1, keepdims=True)
  axes = tuple(range(d_alpha.ndim - alpha.ndim)) if alpha.ndim < d_alpha.ndim else ()
  d_alpha = d_alpha.sum(axes)
  kept = tuple(i for i, n in enumerate(alpha.shape) if n == 1)
  return s * (g - mean), None, d_alpha.sum(kept, keepdims=True)


_entmax.defvjp(_entmax_forward, _entmax_backward)
