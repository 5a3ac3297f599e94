"""A Triton kernel as a JAX call: compiled on a GPU by jax-triton, run by Triton's interpreter on a CPU.

Importing this module decides for the whole process: Triton reads TRITON_INTERPRET when it is imported, and its kernels
are made for one of the two. Import it before `triton`.
"""

import contextlib
import os
from collections.abc import Callable, Sequence

import jax
import ml_dtypes
import numpy as np

from pallas_kernels.runtime import device

if device.platform() == 'cpu':
  os.environ.setdefault('TRITON_INTERPRET', '1')
os.environ.setdefault('TRITON_DEFAULT_FP_FUSION', '1')

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
NAMES = {'float32': tl.float32, 'bfloat16': tl.bfloat16, 'float16': tl.float16, 'float8_e4m3fn': tl.float8e4nv,
         'float8_e5m2': tl.float8e5, 'int8': tl.int8, 'int32': tl.int32, 'bool': tl.int1}
COMPUTE_CAPABILITY = {'A100': 80, 'H100': 90, 'H200': 90}


def call(
    kernel: Callable, *arrays: jax.Array | np.ndarray, grid: tuple[int, ...], out: Sequence[jax.ShapeDtypeStruct],
    warps: int = 4, stages: int = 2, **constants,
) -> list[jax.Array]:
  """Runs `kernel(*array pointers, *output pointers, **constants)` over a grid.

  Args:
    kernel: of triton.jit.
    arrays: contiguous in their logical order, as XLA hands them over.
    grid: programs along x, y and z.
    out: shapes and dtypes of the outputs; every element has to be written.
    warps, stages: of a program; the interpreter has neither.
    constants: the kernel's tl.constexpr arguments.
  """
  if INTERPRETED:
    if device.platform() == 'gpu':
      raise RuntimeError('this process interprets Triton kernels on the CPU (TRITON_INTERPRET=1); expected a process '
                         'of its own to compile them')
    devices = jax.sharding.get_abstract_mesh().size
    if devices > 1:  # their threads would wait for each other inside the callback for ever
      raise NotImplementedError(f'Triton kernels are interpreted on one simulated device; the mesh has {devices}, '
                                'nearest is 1 (training.devices=1)')
    return jax.pure_callback(lambda *x: interpret(kernel, grid, x, out, constants), list(out), *arrays,
                             vmap_method='sequential')
  import jax_triton
  name = device.kind()
  capability = next((c for part, c in COMPUTE_CAPABILITY.items() if part in name), None)
  return jax_triton.triton_call(*arrays, kernel=kernel, grid=grid, out_shape=list(out), num_warps=warps,
                                num_stages=stages, compute_capability=capability, **constants)


def interpret(kernel, grid, arrays, out, constants) -> list[np.ndarray]:
  """The kernel's outputs by Triton's interpreter. What a program leaves unwritten is NaN (or the least integer)."""
  outputs = [np.full(o.shape, np.iinfo(o.dtype).min if np.issubdtype(o.dtype, np.integer) else np.nan, o.dtype)
             for o in out]
  with _factors_as_on_a_gpu():
    kernel[grid](*[Tensor(np.ascontiguousarray(x)) for x in arrays], *[Tensor(x) for x in outputs], **constants)
  return outputs


class Tensor:
  """A NumPy array with the part of torch.Tensor's interface that Triton's interpreter uses."""

  def __init__(self, array: np.ndarray):
    self.array, self.dtype, self.device = array, NAMES[array.dtype.name], 'cpu'
    self.shape = array.shape

  def data_ptr(self):
    return self.array.ctypes.data

  def untyped_storage(self):
    return self

  def cpu(self):
    return self

  def new_empty(self, *_, **__):
    return self

  def set_(self, *_):
    return self

  def copy_(self, _):  # host and device are the same memory
    return self

  def storage_offset(self):
    return 0

  def size(self):
    return self.shape

  def stride(self):
    return tuple(s // self.array.itemsize for s in self.array.strides)


@contextlib.contextmanager
def _factors_as_on_a_gpu():
  """tl.dot with the factors that a tensor core sees.

  Triton's interpreter holds bfloat16 as uint16 and multiplies these integers (3.6.0 and 3.9.0), and takes float32 as
  it is where tf32 is asked for.
  """
  from triton.runtime import interpreter
  builder = interpreter.InterpreterBuilder
  original = builder.create_dot
  def factor(x, precision):
    data, dtype = x.data, x.dtype.scalar
    if dtype == tl.bfloat16:
      return interpreter.TensorHandle(data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)
    if dtype == tl.float32 and str(precision).lower().endswith('tf32'):
      bits = data.view(np.uint32)
      even = (bits >> 13) & 1  # to 10 bits of mantissa, ties to even
      return interpreter.TensorHandle(((bits + 0xfff + even) & 0xffffe000).view(np.float32), tl.float32)
    return x
  def create_dot(self, a, b, d, precision, *rest):
    return original(self, factor(a, precision), factor(b, precision), d, precision, *rest)
  builder.create_dot = create_dot
  try:
    yield
  finally:
    builder.create_dot = original
