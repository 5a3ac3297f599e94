"""The hand-written gradient of the normalisation against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework.models import norm


@pytest.mark.parametrize('centred', [True, False])
def test_value_and_gradient(centred):
  keys = jax.random.split(jax.random.key(0), 3)
  x, scale, g = (jax.random.normal(k, s) for k, s in zip(keys, ((2, 3, 8), (8,), (2, 3, 8))))
  def plain(x, scale):
    if centred:
      x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 0.01) * scale
  expected, pullback = jax.vjp(plain, x + 2, scale)
  got, own_pullback = jax.vjp(lambda x, s: norm.normalize(x, s, centred, 0.01), x + 2, scale)
  np.testing.assert_allclose(got, expected, atol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), own_pullback(g), pullback(g))
