"""The Triton kernels by Triton's interpreter on the CPU, in a process of its own; skipped without triton."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from tests.kernels import cases

pytest.importorskip('triton', reason='triton is not installed (extra gpu, or make test-compile)')
NAMES = [*cases.attention_masks(), *cases.attention_extras()]


@contextlib.contextmanager
def start():
  """ask(function, *arguments) -> its result in a process that interprets Triton."""
  process = subprocess.Popen(
      [sys.executable, '-m', 'tests.kernels.triton_process'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      env=os.environ | {'TRITON_INTERPRET': '1', 'JAX_PLATFORMS': 'cpu'})
  def ask(*request):
    print(json.dumps([request[0], request[1:]]), file=process.stdin, flush=True)
    line = process.stdout.readline()
    assert line, 'the interpreting process ended'
    result = json.loads(line)[2]
    assert 'error' not in result, result['error']
    return result
  try:
    yield ask
  finally:
    process.stdin.close()
    process.wait(60)


@pytest.fixture(scope='module')
def ask():
  with start() as ask:
    yield ask


@pytest.mark.parametrize('name', NAMES)
def test_attention_and_its_gradients_equal_the_reference(ask, name):
  errors = ask('attention_errors', name)
  # The gradient of alpha is a sum over all rows.
  assert all(error < (2e-3 if key == 'd_alpha' else 2e-5) for key, error in errors.items()), errors


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_attention_errs_at_most_twice_as_much_as_the_naive_kernel(ask, dtype):
  ask('attention_rule', dtype)


@pytest.mark.parametrize('dtype, extra', [
    *((dtype, 'plain') for dtype in cases.MATMUL_DTYPES if dtype not in ('float32', 'int8')),
    *((dtype, extra) for dtype in ('float32', 'int8') for extra in cases.matmul_extras())])
def test_matmul_is_that_of_float64(ask, dtype, extra):
  error = ask('matmul_error', dtype, extra)['out']
  assert error == 0 if (dtype, extra) == ('int8', 'plain') else error < 2e-6


@pytest.mark.parametrize('extra', ['plain', 'everything'])
def test_gradient_of_matmul_is_the_slope_of_float64(ask, extra):
  ask('matmul_gradient', extra)


def test_vmap_equals_a_loop(ask):
  assert all(error < 2e-5 for error in ask('vmapped').values())


def test_random_shapes_and_masks(ask):
  assert ask('random_attention', 10)['out'] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(10))
def test_five_hundred_random_shapes_and_masks(ask, seed):
  assert ask('random_attention', 50, seed)['out'] < 1e-5


@pytest.mark.parametrize('block_m, block_n, reads', [(1, 1, 54), (4, 1, 36), (4, 4, 18)])
def test_loads_are_those_of_the_traffic_counter(ask, block_m, block_n, reads):
  """Triton's tiles are powers of two; what lies outside the matrix is not loaded."""
  assert ask('loads', 3, 3, 3, block_m, block_n) == {'reads': reads, 'writes': 9}


def test_several_simulated_devices_are_refused(ask):
  assert 'interpreted on one simulated device; the mesh has 2' in ask('several_devices')['message']


def test_a_tile_that_nobody_writes_is_seen(ask):
  assert ask('unwritten_tile')['nan'] > 0
