"""What all tests share."""

import jax
import pytest


@pytest.fixture(autouse=True, scope='module')
def forget_compiled_programs():
  """A test process keeps every program that it has compiled: gigabytes, if modules did not begin anew."""
  yield
  jax.clear_caches()
