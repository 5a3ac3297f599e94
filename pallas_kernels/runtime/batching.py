"""vmap for kernels that know no vmap: the mapped axis becomes part of the leading batch axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def over_batch(f: Callable) -> Callable:
  """`f(*trees)`, every array of which and of its result has a leading batch axis B, made fit for jax.vmap.

  Arguments that a vmap does not map are repeated; those with a batch axis of 1 keep it where they are not mapped.
  """
  mapped_f = jax.custom_batching.custom_vmap(f)

  @mapped_f.def_vmap
  def rule(size, mapped, *arguments):
    sizes = {x.shape[1 if m else 0] for x, m in zip(jax.tree.leaves(arguments), jax.tree.leaves(mapped))}
    rows = max(sizes)
    def merge(x, is_mapped):
      if not is_mapped:
        if x.shape[0] == 1:
          return x
        x = jnp.broadcast_to(x, (size, *x.shape))
      elif x.shape[1] == 1 and rows > 1:  # one for all rows, but another for each mapped index
        x = jnp.broadcast_to(x, (size, rows, *x.shape[2:]))
      return x.reshape(-1, *x.shape[2:])
    out = over_batch(f)(*jax.tree.map(merge, arguments, tuple(mapped)))
    return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

  return mapped_f
