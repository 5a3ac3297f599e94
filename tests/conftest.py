"""Four simulated CPU devices for every test, programs compiled fast and kept between runs, and memory given back.

LLVM's optimisations are half of the time of the tests. Commands that tests start as users do are compiled with them.
"""

import os
import pathlib
import signal

for number in (signal.SIGINT, signal.SIGHUP):  # ignored by what a shell starts in the background, and by its children
  if signal.getsignal(number) is signal.SIG_IGN:
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
CACHE = pathlib.Path(__file__).parents[1] / '.cache'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax  # noqa: E402  after what it reads
import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope='module')
def forget_compiled_programs():
  """A test process keeps every program that it has compiled: gigabytes, if modules did not begin anew."""
  yield
  jax.clear_caches()
