"""The training step of a tiered model, compiled for eight GPUs and a slice of eight TPUs that are not here.

Slow, and skipped without the plugins; make test-compile installs them into an environment of their own.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

from framework import config as config_lib
from framework.models import contract
from framework.tiered import model as tiered
from framework.training import optimizer, partition, state, step
from pallas_kernels.runtime import targets
from tests.kernels.test_compile import need

pytestmark = pytest.mark.slow
L, B = 256, 16


def compiled(target, kind, layout='stream', **settings):
  """HLO of a step that trains tier 2 on rollouts which tier 1 writes in it, over a mesh of eight."""
  c = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=2, width=256, heads=4, dtype='bfloat16', **settings),
      data=config_lib.Data(window=L), training=config_lib.Training(batch=B, partition=kind),
      tiered=config_lib.Tiered(widths='128,256', period=64, rollout=16, layout=layout)))
  module = tiered.build(c, 256)
  update = optimizer.only(optax.adam(1e-3), 'tier_2')
  reduce = partition.sum_over_data if kind == 'pmap' else lambda tree: tree
  pure = step.make(module, update, lambda _: 1e-3, c.training, module.stochastic, reduce)
  def first():
    params, zero = contract.init(module, jax.random.key(0)), jnp.zeros((), jnp.int32)
    return state.State(zero, zero, params, update.init(params))
  rows = jax.ShapeDtypeStruct((B, L), jnp.int32)
  one = jax.ShapeDtypeStruct((B,), jnp.int32)
  batch = {name: rows for name in ('tokens', 'targets', 'segments', 'positions')} | {
      'weights': jax.ShapeDtypeStruct((B, L), jnp.float32), 'rows': one,
      'start': jax.ShapeDtypeStruct((B,), jnp.uint32)}
  mesh = targets.mesh(target, (8,), ('data',))
  with targets.tracing(target):
    return partition.spread(pure, mesh, kind).lower(jax.eval_shape(first), batch).compile().as_text()


@pytest.mark.parametrize('kind', ['pmap', 'mesh'])
@pytest.mark.parametrize('target, module', [('h100', 'jax_cuda13_plugin'), ('v5e:2x4', 'libtpu')])
def test_a_step_of_two_tiers_sums_gradients_and_gathers_nothing(target, module, kind):
  need(target, module)
  # Under a mesh XLA gathers the arguments of a kernel that it cannot split: there attention is XLA's own.
  hlo = compiled(target, kind, attention='auto' if kind == 'pmap' else 'xla')
  assert 'num_partitions=8' in hlo and 'all-reduce' in hlo
  assert 'all-gather' not in hlo and 'all-to-all' not in hlo


@pytest.mark.parametrize('layout', ['stamp', 'cross'])
@pytest.mark.parametrize('target, module', [('h100', 'jax_cuda13_plugin'), ('v5e:2x4', 'libtpu')])
def test_the_other_layouts_compile_too(target, module, layout):
  need(target, module)
  assert 'all-reduce' in compiled(target, 'pmap', layout)
