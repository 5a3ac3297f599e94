"""What is looked at before the first step: replicas, and gradients of tables; each is seen to fail."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import sharding
from framework.config import Config, Data, Evaluation, Model, Optimizer, Training, resolve
from framework.data import corpus
from framework.training import health, hosts, layout, loop, run, setup

V, B, L = 24, 8, 16


def made(**settings):
  c = resolve(Config(model=Model(layers=1, width=16, heads=4), data=Data(window=L), optimizer=Optimizer(warmup_steps=1),
                     training=Training(steps=2, batch=B, **settings)))
  one = setup.set_up(c, V)
  rng = np.random.default_rng(0)
  batch = {name: np.zeros(x.shape, x.dtype) for name, x in layout.batch_shapes(B, L).items()}
  batch |= {'tokens': rng.integers(0, V, (B, L), np.int32) % 7, 'weights': np.ones((B, L), np.float32)}
  return one, one.init(), layout.split_rows(batch, one.mesh)


MESHES = [{'accumulation': 2}, {'partition': 'mesh', 'mesh': 'fsdp=2,tensor=2', 'accumulation': 2},
          {'partition': 'mesh', 'mesh': 'data=2,sequence=2'}]


@pytest.mark.parametrize('settings', MESHES, ids=str)
def test_gradients_of_tables_are_right_on_this_machine(settings):
  health.check_tables(*made(**settings))


@pytest.mark.parametrize('settings', MESHES[:2], ids=str)
def test_a_scatter_that_loses_a_part_is_named(monkeypatch, settings):
  @jax.custom_vjp
  def take(table, rows):
    return table[rows]
  def lossy(res, gradient):
    table, rows = res
    return jnp.zeros_like(table).at[rows].set(gradient), None  # the last in place of the sum
  take.defvjp(lambda table, rows: (table[rows], (table, rows)), lossy)
  monkeypatch.setattr(sharding, 'operator', types.SimpleNamespace(getitem=take))
  with pytest.raises(hosts.Disagreement, match=r"gradient of \['embedding'\] differs by 0?\.?\d.* without scatter; "
                     'expected at most 0.0001: cpu with jax'):
    health.check_tables(*made(**settings))


def test_a_replica_that_differs_is_named():
  one, state, _ = made()
  health.check_replicas(state)
  x = state.params['embedding']
  parts = [jax.device_put(np.asarray(x) + (number == 2), device) for number, device in enumerate(jax.devices())]
  bad = jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)
  with pytest.raises(hosts.Disagreement, match=r"embedding.* is not the same on all devices.*: cpu:2 has other"):
    health.check_replicas(state.replace(params=state.params | {'embedding': bad}))


def test_a_run_that_is_checked_trains_as_any_other(tmp_path):
  def train(folder, **settings):
    c = resolve(Config(model=Model(layers=1, width=16, heads=2), data=Data(task='zipf_pairs:symbols=4', window=16),
                       optimizer=Optimizer(warmup_steps=1), evaluation=Evaluation(windows=8),
                       training=Training(steps=2, batch=4, log_every=1, **settings)))
    text = corpus.prepare(c.data)
    run.open_folder(folder, c, text, resume=True)
    loop.train(c, text, folder)
    return (folder / 'metrics.jsonl').read_bytes()
  assert train(tmp_path / 'plain') == train(tmp_path / 'checked', check_gradient=True)
