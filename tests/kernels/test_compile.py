"""Machine code for H100, A100 and TPUs, made without them: no spills, tensor cores used, shared memory within limits.

Slow, and skipped without the plugins; make test-compile installs them into an environment of their own.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework.models import contract
from pallas_kernels.runtime import report, targets
from tests.kernels import compiled
from tests.networks import build

pytestmark = pytest.mark.slow


def need(target, *modules):
  for module in modules:
    pytest.importorskip(module, reason=f'{module} is not installed (make test-compile)')
  try:
    targets.mesh(target)
  except ModuleNotFoundError as error:
    pytest.skip(str(error))


@pytest.fixture(scope='module')
def golden():
  return json.loads(compiled.GOLDEN.read_text())


@pytest.mark.parametrize('target, name', compiled.gpu_cases())
def test_gpu_configuration(target, name, golden):
  need(target, 'triton', 'jax_triton')
  facts = compiled.gpu_facts(target, name)
  instruction = compiled.gpu_cases()[target, name][2]
  assert facts
  for kernel in facts.values():
    check(kernel, target, instruction)
  kept = golden[target][name]
  assert {k: sorted(v['instructions']) for k, v in facts.items()} == {
      k: sorted(v['instructions']) for k, v in kept.items()}, 'python -m tests.kernels.compiled shows the difference'


def check(kernel, target, instruction):
  assert kernel['spill_bytes'] == 0
  assert kernel['shared_memory'] is None or kernel['shared_memory'] <= targets.describe(target).shared_memory
  wanted = (instruction,) if isinstance(instruction, str) else instruction
  assert wanted is None or any(kernel['instructions'].get(i, 0) for i in wanted)


@pytest.mark.parametrize('target, name', compiled.tpu_cases())
def test_tpu_configuration(target, name, golden):
  need(target, 'libtpu')
  assert compiled.tpu_facts(target, name)['kernels'] == golden[target][name]['kernels']


def test_spills_are_seen():
  need('h100', 'triton', 'jax_triton')
  from pallas_kernels.matmul.triton import Config
  f, arguments = compiled.gemm('bfloat16', config=Config(128, 256, 64, warps=4, stages=3))
  [kernel] = report.compile_report(f, *arguments, target='h100').kernels
  with pytest.raises(AssertionError):
    check(vars(kernel), 'h100', 'HGMMA')


def test_the_slow_path_of_the_tensor_cores_is_seen():
  need('h100', 'triton', 'jax_triton')
  from pallas_kernels.matmul.triton import Config
  f, arguments = compiled.gemm('bfloat16', config=Config(32, 64, 64, warps=4, stages=3))
  [kernel] = report.compile_report(f, *arguments, target='h100').kernels
  assert kernel.spill_bytes == 0 and 'HMMA' in kernel.instructions
  with pytest.raises(AssertionError):
    check(vars(kernel), 'h100', 'HGMMA')


def test_too_much_tpu_memory_is_refused():
  need('v5e', 'libtpu')
  from pallas_kernels.matmul.mosaic_tpu import Config
  f, arguments = compiled.gemm('float32', 'mosaic_tpu', size=2048, config=Config(1024, 1024, 1024))
  with pytest.raises(Exception, match='(?i)vmem'):
    report.compile_report(f, *arguments, target='v5e')


@pytest.mark.parametrize('arguments', [{}, {'is_causal': True}, {'is_causal': True, 'local_window_size': (127, 0)}])
def test_cudnn_is_taken_where_nothing_is_measured(arguments, monkeypatch, tmp_path):
  need('h100')
  pytest.importorskip('nvidia.cudnn', reason='nvidia-cudnn-cu13 is not installed')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  f, arrays = compiled.attention(implementation=None, **arguments)
  calls = report.compile_report(f, *arrays, target='h100').custom_calls
  assert calls == {'__cudnn$fmhaSoftmax': 1, '__cudnn$fmhaSoftmaxBackward': 1}


@pytest.mark.parametrize('kind', ['pmap', 'mesh'])
@pytest.mark.parametrize('target, shape, implementation, module', [
    ('h100', (8,), 'triton', 'jax_triton'), ('h100', (8,), 'mosaic_gpu', 'triton'),
    ('v5e:4x4', (16,), 'mosaic_tpu', 'libtpu')])
def test_a_sharded_decoder_step_gathers_nothing(target, shape, implementation, module, kind):
  need(target.split(':')[0], module)
  hlo = step_hlo(target, shape, implementation, kind)
  assert any(name in hlo for name in ('triton_kernel_call', 'tpu_custom_call', 'mosaic_gpu'))
  assert 'all-reduce' in hlo and 'all-gather' not in hlo


def step_hlo(target, shape, implementation, kind):
  """The compiled training step of a decoder, data-parallel over the mesh."""
  from framework import config as config_lib
  from framework import models
  from framework.training import partition
  from framework.training.losses import cross_entropy
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(
      layers=2, width=256, heads=4, kv_heads=2, dtype='bfloat16', attention=implementation)))
  module = build(config.model, 256, 256)
  mesh = targets.mesh(target, shape, ('data',))
  with targets.tracing(target):
    params = contract.shapes(module)
  rows = jax.ShapeDtypeStruct((2 * shape[0], 256), jnp.int32)
  batch = {name: rows for name in ('tokens', 'targets', 'segments', 'positions')}
  batch['weights'] = jax.ShapeDtypeStruct(rows.shape, jnp.float32)
  def sgd(params, batch):
    loss, gradients = jax.value_and_grad(lambda p: cross_entropy.sum_loss(module, p, batch, None))(params)
    total, gradients = partition.sum_over_data((loss, gradients)) if kind == 'pmap' else (loss, gradients)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients), total
  with targets.tracing(target):
    return partition.spread(sgd, mesh, kind).lower(params, batch).compile().as_text()


def test_attention_over_a_mesh_gathers_nothing_and_a_bare_kernel_does():
  need('h100', 'jax_triton')
  from pallas_kernels.attention import dot_product_attention, sharded_attention
  mesh = targets.mesh('h100', (4, 2), ('data', 'model'))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data', None, 'model'))
  q = jax.ShapeDtypeStruct((8, 512, 8, 64), jnp.bfloat16, sharding=sharding)
  k = jax.ShapeDtypeStruct((8, 512, 4, 64), jnp.bfloat16, sharding=sharding)
  def hlo(f):
    def loss(*x):
      return f(*x).astype(jnp.float32).sum()
    with targets.tracing('h100'):
      return jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=(sharding,) * 3).lower(q, k, k).compile().as_text()
  inside = hlo(lambda *x: sharded_attention(
      *x, mesh=mesh, heads='model', implementation='triton', is_causal=True,
      segment_ids=np.zeros((8, 512), np.int32)))
  assert 'all-gather' not in inside
  assert 'all-gather' in hlo(lambda *x: dot_product_attention(*x, implementation='triton', is_causal=True))
