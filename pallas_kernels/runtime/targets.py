"""Devices that are not here: their description, a mesh of them, and compilation for them.

XLA compiles for a described GPU or TPU slice without one; the plugins do the work (jax-cuda13-plugin and
jax-cuda13-pjrt, or their cuda12 namesakes; libtpu).
"""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from foundation.errors import nearest


@dataclasses.dataclass(frozen=True)
class Gpu:
  """A GPU by its data sheet and CUDA's device attributes. Bytes, bytes/s, FLOP/s (dense bfloat16).

  link: one way between GPUs of one host (NVLink). network: one way to other hosts, a GPU (a 400 Gb/s adapter each).
  """
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
  link: float
  network: float = 5e10


# NVIDIA data sheets (H100 SXM, H200 SXM, A100 SXM 80 GB) and the tuning guides of each architecture.
GPUS = {
    'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 232448, 233472, 50 << 20, 84942979072, 3.352e12, 1.98, 989e12,
                4.5e11),
    'h200': Gpu('NVIDIA H200', (9, 0), 132, 232448, 233472, 50 << 20, 150754820096, 4.8e12, 1.98, 989e12, 4.5e11),
    'a100': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 166912, 167936, 40 << 20, 85052358656, 2.039e12, 1.41, 312e12,
                3e11, 2.5e10),
}


@dataclasses.dataclass(frozen=True)
class Tpu:
  """A TPU by Google's system architecture pages: one chip. Bytes, bytes/s, FLOP/s (bfloat16).

  one_way: between neighbours, on one axis of the torus; axes: how many that has. network: a chip's share of its
  host's 200 Gb/s to other slices. The two rates are those of Austin et al. 2025, "How to Scale Your Model".
  """
  slice: str  # the smallest that XLA describes
  vmem: int
  bandwidth: float
  flops: float
  memory: int
  axes: int
  network: float = 6.25e9
  one_way: float = 4.5e10

  @property
  def link(self) -> float:
    """Bytes/s that a chip receives on all axes, both ways round."""
    return 2 * self.axes * self.one_way


TPUS = {
    'v5e': Tpu('v5e:2x2', 128 << 20, 0.819e12, 197e12, 16 << 30, 2),
    'v5p': Tpu('v5p:2x2x1', 128 << 20, 2.765e12, 459e12, 95 << 30, 3, one_way=9e10),
    'v6e': Tpu('v6e:2x2', 128 << 20, 1.64e12, 918e12, 32 << 30, 2, one_way=9e10),
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


def hosts(target: str) -> tuple[int, int]:
  """(hosts, GPUs of each) of a target such as h100:8x8; one host of h100:8, one GPU of h100. Raises ValueError."""
  sizes = target.partition(':')[2] or '1'
  counts = sizes.split('x')
  if len(counts) > 2 or not all(count.isdecimal() and int(count) for count in counts):
    raise ValueError(f"target is '{target}'; expected GPUs as h100:8, or hosts and GPUs of each as h100:4x8")
  return (1, int(counts[0])) if len(counts) == 1 else (int(counts[0]), int(counts[1]))


def devices(target: str, slices: int = 1) -> list[jax.Device]:
  """The absent devices of a target: a TPU slice's chips, or so many of those; of a GPU one, or hosts x GPUs.

  Raises:
    ValueError: no such target, or slices of GPUs.
    ModuleNotFoundError: the plugin that compiles for it is not installed.
  """
  device = describe(target)
  if isinstance(device, Gpu) and slices != 1:
    raise ValueError(f'{slices} slices of {target}; expected a TPU with them, nearest is a GPU with more hosts')
  shape = '1x{}x{}'.format(*hosts(target)) if isinstance(device, Gpu) else ''
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no metadata server is asked what this machine is
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nothing runs: several may compile at once
  try:
    if isinstance(device, Gpu):
      topology = topologies.get_topology_desc(platform='cuda', target_config=_gpu_config(device), topology=shape)
    else:
      topology = topologies.get_topology_desc(target if ':' in target else device.slice, 'tpu',
                                              **({'num_slices': slices} if slices > 1 else {}))
  except Exception as error:
    plugin = ('jax-cuda13-plugin', 'jax_cuda13_plugin') if isinstance(device, Gpu) else ('libtpu', 'libtpu')
    reason = str(error).splitlines()[0]
    if importlib.util.find_spec(plugin[1]):
      raise ValueError(f"target is '{target}', which its compiler does not know ({reason:.200}); expected a slice such "
                       'as v5e:4x4') from error
    raise ModuleNotFoundError(f'compilation for {target} needs {plugin[0]}: {reason:.200}') from error
  return list(topology.devices)


def mesh(target: str, shape: tuple[int, ...] = (1,), axis_names: tuple[str, ...] = ('x',)) -> jax.sharding.Mesh:
  """A mesh of absent devices: of the first of a TPU slice's chips, or of that many GPUs, of one host if none are named.

  Raises:
    ValueError: no such target, or one with fewer devices.
    ModuleNotFoundError: the plugin that compiles for it is not installed.
  """
  count = int(np.prod(shape))
  found = devices(f'{target}:{count}' if isinstance(describe(target), Gpu) and ':' not in target else target)
  if len(found) < count:
    raise ValueError(f'target {target} has {len(found)} devices; expected {count} for mesh {shape}')
  return jax.sharding.Mesh(np.asarray(found[:count]).reshape(shape), axis_names)


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
