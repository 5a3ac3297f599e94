"""Whether the devices of a run can be trusted with it: replicas that agree, and gradients that its compiler got right."""

from typing import Any

import jax
import jax.numpy as jnp

from framework import sharding
from framework.models import contract
from framework.training import checkpoint, hosts, partition
from framework.training.setup import Setup
from framework.training.state import State

# By how much sums in another order may differ: in float32, and of numbers that are rounded to bfloat16 on their way.
ORDER = {'float32': 1e-4, 'bfloat16': 2e-2}


def check_replicas(state: State) -> None:
  """Compares what several devices or processes hold alike; every save does so too.

  Raises:
    hosts.Disagreement: an array that differs between devices, or between processes.
  """
  hosts.agree({'state before the first step': checkpoint.fingerprint(state)}, hosts.Disagreement)


def check_tables(setup: Setup, state: State, batch: dict[str, jax.Array]) -> None:
  """Compares the gradient of every table, as this run splits and accumulates it, with one that has no scatter in it.

  Compilers have got that wrong in split and accumulated steps: openxla/xla issues 42481 (GPU) and 49143 (TPU).

  Raises:
    hosts.Disagreement: a table whose gradients differ by more than sums in another order do.
  """
  described = contract.describe(setup.module)
  def tables() -> dict[str, jax.Array]:
    gradient = partition.spread_gradient(setup.module, setup.config.training, setup.mesh)
    def traced(state, batch):
      with jax.sharding.use_abstract_mesh(setup.mesh.abstract_mesh):
        leaves = jax.tree_util.tree_leaves_with_path(gradient(state.params, state.step, batch)['grads'])
      return {name: x for name, x in ((jax.tree_util.keystr(path), x) for path, x in leaves)
              if described[name].role == 'embedding'}
    return jax.jit(traced)(state, batch)
  found = tables()
  with sharding.by_products():
    true = tables()
  for name, difference in jax.device_get(_differences(found, true)).items():
    limit = ORDER[setup.config.model.dtype]
    if not difference <= limit:
      raise hosts.Disagreement(
          f'the gradient of {name} differs by {difference:.2g} of its size from one that is computed without scatter; '
          f'expected at most {limit:g}: {jax.devices()[0].device_kind} with jax {jax.__version__} computes it wrong')


@jax.jit
def _differences(found: dict[str, jax.Array], true: dict[str, jax.Array]) -> dict[str, Any]:
  return {name: jnp.linalg.norm((found[name] - true[name]).ravel()) / (jnp.linalg.norm(true[name].ravel()) + 1e-30)
          for name in found}
