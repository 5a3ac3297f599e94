"""alpha-entmax: a softmax whose small probabilities are exactly 0 (Peters et al. 2019, arXiv:1905.05702).

p = argmax over the simplex of p.z + H_alpha(p), where H_alpha is the Tsallis entropy; then
p_i = max(0, (alpha - 1) z_i - tau) ^ (1 / (alpha - 1)), with tau such that the p_i sum to 1. alpha = 1 is softmax,
alpha = 2 sparsemax. tau is exact from sorted values for 1.5 and 2 (Peters et al., algorithm 2; Martins and Astudillo
2016, arXiv:1602.02068, algorithm 1), by bisection otherwise (Blondel et al. 2019, arXiv:1901.02324, algorithm 1).
"""

import functools

import jax
import jax.numpy as jnp

LEAST_ALPHA = 1.000001
BISECTIONS = 40  # halve an interval of ln T to below the spacing of float32


def masked_entmax(logits: jax.Array, mask: jax.Array, alpha: float | jax.Array) -> jax.Array:
  """alpha-entmax over the last axis where `mask`, 0 elsewhere; a row without any key is 0. float32.

  Args:
    logits: [..., T]; mask broadcasts against it.
    alpha: a number > 1, or an array that broadcasts against [..., 1]; differentiable if an array.
  """
  fixed = float(alpha) if isinstance(alpha, (int, float)) else None
  # A learned alpha that has come to 1, where the threshold is at infinity, stays a little above.
  alpha = jnp.maximum(jnp.asarray(alpha, jnp.float32), LEAST_ALPHA)
  return _entmax(logits, jnp.broadcast_to(mask, logits.shape), alpha, fixed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _entmax(logits, mask, alpha, fixed):
  """`fixed` is alpha where it is a Python number, which chooses the exact algorithms."""
  logits = jnp.where(mask, logits, -1e30)
  if fixed in (1.5, 2.0):
    scaled = logits * (alpha - 1)
    scaled = scaled - scaled.max(-1, keepdims=True)  # tau lies in [-1, 0)
    tau = (_sorted_tau_2 if fixed == 2.0 else _sorted_tau_1p5)(scaled)
    weights = jnp.where(mask, _power(scaled - tau, 1 / (alpha - 1)), 0)
  else:
    weights = jnp.where(mask, _bisected(logits - logits.max(-1, keepdims=True), alpha), 0)
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


def _bisected(z, alpha):
  """The weights of logits z <= 0, p = (1 + e (z + shift)) ^ (1 / e) with e = alpha - 1 and tau = -1 - e shift.

  The shift is in units of logits, and the power taken by log1p: so nothing is lost where e is small, and where it is
  very small p is exp(z + shift). Its bounds are those of one key, and of as many as there are with the largest logit.
  """
  e = jnp.asarray(alpha - 1)
  def weights(shift):
    x = e * (z + shift)
    return jnp.where(x > -1, jnp.exp(jnp.log1p(jnp.where(x > -1, x, 0)) / e), 0)
  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    too_high = weights(middle).sum(-1, keepdims=True) >= 1
    return jnp.where(too_high, low, middle), jnp.where(too_high, middle, high)
  low = jnp.broadcast_to(jnp.expm1(-e * jnp.log(jnp.float32(z.shape[-1]))) / e, z.shape[:-1] + (1,))
  return weights(jax.lax.fori_loop(0, BISECTIONS, halve, (low, jnp.zeros_like(low)))[1])


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
  d_alpha = (g * _slope_of_alpha(weights, alpha)).sum(-1, keepdims=True)
  axes = tuple(range(d_alpha.ndim - alpha.ndim)) if alpha.ndim < d_alpha.ndim else ()
  d_alpha = d_alpha.sum(axes)
  kept = tuple(i for i, n in enumerate(alpha.shape) if n == 1)
  return s * (g - mean), None, d_alpha.sum(kept, keepdims=True)


def _slope_of_alpha(weights, alpha):
  """d weights / d alpha (Correia et al. 2019, arXiv:1909.00015, proposition 1), written so that nothing cancels near 1.

  With e = alpha - 1, u = -e ln p and r = (e^u - 1 - u) / e^2, s = p e^u, the terms in 1 / e^2 are gone.
  """
  less = alpha - 1
  log = jnp.log(jnp.where(weights > 0, weights, 1))
  u = -less * log
  r = log**2 * curvature(u)
  U, R = ((weights * x).sum(-1, keepdims=True) for x in (u, r))
  return weights * ((1 + u) * R - (1 + U) * r) / (1 + U + less**2 * R)


def curvature(u):
  """(e^u - 1 - u) / u^2 for u >= 0, by its series where u is small."""
  series = 1 / 2 + u * (1 / 6 + u * (1 / 24 + u * (1 / 120 + u * (1 / 720 + u / 5040))))
  large = jnp.where(u > 0.5, u, 1.0)
  return jnp.where(u > 0.5, (jnp.expm1(large) - large) / large**2, series)


_entmax.defvjp(_entmax_forward, _entmax_backward)
