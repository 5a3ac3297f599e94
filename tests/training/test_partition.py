"""The same 50 losses for every number of devices, partition and accumulation; ragged weights included."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.training import layout, partition, setup, step

STEPS, B, L, V = 50, 16, 16, 31


def make_config(accumulation=1, kind='pmap', **training):
  return config_lib.resolve(config_lib.Config(
      model=config_lib.Model(layers=2, width=16, heads=2, dropout=0.1),
      data=config_lib.Data(window=L),
      optimizer=config_lib.Optimizer(learning_rate=1e-2, warmup_steps=5),
      training=config_lib.Training(steps=STEPS, batch=B, accumulation=accumulation, partition=kind, **training)))


def batch_of(number):
  rng = np.random.default_rng(number)
  tokens = (rng.integers(0, V, (B, 1)) + np.arange(L + 1) * rng.integers(1, 3, (B, 1))) % V  # learnable
  weights = (rng.random((B, L)) < rng.random((B, 1))).astype(np.float32)  # rows of very unequal numbers of targets
  weights[0] = 0
  return {'tokens': tokens[:, :-1].astype(np.int32), 'targets': tokens[:, 1:].astype(np.int32), 'weights': weights,
          'segments': np.ones((B, L), np.int32), 'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
          'rows': np.arange(B, dtype=np.int32)}


def losses(config, devices, steps=STEPS, reduce=partition.summed):
  s = setup.set_up(config, V, layout.make_mesh(jax.devices()[:devices]))
  spread, train_state, out = s.compile_step(reduce), s.init(), []
  for number in range(steps):
    train_state, metrics = spread(train_state, layout.split_rows(batch_of(number), s.mesh))
    out.append(metrics['loss'])
  return np.array(jax.device_get(out))


@pytest.fixture(scope='module')
def one_device():
  out = losses(make_config(), 1)
  assert out[-10:].mean() < 0.75 * out[:3].mean()  # it learns: equality is not that of standing still
  return out


@pytest.mark.parametrize('accumulation', [1, 4])
@pytest.mark.parametrize('devices', [1, 2, 4])
@pytest.mark.parametrize('kind', ['pmap', 'mesh'])
def test_losses_do_not_depend_on_how_the_step_is_spread(one_device, kind, devices, accumulation):
  np.testing.assert_allclose(losses(make_config(accumulation, kind), devices), one_device, atol=1e-5, rtol=0)


def test_a_mean_of_device_means_would_be_seen(one_device):
  """The usual mistake: dividing by each device's own number of targets."""
  def mean_of_means(total, kept, axes):
    share = jax.tree.map(lambda x: x / total['targets'], {'nats': total['nats'], 'grads': total['grads']})
    summed = jax.lax.pmean(share, 'data')
    targets = jax.lax.psum(total['targets'], 'data')
    return {'targets': targets} | jax.tree.map(lambda x: x * targets, summed)
  wrong = losses(make_config(), 4, steps=3, reduce=mean_of_means)
  assert np.abs(wrong - one_device[:3]).max() > 1e-3


def test_without_the_sum_the_devices_would_drift(one_device):
  wrong = losses(make_config(), 4, steps=3, reduce=lambda total, kept, axes: total)
  assert np.abs(wrong - one_device[:3]).max() > 1e-3


def test_the_state_is_reused_in_place():
  s = setup.set_up(make_config(), V)
  spread, before = s.compile_step(), s.init()
  spread(before, layout.split_rows(batch_of(0), s.mesh))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


def test_a_skipped_step_changes_nothing_but_the_counts():
  s = setup.set_up(make_config(skip_nonfinite=3), V)
  pure = jax.jit(step.make(step.make_gradient(s.module, s.config.training), s.optimizer, s.learning_rate,
                           s.config.training))
  before = jax.device_get(s.init())
  bad = batch_of(0)
  bad['weights'] = bad['weights'] * np.float32('nan')
  after, metrics = jax.device_get(pure(before, bad))
  assert not metrics['finite'] and int(after.skipped) == 1 and int(after.step) == 1
  jax.tree.map(np.testing.assert_array_equal, (before.params, before.optimizer), (after.params, after.optimizer))
  again, metrics = pure(before, batch_of(0))
  assert metrics['finite'] and int(again.skipped) == 0


CHILD = '''
import json, sys
import jax
jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) if int(sys.argv[2]) > 1 else None
sys.path.insert(0, sys.argv[4])
import test_partition as t
from framework.training import layout, partition
rows = layout.host_rows(layout.make_mesh(), t.B)
local = {name: x[rows] for name, x in t.batch_of(0).items()}
t.batch_of = lambda number, whole=t.batch_of: {n: x[rows] for n, x in whole(number).items()}
print(json.dumps([local["tokens"].tolist(), t.losses(t.make_config(kind="%s"), jax.device_count(), 5).tolist()]))
'''


@pytest.mark.parametrize('kind', ['pmap', 'mesh'])
def test_two_processes_see_the_batches_and_losses_of_one(one_device, kind):
  here = pathlib.Path(__file__).parent
  env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONPATH': str(here.parents[1])}
  port = 20000 + os.getpid() % 20000 + (kind == 'mesh')
  children = [subprocess.Popen([sys.executable, '-c', CHILD % kind, f'127.0.0.1:{port}', '2', str(i), str(here)],
                               env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(2)]

  outputs = []
  for child in children:
    stdout, stderr = child.communicate(timeout=240)
    assert child.returncode == 0, stderr[-2000:]
    outputs.append(json.loads(stdout.splitlines()[-1]))
  np.testing.assert_array_equal(np.concatenate([rows for rows, _ in outputs]), batch_of(0)['tokens'])
  for _, two in outputs:
    np.testing.assert_allclose(two, one_device[:5], atol=1e-5, rtol=0)
