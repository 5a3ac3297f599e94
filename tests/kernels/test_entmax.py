"""alpha-entmax: exact algorithms against bisection in float64, gradients against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import entmax
from tests.kernels import oracle

EVERYWHERE = np.ones((6, 33), bool)


def logits(seed=0, spread=2.0):
  return np.random.default_rng(seed).normal(size=(6, 33)).astype(np.float32) * spread


@pytest.mark.parametrize('spread', [0.01, 1.0, 30.0])
@pytest.mark.parametrize('alpha', [1.05, 1.3, 1.5, 2.0, 2.5])
def test_probabilities_are_those_of_float64(alpha, spread):
  z = logits(spread=spread)
  expected = np.stack([oracle.entmax_row(row.astype(np.float64), alpha) for row in z])
  np.testing.assert_allclose(entmax.masked_entmax(z, EVERYWHERE, alpha), expected, atol=3e-6)
  np.testing.assert_allclose(entmax.masked_entmax(z, EVERYWHERE, jnp.float32(alpha)), expected, atol=3e-6)


@pytest.mark.parametrize('alpha', [1.5, 2.0])
def test_small_probabilities_are_exactly_zero(alpha):
  p = np.asarray(entmax.masked_entmax(logits(spread=5.0), EVERYWHERE, alpha))
  assert (p == 0).mean() > 0.5 and np.abs(p.sum(-1) - 1).max() < 1e-6


def test_a_masked_key_is_as_if_it_were_not_there():
  z, mask = logits(), np.arange(33) < 20
  p = entmax.masked_entmax(z, mask, 1.5)
  np.testing.assert_allclose(p[:, :20], entmax.masked_entmax(z[:, :20], EVERYWHERE[:, :20], 1.5), atol=1e-6)
  assert (np.asarray(p[:, 20:]) == 0).all()
  assert (np.asarray(entmax.masked_entmax(z, np.zeros(33, bool), 1.5)) == 0).all()


def test_towards_one_it_is_softmax():
  np.testing.assert_allclose(
      entmax.masked_entmax(logits(), EVERYWHERE, 1.001), jax.nn.softmax(logits(), -1), atol=1e-3)


@pytest.mark.parametrize('alpha', [1.2, 1.5, 1.8, 2.0])
def test_gradients_in_logits_and_alpha_are_the_slopes_of_float64(alpha):
  z, weight = logits().astype(np.float64), np.random.default_rng(1).normal(size=(6, 33))
  direction = np.random.default_rng(2).normal(size=(6, 33))
  def value(z, alpha):
    return sum((oracle.entmax_row(row, alpha) * w).sum() for row, w in zip(z, weight))
  h = 1e-6
  slopes = [(value(z + h * direction, alpha) - value(z - h * direction, alpha)) / (2 * h),
            (value(z, alpha + h) - value(z, alpha - h)) / (2 * h)]
  def loss(z, alpha):
    return (entmax.masked_entmax(z, EVERYWHERE, alpha) * weight).sum()
  d_z, d_alpha = jax.grad(loss, (0, 1))(z.astype(np.float32), jnp.float32(alpha))
  np.testing.assert_allclose([(d_z * direction).sum(), d_alpha], slopes, rtol=2e-4, atol=1e-4)
  d_fixed = jax.grad(lambda z: loss(z, float(alpha)))(z.astype(np.float32))
  np.testing.assert_allclose(d_fixed, d_z, atol=1e-5)
