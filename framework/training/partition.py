"""Two ways to spread one pure step over devices; both give the same losses.

pmap: the parameters are replicated and every device runs the step on its rows, with an explicit sum of gradients.
  jax.pmap itself is jit(shard_map) since JAX 0.8; this is that form, whose arrays need no device axis.
mesh: one program over named axes; XLA finds the communication from the shardings. It is traced in the mesh's context,
  from which attention kernels, that XLA cannot split, learn how to be split.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh with the one axis `data` over the devices of all hosts."""
  return Mesh(np.asarray(devices or jax.devices()), ('data',), axis_types=(jax.sharding.AxisType.Auto,))


def sum_over_data(tree: Any) -> Any:
  """The `reduce` of a step that runs once on every device."""
  return jax.lax.psum(tree, 'data')


def spread(step: Callable, mesh: Mesh, kind: str) -> Callable:
  """Compiles step(state, batch) -> (state, metrics) over `mesh`; the state's buffers are reused."""
  if kind == 'pmap':
    traced = jax.shard_map(step, mesh=mesh, in_specs=(P(), P('data')), out_specs=(P(), P()), check_vma=False)
  else:
    def traced(state, batch):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return step(state, batch)
  whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
  return jax.jit(traced, in_shardings=(whole, rows), out_shardings=(whole, whole), donate_argnums=0)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """The same value on every device of every host. Each host must hold all of it."""
  whole = NamedSharding(mesh, P())
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)), tree)


def split_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows of a global batch, as global arrays split over the mesh's data axis."""
  rows = NamedSharding(mesh, P('data'))
  if jax.process_count() == 1:
    return jax.device_put(batch, rows)  # the same, in half the time
  return {name: jax.make_array_from_process_local_data(rows, x) for name, x in batch.items()}


def host_rows(batch: int) -> slice:
  """The rows of a global batch that this host feeds to its devices."""
  share = batch // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
