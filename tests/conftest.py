"""Four simulated CPU devices for every test, and compiled programs kept between runs."""

import os
import pathlib

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
CACHE = pathlib.Path(__file__).parents[1] / '.cache'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
