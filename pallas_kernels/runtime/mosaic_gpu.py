"""What the Mosaic GPU kernels share: layouts in shared memory, activations, where they can run, the interpreter."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.runtime import device

LOG2E = 1.4426950408889634


def tiled(columns: int, dtype: Any) -> tuple:
  """The layout that TMA writes and wgmma reads: rows of `columns` swizzled over the banks, in tiles of eight."""
  size = jnp.dtype(dtype).itemsize
  swizzle = next(s for s in (128, 64, 32) if columns * size % s == 0)
  tiles = 8, swizzle // size
  return plgpu.TilingTransform(tiles), plgpu.SwizzleTransform(swizzle)  # type: ignore[abstract]  # not to jax 0.12


def load(ref: Any, layout: Any, optimized: bool = True) -> jax.Array:
  """All of a reference, spread over a warp group's registers. Until jax 0.11 the index was an argument of its own.

  `optimized`: refuse to compile where shared memory's banks would conflict; False for global memory.
  """
  index = ((),) if 'idx' in inspect.signature(plgpu.load).parameters else ()
  return plgpu.load(ref, *index, layout=layout, optimized=optimized)


def _sigmoid(x):
  return 1 / (1 + jnp.exp2(-LOG2E * x))


ACTIVATIONS = {
    'relu': lambda x: jnp.maximum(x, 0.0),
    'silu': lambda x: x * _sigmoid(x),
    # x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    'gelu': lambda x: x * _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)),
}


def check(operation: str) -> None:
  """Raises NotImplementedError unless the device is a Hopper GPU, or the interpreter is on."""
  if device.platform() == 'cpu' and not interpreted():
    raise NotImplementedError(f'{operation} implementation mosaic_gpu runs on a CPU only inside '
                              'pallas_kernels.runtime.mosaic_gpu.interpreter() (jax 0.11 and later)')
  if not any(name in device.kind() for name in ('H100', 'H200', 'H800', 'GH200')):
    raise NotImplementedError(f'{operation} implementation mosaic_gpu needs a Hopper GPU; this is {device.kind()}')


_INTERPRETED = False


def interpreted() -> bool:
  return _INTERPRETED


@contextlib.contextmanager
def interpreter(processors: int = 1, detect_races: bool = True) -> Iterator[None]:
  """Inside, Mosaic GPU kernels are run on the CPU, as on a GPU of that many processors.

  Needs jax 0.11 and, before jax is imported, NPROC=16 in the environment: the threads of a kernel wait for each other,
  and the CPU client has NPROC threads.
  """
  global _INTERPRETED
  from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams, force_gpu_interpret_mode
  try:
    described = jax.sharding.AbstractDevice(device_kind='NVIDIA H100 80GB HBM3', platform='gpu', num_cores=processors)
  except TypeError:
    described = jax.sharding.AbstractDevice(  # type: ignore[call-arg]  # of an older jax
        device_kind='NVIDIA H100 80GB HBM3', num_cores=processors)
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=described)
  _INTERPRETED = True
  try:
    with jax.sharding.use_abstract_mesh(mesh), force_gpu_interpret_mode(InterpretGPUParams(detect_races=detect_races)):
      yield
  finally:
    _INTERPRETED = False
