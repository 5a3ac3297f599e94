"""The decoder trains three steps with every backend, interpreted, and its losses are those of XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework.models import contract, decoder
from framework.training import layout
from framework.training.losses import cross_entropy
from pallas_kernels.attention import dot_product_attention
from tests.networks import build

STEPS, WINDOW = 3, 24


def losses(implementation, dtype='float32', width=32):
  """Loss in nats a token before each of three steps, on rows of two packed documents."""
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(
      layers=2, width=width, heads=2, kv_heads=1, attention=implementation, dtype=dtype)))
  module = build(config.model, 17, WINDOW)
  params = contract.init(module, jax.random.key(0))
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 17, (2, WINDOW + 1))
  segments = np.where(np.arange(WINDOW) < 10, 1, 2)[None].repeat(2, 0)
  positions = np.concatenate([np.arange(10), np.arange(WINDOW - 10)])[None].repeat(2, 0)
  batch = {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'segments': segments, 'positions': positions,
           'weights': np.ones((2, WINDOW), np.float32)}
  batch = {k: jnp.asarray(v, jnp.float32 if k == 'weights' else jnp.int32) for k, v in batch.items()}
  def update(params):
    def mean(p):
      return jax.tree.leaves(cross_entropy.sum_loss(module, p, batch, None))[0] / (2 * WINDOW)
    loss, gradients = jax.value_and_grad(mean)(params)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients), loss
  # Interpreted kernels are called without jit on a CPU that takes part in the interpretation.
  update = update if implementation == 'mosaic_gpu' else jax.jit(update)
  out = []
  for _ in range(STEPS):
    params, loss = update(params)
    out.append(float(loss))
  return out


@pytest.mark.parametrize('implementation', ['xla_chunked', 'mosaic_tpu'])
def test_losses_are_those_of_xla(implementation):
  truth = losses('xla')
  assert truth[2] < truth[0] - 0.1
  np.testing.assert_allclose(losses(implementation), truth, rtol=1e-5)


def test_losses_are_those_of_xla_with_triton():
  pytest.importorskip('triton', reason='triton is not installed (extra gpu)')
  from tests.kernels.test_triton import start
  with start() as ask:
    np.testing.assert_allclose(ask('decoder_losses')['losses'], losses('xla'), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(tuple(map(int, jax.__version__.split('.')[:2])) < (0, 11), reason='needs jax 0.11')
def test_losses_are_those_of_xla_with_mosaic_gpu():
  from pallas_kernels.runtime import mosaic_gpu
  truth = losses('xla', 'bfloat16', 128)
  with mosaic_gpu.interpreter():
    ours = losses('mosaic_gpu', 'bfloat16', 128)
  np.testing.assert_allclose(ours, truth, rtol=2e-2)


@pytest.mark.parametrize('kind', ['a mesh', 'a bare kernel'])
def test_a_step_over_a_mesh_gathers_no_activations(kind, monkeypatch):
  """XLA gathers what goes into a loop that it cannot split, as it does with a kernel, unless shard_map splits it."""
  if kind == 'a bare kernel':
    monkeypatch.setattr(decoder, 'sharded_attention', lambda *x, batch, heads, **how: dot_product_attention(*x, **how))
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(
      layers=1, width=32, heads=2, attention='mosaic_tpu')))
  module, mesh = build(config.model, 17, WINDOW), layout.make_mesh(jax.devices()[:2])
  params = contract.shapes(module)
  rows = jax.ShapeDtypeStruct((4, WINDOW), jnp.int32)
  batch = {name: rows for name in ('tokens', 'targets', 'segments', 'positions')}
  batch['weights'] = jax.ShapeDtypeStruct(rows.shape, jnp.float32)
  def sgd(params, batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      gradients = jax.grad(lambda p: cross_entropy.sum_loss(module, p, batch, None))(params)
    return jax.tree.map(lambda p, g: p - g, params, gradients)
  whole, rows = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ('data',)))
  hlo = jax.jit(sgd, in_shardings=(whole, rows), out_shardings=whole).lower(params, batch).compile().as_text()
  assert 'all-reduce' in hlo and ('all-gather' in hlo) == (kind == 'a bare kernel')


def test_a_backend_that_is_not_installed_is_refused_in_one_line(monkeypatch):
  from pallas_kernels import attention
  monkeypatch.setitem(attention.IMPLEMENTATIONS, 'triton', 'pallas_kernels.attention.no_such_module')
  with pytest.raises(config_lib.ConfigError, match="model.attention is 'triton', which needs .*nearest is 'auto'"):
    losses('triton')
