"""Trains over meshes of eight simulated devices: python meshes_process.py '[{"mesh": ..., "model.scan": ...}, ...]'.

Prints a JSON list: of each case the largest differences from one device, and what moves in a step.
"""

import functools
import json
import os
import pathlib
import sys
import tempfile

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
import numpy as np  # noqa: E402

from framework import config as config_lib  # noqa: E402
from framework import sharding, topology  # noqa: E402
from framework.models import decoder  # noqa: E402
from framework.training import checkpoint, layout, partition, setup  # noqa: E402

V, L, B, STEPS = 64, 64, 32, 10
SETTINGS = {'model.layers': 2, 'model.width': 64, 'model.heads': 16, 'model.kv_heads': 8, 'model.scan': True,
            'model.activation': 'swiglu', 'model.tied_head': False, 'model.remat': 'full', 'data.window': L,
            'optimizer.learning_rate': 1e-2, 'optimizer.warmup_steps': 2, 'training.steps': STEPS, 'training.batch': B,
            'training.partition': 'mesh'}


def batch_of(number):
  """Rows of very unequal numbers of targets, and packed documents."""
  rng = np.random.default_rng(number)
  tokens = (rng.integers(0, V, (B, 1)) + np.arange(L + 1) * rng.integers(1, 3, (B, 1))) % V
  weights = (rng.random((B, L)) < rng.random((B, 1))).astype(np.float32)
  weights[0] = 0
  segments = np.cumsum(rng.random((B, L)) < 0.1, axis=1).astype(np.int32) + 1
  return {'tokens': tokens[:, :-1].astype(np.int32), 'targets': tokens[:, 1:].astype(np.int32), 'weights': weights,
          'segments': segments, 'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
          'rows': np.arange(B, dtype=np.int32)}


def made(mesh, settings):
  config = config_lib.changed(config_lib.Config(), SETTINGS | settings | {'training.mesh': mesh})
  count = 1 if mesh == 'data=1' else 8
  return setup.set_up(config, V, layout.make_mesh(jax.devices()[:count], sharding.sizes(mesh, count)))


def compiled(s, reduce=partition.summed):
  """The program of a step."""
  specs = layout.batch_specs(batch_of(0), s.mesh)
  batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(s.mesh, specs[name]))
           for name, x in batch_of(0).items()}
  return s.compile_step(reduce).lower(s.like(), batch).compile()


def trained(s, step):
  """The losses, and the optimizer's state after the first step, which is its gradient."""
  state, losses, first = s.init(), [], None
  for number in range(STEPS):
    state, metrics = step(state, layout.split_rows(batch_of(number), s.mesh))
    losses.append(float(metrics['loss']))
    first = first or jax.device_get(state.optimizer)
  return np.array(losses), first


@functools.cache
def one_device(settings):
  s = made('data=1', dict(settings))
  return trained(s, compiled(s))


def too_few(total, kept, axes):
  return partition.summed(total, kept, axes[1:])


def too_many(total, kept, axes):
  total = partition.summed(total, kept, axes)
  return total | {'grads': jax.lax.psum(total['grads'], axes[-1:])}


def mutate(name):
  """Breaks something of what spreads a step; returns what is to sum the gradients."""
  if name == 'no gather':
    sharding.TABLE = {axis: where for axis, where in sharding.TABLE.items() if where != 'fsdp'}
    original = sharding.spec
    sharding.spec = lambda axes, role, shape, mesh: original(axes, role, shape, dict(mesh) | {'fsdp': 1})
  elif name == 'a gather outside the scan':
    decoder.Decoder.gathers = ('nothing',)
  elif name == 'a rule misspelt':
    sharding.TABLE = {axis.replace('forward', 'foward'): where for axis, where in sharding.TABLE.items()}
  layout.specs.cache_clear()
  return {'a sum over one axis too few': too_few, 'a sum over one too many': too_many}.get(name, partition.summed)


def resumed(begun, others):
  """Saved halfway on one mesh, and restored on others: of each the largest difference of the losses of the rest."""
  s = made(begun, {})
  state, step = s.init(), s.compile_step()
  for number in range(STEPS // 2):
    state, _ = step(state, layout.split_rows(batch_of(number), s.mesh))
  true, _ = one_device(())
  found = []
  with tempfile.TemporaryDirectory() as folder:
    store = checkpoint.Checkpoints(pathlib.Path(folder), config_lib.Checkpoint())
    store.save(state, {'targets': 0, 'seconds': 0.0})
    store.wait()
    for mesh in others:
      other = made(mesh, {})
      state, record = store.restore(other.like())
      assert record['step'] == STEPS // 2
      assert jax.tree.map(lambda x: x.sharding, state) == other.where
      step, losses = other.compile_step(), []
      for number in range(STEPS // 2, STEPS):
        state, metrics = step(state, layout.split_rows(batch_of(number), other.mesh))
        losses.append(float(metrics['loss']))
      found.append(float(np.abs(losses - true[STEPS // 2:]).max()))
    store.close()
  return {'resumed': found}


def run(case):
  if 'then' in case:
    return resumed(case['mesh'], case['then'])
  settings = {key: value for key, value in case.items() if '.' in key}
  reduce = mutate(case['mutant']) if case.get('mutant') else partition.summed
  s = made(case['mesh'], settings)
  step = compiled(s, reduce)
  result = {'moved': topology.table(topology.collectives(step.as_text()))} if case.get('moved') else {}
  if case.get('trained', True):
    (losses, first), (true_losses, true_first) = trained(s, step), one_device(tuple(sorted(settings.items())))
    arrays = [(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(true_first)) if np.ndim(a)]
    result |= {'losses': float(np.abs(losses - true_losses).max()), 'learnt': float(true_losses[0] - true_losses[-1]),
               'gradients': max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in arrays)}
  return result


if __name__ == '__main__':
  print(json.dumps([run(case) for case in json.loads(sys.argv[1])]))
