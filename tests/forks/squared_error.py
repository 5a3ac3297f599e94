"""The squared error of the probability of the true token (Brier 1950, of that token alone)."""

import jax
import jax.numpy as jnp


def sum_loss(model, params, batch, keys_B):
  p_BxLxV = jax.nn.softmax(model.logits(params, model.hidden(params, batch, keys_B)))
  p_BxL = jnp.take_along_axis(p_BxLxV, batch['targets'][..., None], axis=-1)[..., 0]
  return (jnp.square(1 - p_BxL) * batch['weights']).sum()
