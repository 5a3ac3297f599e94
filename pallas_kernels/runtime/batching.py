"""vmap for kernels that know no vmap: the mapped axis becomes part of the leading batch axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_batch(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """`f(rows, shared)` made fit for jax.vmap.

  Every array of `rows` and of the result has a leading batch axis B; those of `shared` have a batch axis of B or, one
  for all rows, of 1, which stays 1 where it is not mapped.
  """
  batched = jax.custom_batching.custom_vmap(f)

  @batched.def_vmap
  def rule(size, mapped, rows, shared):
    count = next(x.shape[1 if m else 0] for x, m in zip(jax.tree.leaves(rows), jax.tree.leaves(mapped[0])))
    def merge(x, is_mapped):
      x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
      return x.reshape(-1, *x.shape[2:])
    def merge_shared(x, is_mapped):
      if not is_mapped and x.shape[0] == 1:
        return x
      x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
      return merge(jnp.broadcast_to(x, (size, count, *x.shape[2:])), True)
    out = over_batch(f)(jax.tree.map(merge, rows, mapped[0]), jax.tree.map(merge_shared, shared, mapped[1]))
    return jax.tree.map(lambda x: x.reshape(size, count, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

  return batched
