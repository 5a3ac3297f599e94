"""Peak memory of a few steps on simulated devices, beside what the compiled program says: python memory_process.py N CASE.

CASE is JSON, the settings of a config. Prints JSON: bytes planned and measured, over all devices, and FLOPs.
"""

import json
import os
import pathlib
import re
import sys

os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={sys.argv[1]} --xla_backend_optimization_level=0'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import numpy as np  # noqa: E402

from framework import config as config_lib  # noqa: E402
from framework import topology  # noqa: E402
from framework.training import layout, setup  # noqa: E402


def status(name):
  """Bytes of a line of this process's status."""
  return 1024 * int(re.search(rf'{name}:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1])


settings = json.loads(sys.argv[2])
config = config_lib.changed(config_lib.Config(), settings)
s = setup.set_up(config, settings.get('data.vocabulary', 8192))
compiled = s.lower_step().compile()
planned = topology.memory(compiled, 'cpu').peak * jax.device_count()
rng = np.random.default_rng(0)
like = layout.batch_like(config, s.mesh)
batch = {name: rng.integers(0, 2, x.shape).astype(x.dtype) for name, x in like.items()}
begun = status('VmRSS')
pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
state = s.init()
for _ in range(3):
  state, metrics = compiled(state, layout.split_rows(batch, s.mesh))
  jax.block_until_ready(metrics)
cost = compiled.cost_analysis() or {}
print(json.dumps({'planned': planned, 'measured': status('VmHWM') - begun, 'flops': cost.get('flops', 0),
                  'formula': config.training.batch * s.module.flops().train / jax.device_count()}))
