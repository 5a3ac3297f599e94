"""Targets, tuning, timing and the benchmark's command."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention
from pallas_kernels.matmul import matmul
from pallas_kernels.runtime import device, report, targets, timing, tune
from tests.kernels import cases


@dataclasses.dataclass(frozen=True)
class Tiles:
  rows: int = 1


def test_the_fastest_is_remembered_and_the_rest_of_the_file_kept(tmp_path):
  file = tmp_path / 'cache' / 'device.json'
  cost = {1: 0.3, 2: 0.1, 4: 0.2}
  def seconds(f, inputs):
    if f == 8:
      raise ValueError('too large')
    return cost[f]
  for name in ('one', 'two'):
    winner = tune.tune(name, lambda c: c.rows, [()], [Tiles(n) for n in (1, 2, 4, 8)], file, seconds)
    assert winner == {'config': {'rows': 2}, 'seconds': 0.1}
  assert tune.remembered('one', Tiles, file) == tune.remembered('two', Tiles, file) == Tiles(2)
  assert tune.remembered('three', Tiles, file) is None
  assert [p.name for p in file.parent.iterdir()] == ['device.json']
  file.write_text(json.dumps({'one': {'config': {'columns': 3}}}))  # of another version
  assert tune.remembered('one', Tiles, file) is None
  with pytest.raises(RuntimeError, match='no config of one runs: .*too large'):
    tune.tune('one', lambda c: c.rows, [()], [Tiles(8)], file, seconds)


def test_what_spills_or_does_not_compile_is_never_timed(monkeypatch):
  def compile_report(f, *_, target):
    if f == 4:
      raise ValueError('Shared memory size limit exceeded')
    kernel = report.Kernel('k', 255, 760 if f == 2 else 0, None, {})
    return report.Report(target, 0, (kernel,), {}, '')
  monkeypatch.setattr(report, 'compile_report', compile_report)
  assert tune.prune(lambda c: c.rows, (), [Tiles(1), Tiles(2), Tiles(4)], 'h100') == [Tiles(1)]


def test_a_file_a_device(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert tune.path('NVIDIA H100 80GB HBM3') == tmp_path / 'lemma' / 'kernels' / 'nvidia_h100_80gb_hbm3.json'


def test_the_vendors_is_taken_until_tuning_has_found_a_faster_one(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  taken = []
  def first_able(operation, implementations, best, *_):
    taken.append(tuple(best))
    raise NotImplementedError
  monkeypatch.setattr(device, 'first_able', first_able)
  def of(target, f, *shapes):
    with targets.tracing(target), pytest.raises(NotImplementedError):
      jax.eval_shape(f, *(jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes))
    return taken.pop()
  attend, short, long = attention.dot_product_attention, [(1, 64, 4, 64)] * 3, [(1, 16384, 2, 64)] * 3
  assert of('h100', attend, *short) == ('cudnn', 'xla')
  assert of('h100', attend, *long) == ('cudnn', 'xla_chunked', 'xla')
  assert of('v5e', attend, *short) == of('h100', matmul, (8, 16), (16, 4)) == ('xla',)
  with targets.tracing('h100'):
    tune.record(tune.key('attention', 'fastest', 'bfloat16', 64, 64, 4, 4, 64), {'implementation': 'triton'})
    tune.record(tune.key('matmul', 'fastest', 'bfloat16', 8, 4, 16), {'implementation': 'mosaic_gpu'})
  assert of('h100', attend, *short) == ('triton', 'cudnn', 'xla')
  assert of('h100', matmul, (8, 16), (16, 4)) == ('mosaic_gpu', 'xla')
  assert of('h100', attend, *long) == ('cudnn', 'xla_chunked', 'xla')  # another shape
  assert of('a100', attend, *short) == ('cudnn', 'xla')  # another device
  with targets.tracing('h100'):
    tune.record(tune.key('attention', 'fastest', 'bfloat16', 64, 64, 4, 4, 64), {'implementation': 'of yesterday'})
    tune.record(tune.key('attention', 'fastest', 'bfloat16', 16384, 16384, 2, 2, 64), {'implementation': 'xla'})
  assert of('h100', attend, *short) == ('cudnn', 'xla')
  assert of('h100', attend, *long) == ('xla', 'cudnn', 'xla_chunked')


@pytest.mark.parametrize('arguments, message', [
    ({'bias': np.zeros((1, 1, 8, 8))}, 'has no bias'), ({'logits_soft_cap': 3.0}, 'no soft cap'),
    ({'alpha': 1.5}, 'no alpha'), ({'local_window_size': 3}, 'no mask but causal'),
    ({'stamps': np.arange(8)}, 'no mask'), ({'return_residual': True}, 'no log-sum-exp'), ({}, 'needs an NVIDIA GPU')])
def test_what_cudnn_cannot_honour_is_said(arguments, message):
  x = jnp.zeros((1, 8, 1, 64), jnp.bfloat16)
  with pytest.raises(NotImplementedError, match=message):
    attention.dot_product_attention(x, x, x, implementation='cudnn', **arguments)


def test_time_grows_with_the_work():
  small, large = (jnp.ones((n, n)) for n in (64, 1024))
  f = lambda a: a @ a
  assert timing.seconds(f, [(small,)], 3) < timing.seconds(f, [(large,)], 3)


@pytest.mark.parametrize('name, message', [('h10', r"'h10'; expected one of h100.*\(did you mean 'h100'\?\)"),
                                           ('v5:4x4', "'v5:4x4'; expected one of")])
def test_an_unknown_target_names_the_nearest(name, message):
  with pytest.raises(ValueError, match=message):
    targets.describe(name)


def test_the_platform_is_that_of_the_device_traced_for():
  assert device.platform() == 'cpu'
  with targets.tracing('a100'):
    assert device.platform() == 'gpu' and device.processors() == 108
  with targets.tracing('v5e:4x4'):
    assert device.platform() == 'tpu'


def test_all_reasons_are_given_when_nobody_can():
  a, b, _ = cases.matrices('float16')
  with pytest.raises(NotImplementedError, match='mosaic_tpu has no float16.*; .*pallas_triton has the plain product'):
    matmul(a, b, bias=jnp.zeros(50), implementation=('mosaic_tpu', 'pallas_triton'))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_teaching_product(dtype):
  from tests.kernels import test_matmul
  a, b, _ = cases.matrices(dtype)
  test_matmul.check(a, b, {'out_dtype': jnp.float32}, 'pallas_triton')


def test_benchmark_command(tmp_path):
  file = tmp_path / 'bench.json'
  result = subprocess.run(
      [sys.executable, '-m', 'pallas_kernels.bench', '--only=attention', '--length=256', f'--json={file}'],
      capture_output=True, text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
  assert result.returncode == 0, result.stderr
  rows = json.loads(file.read_text())['rows']
  assert {r['implementation'] for r in rows} == {'xla', 'xla_chunked'} and all(r['seconds'] > 0 for r in rows)
  assert np.isclose([r['percent_of_xla'] for r in rows if r['implementation'] == 'xla'], 100).all()


def test_ptx_is_found_in_a_triton_call():
  """The protocol buffer of jaxlib's triton.proto, written by hand: kernel_call {kernel {shared 3, ptx 4}}."""
  def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data
  kernel = field(1, b'name') + bytes([3 << 3, 0x80, 0x80, 0x06]) + field(4, b'.ptx text')
  fields = dict(report._fields(dict(report._fields(dict(report._fields(field(1, field(1, kernel))))[1]))[1]))
  assert fields == {1: b'name', 3: 98304, 4: b'.ptx text'}


@pytest.mark.parametrize('target, counts', [('h100', (1, 1)), ('h100:8', (1, 8)), ('h200:4x8', (4, 8))])
def test_gpus_of_one_host_and_of_several(target, counts):
  assert targets.hosts(target) == counts


@pytest.mark.parametrize('target', ['h100:', 'h100:0', 'h100:8x', 'h100:2x2x2', 'h100:-1', 'h100:x'])
def test_gpus_that_cannot_be_counted_are_refused(target):
  if target == 'h100:':
    assert targets.hosts(target) == (1, 1)
  else:
    with pytest.raises(ValueError, match=f"target is '{target}'; expected GPUs as h100:8"):
      targets.hosts(target)
