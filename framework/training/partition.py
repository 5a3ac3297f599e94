"""One way to spread one pure step over a mesh of devices; every mesh gives the same losses.

The gradient runs once on every device, on its rows and its part of the window, and says itself what moves: weights that
are split over `fsdp` are gathered, gradients summed. Over `tensor` XLA splits it. The optimizer comes after, one program
over arrays that lie as `sharding.TABLE` says. A replica a device is the mesh with `data` alone; on one device nothing
of this is in the program.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from framework import config as config_lib
from framework import sharding
from framework.models import contract
from framework.training import layout
from framework.training import step as step_lib
from framework.training.state import State


def manual(mesh: Mesh) -> tuple[str, ...]:
  """The axes of more than one device over which a program says itself what moves."""
  return tuple(axis for axis in sharding.MANUAL if mesh.shape[axis] > 1)


def all_manual(mesh: Mesh) -> set[str]:
  """The axes that a shard_map takes: all but `tensor`, and that too where it has one device, which is simpler for XLA."""
  return set(sharding.MANUAL if mesh.shape['tensor'] > 1 else sharding.AXES)


def marked(params: Any, model: contract.Model, mesh: Mesh) -> Any:
  """A device's part of the parameters, with a Shard for each that is split over fsdp."""
  def one(path, x):
    spec = layout.specs(model, mesh)[jax.tree_util.keystr(path)]
    # Without the stacked layers, whose axis is not split, the spec is that of one layer too.
    return sharding.Shard(x, tuple(spec[next(i for i, axis in enumerate(spec) if axis):])
                          + (None,) * (x.ndim - len(spec))) if 'fsdp' in spec else x
  return jax.tree_util.tree_map_with_path(one, params)


def entered(params: Any, model: contract.Model) -> Any:
  """What a model is given of marked parameters: all of each, but for those that it gathers itself."""
  own = getattr(model, 'gathers', ())
  dtype = model.config.dtype if own else None
  return {name: part if name in own else sharding.whole(part, dtype) for name, part in params.items()}


def manual_specs(params: Any, model: contract.Model, mesh: Mesh) -> Any:
  """The specs of parameters in the words of a shard_map over the manual axes."""
  def one(path, _):
    return P(*(axis if axis in manual(mesh) else None for axis in layout.specs(model, mesh)[jax.tree_util.keystr(path)]))
  return jax.tree_util.tree_map_with_path(one, params)


def summed(total: dict[str, Any], kept: Any, axes: tuple[str, ...]) -> dict[str, Any]:
  """Sums over devices; gradients of what is split over fsdp have been summed over that when they were split."""
  def one(gradient, spec):
    left = tuple(axis for axis in axes if axis not in spec)
    return jax.lax.psum(gradient.astype(sharding.REDUCE), left).astype(gradient.dtype)
  nats, targets = jax.lax.psum((total['nats'], total['targets']), axes)
  return {'nats': nats, 'targets': targets, 'grads': jax.tree.map(one, total['grads'], kept)}


def spread_gradient(model: contract.Model, c: config_lib.Training, mesh: Mesh, reduce: Callable = summed
                    ) -> step_lib.Gradient:
  """The gradient of step.make_gradient over a mesh, of sharded parameters and a sharded batch.

  Args:
    reduce: (what each device has, the specs of the gradients, the axes) -> the sums; another one is for tests.
  """
  axes = manual(mesh)
  if not axes:
    return step_lib.make_gradient(model, c)
  gradient = step_lib.make_gradient(model, c, lambda params: entered(params, model))

  def over_mesh(params, step, batch):
    kept = manual_specs(params, model, mesh)
    def local(params, step, batch):
      total = gradient(marked(params, model, mesh), step, batch)
      grads = jax.tree.map(lambda x: x.value if sharding.is_shard(x) else x, total['grads'], is_leaf=sharding.is_shard)
      return reduce(total | {'grads': grads}, kept, axes)
    return jax.shard_map(
        local, mesh=mesh.abstract_mesh, in_specs=(kept, P(), layout.batch_specs(batch, mesh, axes)),
        out_specs={'nats': P(), 'targets': P(), 'grads': kept}, axis_names=all_manual(mesh), check_vma=False)(
            params, step, batch)

  return over_mesh


def spread_nats(nats: Callable[[Any, Any], jax.Array], model: contract.Model, mesh: Mesh) -> Callable[[Any, Any], jax.Array]:
  """nats(params, batch) -> [B, L] over a mesh, of sharded parameters and a sharded batch, in the order of that."""
  axes = manual(mesh)
  def over_mesh(params, batch):
    if not axes:
      return nats(params, batch)
    def local(params, batch):
      return nats(entered(marked(params, model, mesh), model), batch)
    return jax.shard_map(
        local, mesh=mesh.abstract_mesh, in_specs=(manual_specs(params, model, mesh), layout.batch_specs(batch, mesh, axes)),
        out_specs=layout.batch_specs({'tokens': 0}, mesh, axes)['tokens'], axis_names=all_manual(mesh), check_vma=False)(
            params, batch)
  def traced(params, batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return over_mesh(params, batch)
  return traced


def spread(step: Callable, mesh: Mesh, where: State) -> Callable[[State, Any], tuple[State, dict[str, jax.Array]]]:
  """Compiles step(state, batch) -> (state, metrics) over a mesh; the state's buffers are reused.

  Args:
    where: the sharding of each array of the state.
  """
  def traced(state, batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return step(state, batch)
  return jax.jit(traced, in_shardings=(where, None), out_shardings=(where, NamedSharding(mesh, P())), donate_argnums=0)
