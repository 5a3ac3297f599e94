"""Attention in parts: merged, they are attention over all keys, also where a part has none to read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework.tiered import rollouts


@pytest.mark.parametrize('dtype,tolerance', [('float32', 2e-6), ('bfloat16', 2e-2)])
def test_parts_merge_to_attention_over_all_keys(dtype, tolerance):
  B, M, H, G, K, T = 2, 3, 4, 2, 8, (5, 7)
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (B, M, H, K), dtype)
  k, v = (jax.random.normal(key, (B, sum(T), G, K), dtype) for key in keys[1:])
  allowed = np.random.default_rng(0).random((B, M, sum(T))) < 0.5
  allowed[..., 0] = True
  allowed[0, 1, T[0]:] = False  # the second part has nothing for one query
  def part(some):
    return rollouts.shared_part(q, jnp.moveaxis(k[:, some], 1, 3), jnp.moveaxis(v[:, some], 1, 2),
                                allowed[..., some])
  first, second = part(slice(0, T[0])), part(slice(T[0], None))
  assert second[1][0, 1].max() < -1e29 and np.isfinite(np.asarray(second[0], np.float32)).all()
  out = rollouts.merge(first, second)
  expected = jax.nn.dot_product_attention(*(x.astype(jnp.float32) for x in (q, k, v)), mask=allowed[:, None])
  np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=tolerance)
