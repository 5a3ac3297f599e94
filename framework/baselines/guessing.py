"""Shannon's guessing game with a model as its subject (Shannon 1951, "Prediction and Entropy of Printed English").

The subject names tokens from the likeliest on until it hits the true one; q_i is how often that takes i guesses.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnums=0)
def guesses(module, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
  """Guesses until the target, int32 [B, L], from 1; tokens of equal probability go by their number."""
  logits_BxLxV = jnp.einsum('bld,vd->blv', module.hidden(params, batch), module.head(params),
                            preferred_element_type=jnp.float32)
  targets_BxLx1 = jnp.asarray(batch['targets'])[..., None]
  own_BxLx1 = jnp.take_along_axis(logits_BxLxV, targets_BxLx1, axis=-1)
  earlier_V = jnp.arange(logits_BxLxV.shape[-1])
  before = (logits_BxLxV > own_BxLx1) | ((logits_BxLxV == own_BxLx1) & (earlier_V < targets_BxLx1))
  return 1 + before.sum(-1, dtype=jnp.int32)


def bounds(guesses_N: np.ndarray) -> tuple[float, float]:
  """(lower, upper) in bits: the entropy of a language whose ideal predictor needs so many guesses (section 5).

  sum_i i (q_i - q_{i+1}) log2 i and -sum_i q_i log2 q_i. For an ideal predictor q falls; sampled ones are sorted.
  """
  q = np.bincount(guesses_N)[1:].astype(np.float64)
  q = -np.sort(-q / q.sum())
  i = np.arange(1, len(q) + 1)
  lower = float((i * (q - np.append(q[1:], 0)) * np.log2(i)).sum())
  used = q[q > 0]
  return lower, float(-(used * np.log2(used)).sum()) + 0.0
