"""Normalisation of rows with a hand-written gradient, which takes fewer passes over the array than XLA's own."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalize(x: jax.Array, scale_D: jax.Array, centred: bool, epsilon: float) -> jax.Array:
  """x / sqrt(mean(x^2) + epsilon) * scale over the last axis D; `centred` subtracts the mean first, as LayerNorm does.

  RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467. LayerNorm: Ba et al. 2016, arXiv:1607.06450.
  """
  return _forward(x, scale_D, centred, epsilon)[0]


def _forward(x, scale_D, centred, epsilon):
  if centred:
    x = x - x.mean(-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
  unit = x * inverse
  return unit * scale_D, (unit, inverse, scale_D)


def _backward(centred, epsilon, residuals, g):
  unit, inverse, scale_D = residuals
  d_unit = g * scale_D
  d_x = d_unit - unit * (d_unit * unit).mean(-1, keepdims=True)
  if centred:
    d_x = d_x - d_unit.mean(-1, keepdims=True)
  return d_x * inverse, (g * unit).sum(tuple(range(g.ndim - 1)))


normalize.defvjp(_forward, _backward)
