"""Chunked cross-entropy against the plain formula, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import cross_entropy


def plain(x, head, targets, weights):
  logp = jax.nn.log_softmax(x @ head.T, axis=-1)
  return -(jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] * weights).sum()


def problem(B=3, L=5, D=8, V=11):
  keys = jax.random.split(jax.random.key(0), 4)
  return (jax.random.normal(keys[0], (B, L, D)), jax.random.normal(keys[1], (V, D)),
          jax.random.randint(keys[2], (B, L), 0, V), jax.random.uniform(keys[3], (B, L)))


@pytest.mark.parametrize('chunk', [10**9, 11 * 4, 1])  # one chunk; four tokens a chunk, the last ragged; one token
def test_value_and_gradient(chunk, monkeypatch):
  monkeypatch.setattr(cross_entropy, 'CHUNK_LOGITS', chunk)
  x, head, targets, weights = problem()
  got = jax.value_and_grad(lambda x, h: 3 * cross_entropy.sum_nats(x, h, targets, weights), (0, 1))(x, head)
  expected = jax.value_and_grad(lambda x, h: 3 * plain(x, h, targets, weights), (0, 1))(x, head)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, expected)
  np.testing.assert_allclose((cross_entropy.token_nats(x, head, targets) * weights).sum(), got[0] / 3, rtol=1e-6)


def test_large_logits_stay_finite():
  x, head, targets, weights = problem()
  value, gradient = jax.value_and_grad(cross_entropy.sum_nats)(x * 1e4, head, targets, weights)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_no_array_of_all_logits():
  B, L, D, V = 4, 512, 32, 32768
  shapes = [jax.ShapeDtypeStruct(s, t) for s, t in (((B, L, D), 'float32'), ((V, D), 'float32'), ((B, L), 'int32'),
                                                     ((B, L), 'float32'))]
  def temporary(f):
    return jax.jit(jax.grad(f, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
  whole = B * L * V * 4
  assert temporary(plain) > whole  # what is avoided
  # The chunk of logits, its gradient and the head's gradient; never all logits.
  assert temporary(cross_entropy.sum_nats) < 3 * cross_entropy.CHUNK_LOGITS * 4 < whole
