"""Devices that are not here: their description, a mesh of them, and compilation for them.

XLA compiles for a described GPU or TPU slice without one; the plugins do the work (jax-cuda13-plugin and
jax-cuda13-pjrt, or their cuda12 namesakes; libtpu).
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from foundation.errors import nearest


@dataclasses.dataclass(frozen=True)
class Gpu:
  """A GPU by its data sheet and CUDA's device attributes. Bytes, bytes/s, FLOP/s (dense bfloat16)."""
  kind: str
  capability: tuple[int, int]
  processors: int
  shared_memory: int  # that a block can ask for
  shared_memory_of_processor: int
  l2: int
  memory: int
  bandwidth: float
  clock_ghz: float
  flops: float


# NVIDIA data sheets (H100 SXM, H200 SXM, A100 SXM 80 GB) and the tuning guides of each architecture.
GPUS = {
    'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 232448, 233472, 50 << 20, 84942979072, 3.352e12, 1.98, 989e12),
    'h200': Gpu('NVIDIA H200', (9, 0), 132, 232448, 233472, 50 << 20, 150754820096, 4.8e12, 1.98, 989e12),
    'a100': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 166912, 167936, 40 << 20, 85052358656, 2.039e12, 1.41, 312e12),
}


@dataclasses.dataclass(frozen=True)
class Tpu:
  """A TPU by Google's system architecture pages: one chip. Bytes, bytes/s, FLOP/s (bfloat16)."""
  slice: str  # the smallest that XLA describes
  vmem: int
  bandwidth: float
  flops: float


TPUS = {
    'v5e': Tpu('v5e:2x2', 128 << 20, 0.819e12, 197e12),
    'v5p': Tpu('v5p:2x2x1', 128 << 20, 2.765e12, 459e12),
    'v6e': Tpu('v6e:2x2', 128 << 20, 1.64e12, 918e12),
}


def names() -> list[str]:
  return [*GPUS, *TPUS]


def describe(target: str) -> Gpu | Tpu:
  """The device of a target such as h100 or v5e:4x4. Raises ValueError, naming the nearest."""
  base = target.split(':')[0]
  if base not in names():
    raise ValueError(f"target is '{target}'; expected one of {', '.join(names())}, a TPU also with its slice, as "
                     f'v5e:4x4{nearest(base, names(), cutoff=0.4)}')
  return GPUS[base] if base in GPUS else TPUS[base]


def _gpu_config(gpu: Gpu) -> str:
  """stream_executor.GpuTargetConfigProto as text."""
  major, minor = gpu.capability
  accelerated = 'feature_extension: ACCELERATED_FEATURES' if gpu.capability == (9, 0) else ''
  return f'''gpu_device_info {{
    threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
    shared_memory_per_core: {gpu.shared_memory_of_processor} shared_memory_per_block_optin: {gpu.shared_memory}
    threads_per_core_limit: 2048 core_count: {gpu.processors} fpus_per_core: {128 if major == 9 else 64}
    block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
    thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
    registers_per_core_limit: 65536 registers_per_block_limit: 65536
    memory_bandwidth: {int(gpu.bandwidth)} l2_cache_size: {gpu.l2} clock_rate_ghz: {gpu.clock_ghz}
    device_memory_size: {gpu.memory} device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
    cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
    device_vendor: "NVIDIA Corporation" name: "{gpu.kind}"
    driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
  }}
  platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} device_description_str: "{gpu.kind}"'''


def mesh(target: str, shape: tuple[int, ...] = (1,), axis_names: tuple[str, ...] = ('x',)) -> jax.sharding.Mesh:
  """A mesh of absent devices: of the first of a TPU slice's chips, or of that many GPUs of one host.

  Raises:
    ValueError: no such target, or a slice with fewer chips.
    ModuleNotFoundError: the plugin that compiles for it is not installed.
  """
  device, count = describe(target), int(np.prod(shape))
  try:
    if isinstance(device, Gpu):
      topology = topologies.get_topology_desc(
          platform='cuda', target_config=_gpu_config(device), topology=f'1x{count}x1')
    else:
      os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no metadata server is asked what this machine is
      topology = topologies.get_topology_desc(target if ':' in target else device.slice, 'tpu')
  except Exception as error:
    missing = 'jax-cuda13-plugin and jax-cuda13-pjrt' if isinstance(device, Gpu) else 'libtpu'
    raise ModuleNotFoundError(f'compilation for {target} needs {missing}: {str(error).splitlines()[0]}') from error
  if len(topology.devices) < count:
    raise ValueError(f'target {target} has {len(topology.devices)} devices; expected {count} for mesh {shape}')
  return jax.sharding.Mesh(np.asarray(topology.devices[:count]).reshape(shape), axis_names)


@contextlib.contextmanager
def tracing(target: str) -> Iterator[None]:
  """Inside, functions are traced as for the target: kernels choose their tiles and backend for it."""
  device = describe(target)
  if isinstance(device, Tpu):
    kind, cores = {'v5e': 'TPU v5 lite', 'v5p': 'TPU v5', 'v6e': 'TPU v6 lite'}[target.split(':')[0]], 1
  else:
    kind, cores = device.kind, device.processors
  try:
    described = jax.sharding.AbstractDevice(
        device_kind=kind, num_cores=cores, platform='gpu' if isinstance(device, Gpu) else 'tpu')
  except TypeError:  # jax 0.10 has no platform
    described = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores)  # type: ignore[call-arg]  # older jax
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=described)):
    yield


def lower(f: Callable, *arguments: Any, target: str, **options: Any) -> jax.stages.Lowered:
  """jax.jit(f, **options) lowered for one device of the target; arguments as arrays or ShapeDtypeStructs."""
  sharding = jax.sharding.NamedSharding(mesh(target), jax.sharding.PartitionSpec())
  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  with tracing(target):
    return jax.jit(f, **options).lower(*jax.tree.map(place, arguments))
