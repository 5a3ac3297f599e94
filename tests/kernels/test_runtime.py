"""Targets, tuning, timing and the benchmark's command."""

import dataclasses
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

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
