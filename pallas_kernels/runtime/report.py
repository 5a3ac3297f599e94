"""What the compiler made of a function: registers, spills, shared memory, tensor-core instructions; TPU memory.

`compile_report(f, *shapes, target='h100')` compiles and reports. PTX is assembled by ptxas and taken apart by
cuobjdump, which come with triton (or a CUDA toolkit on PATH).
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from pallas_kernels.runtime import targets

# SASS mnemonics: tensor cores of Hopper (warp-group), of Ampere, copies to shared memory, and spills.
INSTRUCTIONS = ('HGMMA', 'QGMMA', 'IGMMA', 'HMMA', 'IMMA', 'QMMA', 'FFMA', 'LDGSTS', 'UTMALDG', 'UTMASTG', 'LDL', 'STL')


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Facts of one GPU kernel. Bytes; instructions are those of INSTRUCTIONS that occur, with their number.

  `shared_memory` is None for Mosaic GPU, which refuses to lower what asks for too much; `registers` is what a thread
  has at launch, from which the warp groups of a Hopper kernel then take and give.
  """
  name: str
  registers: int
  spill_bytes: int
  shared_memory: int | None
  instructions: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Report:
  """Facts of a compiled function. `temporary` in bytes; `kernels` on a GPU; `custom_calls` counts them by target."""
  target: str
  temporary: int
  kernels: tuple[Kernel, ...]
  custom_calls: dict[str, int]
  hlo: str


def compile_report(f: Callable, *arguments: Any, target: str, **options: Any) -> Report:
  """Compiles jax.jit(f) for one absent device.

  Raises:
    ModuleNotFoundError: a plugin or ptxas is missing.
    Exception: whatever the compiler refuses, e.g. too much shared memory.
  """
  with tempfile.TemporaryDirectory() as folder:
    saved = {k: os.environ.get(k) for k in ('MOSAIC_GPU_DUMP_TO', 'MOSAIC_GPU_DUMP_PTX')}
    os.environ |= {'MOSAIC_GPU_DUMP_TO': folder, 'MOSAIC_GPU_DUMP_PTX': '1'}
    try:
      lowered = targets.lower(f, *arguments, target=target, **options)
      compiled = lowered.compile()
    finally:
      for key, value in saved.items():
        if value is None:
          del os.environ[key]
        else:
          os.environ[key] = value
    hlo: Any = compiled.as_text()  # a CPU, a GPU and a TPU have one
    calls: dict[str, int] = {}
    for name in re.findall(r'custom_call_target="([^"]+)"', hlo):
      calls[name] = calls.get(name, 0) + 1
    kernels = []
    device = targets.describe(target)
    if isinstance(device, targets.Gpu):
      parts: list[tuple[str, int | None]] = [(ptx, shared) for ptx, shared in triton_kernels(lowered)]
      for path in sorted(pathlib.Path(folder).rglob('*.ptx')):
        parts.append((path.read_text(), None))
      kernels = [k for ptx, shared in parts for k in assemble(ptx, device.capability, shared)]
      kernels.sort(key=lambda k: k.name)
    memory = compiled.memory_analysis()
    return Report(target, memory.temp_size_in_bytes if memory else 0, tuple(kernels), calls, hlo)


def tool(name: str) -> str:
  """The path of ptxas or cuobjdump: of triton, whose ptxas reads the PTX that triton writes, else of PATH."""
  try:
    import importlib.util
    spec: Any = importlib.util.find_spec('triton')  # with an origin, being a package
    folder = pathlib.Path(spec.origin).parent / 'backends/nvidia/bin' if spec else pathlib.Path()
  except ImportError:
    folder = pathlib.Path()
  for candidate in (folder / f'{name}-blackwell', folder / name):  # triton calls its newest one so
    if spec and candidate.exists():
      return str(candidate)
  found = shutil.which(name)
  if found is None:
    raise ModuleNotFoundError(f'{name} is not there; expected it in the package triton or on PATH')
  return found


def assemble(ptx: str, capability: tuple[int, int], shared: int | None) -> list[Kernel]:
  """The kernels of a PTX file as ptxas makes them. `shared`: dynamic shared memory, where it is known."""
  architecture = f'sm_{capability[0]}{capability[1]}' + ('a' if capability == (9, 0) else '')
  with tempfile.TemporaryDirectory() as folder:
    source, binary = pathlib.Path(folder, 'x.ptx'), pathlib.Path(folder, 'x.cubin')
    source.write_text(ptx.rstrip('\0'))
    log = subprocess.run([tool('ptxas'), '-v', f'-arch={architecture}', str(source), '-o', str(binary)],
                         capture_output=True, text=True, check=True)
    sass = subprocess.run([tool('cuobjdump'), '-sass', str(binary)], capture_output=True, text=True, check=True).stdout
  out = []
  for name, body in re.findall(r"Function properties for (\S+)\n(.*?registers.*?)(?=\n|$)", log.stderr, re.S):
    spilled = sum(map(int, re.findall(r'(\d+) bytes spill', body)))
    code = re.search(rf'Function : {re.escape(name)}\n(.*?)(?=\n\s*Function : |\Z)', sass, re.S)
    counts = {i: len(re.findall(rf'\b{i}\b', code[1] if code else sass)) for i in INSTRUCTIONS}
    out.append(Kernel(
        name, int(re.search(r'Used (\d+) registers', body)[1]),  # type: ignore[index]  # ptxas -v says so of all
        spilled, shared,
        {k: n for k, n in counts.items() if n}))
  return out


def triton_kernels(lowered: Any) -> Iterator[tuple[str, int]]:
  """(PTX, bytes of shared memory) of every Triton kernel in a lowered program."""
  def walk(operation):
    if 'backend_config' in operation.attributes and 'triton_kernel_call' in str(
        operation.attributes['call_target_name']):
      yield operation.attributes['backend_config'].value_bytes
    for region in operation.regions:
      for block in region:
        for inner in block:
          yield from walk(inner.operation)
  for data in walk(lowered.compiler_ir('stablehlo').operation):
    # jaxlib's triton.proto: AnyKernelCall.kernel_call (1) . kernel (1) . {shared_mem_bytes (3), ptx (4)}
    kernel = dict(_fields(dict(_fields(dict(_fields(zlib.decompress(data)))[1]))[1]))
    yield kernel[4].decode(), kernel.get(3, 0)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """(field number, value) of a protocol buffer in its wire format."""
  at = 0
  def number():
    nonlocal at
    value = shift = 0
    while True:
      byte = data[at]
      at += 1
      value |= (byte & 0x7f) << shift
      shift += 7
      if byte < 0x80:
        return value
  while at < len(data):
    key = number()
    if key & 7 == 0:
      yield key >> 3, number()
    else:
      size = {1: 8, 5: 4}.get(key & 7) or number()
      yield key >> 3, data[at:at + size]
      at += size
