"""The table of pallas_kernels/README.md is what the backends can do."""

import os
import subprocess
import sys

import pytest

CODE = '''
from tests.kernels import support
assert support.text() in support.README.read_text(), 'stale: python -m tests.kernels.support'
'''


def test_the_table_is_what_the_backends_can_do():
  """In a process that compiles Triton, which tracing alone does not start."""
  pytest.importorskip('triton', reason='triton is not installed (make test-compile)')
  pytest.importorskip('jax_triton', reason='jax-triton is not installed (make test-compile)')
  result = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True,
                          env=os.environ | {'JAX_PLATFORMS': 'cpu'})
  assert result.returncode == 0, result.stderr
