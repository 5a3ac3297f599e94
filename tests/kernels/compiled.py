"""Every shipped configuration, compiled for hardware that is not here, and what is expected of its machine code.

`python -m tests.kernels.compiled` compiles them all and writes tests/golden/kernels.json, whose diff shows what another
version of jax, triton or the plugins changes. Needs the plugins (make test-compile) and minutes.
"""

import json
import os
import pathlib
import sys

os.environ['TRITON_INTERPRET'] = '0'  # these are compiled
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # several processes compile; none runs anything

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from pallas_kernels.attention import dot_product_attention  # noqa: E402
from pallas_kernels.matmul import matmul  # noqa: E402
from pallas_kernels.runtime import report  # noqa: E402

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'kernels.json'
TENSOR_CORE = {'h100': {'float32': None, 'tf32': 'HGMMA', 'bfloat16': 'HGMMA', 'float16': 'HGMMA',
                        'float8_e4m3fn': 'QGMMA', 'float8_e5m2': 'QGMMA', 'int8': 'IGMMA'},
               'a100': {'float32': None, 'tf32': 'HMMA', 'bfloat16': 'HMMA', 'float16': 'HMMA', 'int8': 'IMMA'}}


def shaped(*shape, dtype='bfloat16'):
  return jax.ShapeDtypeStruct(shape, dtype)


def gemm(name, implementation='triton', size=4096, arrays=(), **arguments):
  """`arrays`: names of those that go into the epilogue."""
  dtype = 'float32' if name == 'tf32' else name
  x = shaped(size, size, dtype=dtype)
  def f(a, b, given):
    return matmul(a, b, implementation=implementation, precision='tf32' if name == 'tf32' else 'float32', **given,
                  **arguments)
  return f, (x, x, {n: shaped(size, size) if n == 'c' else shaped(size, dtype='float32') for n in arrays})


def attention(dtype='bfloat16', width=128, implementation='triton', bias=False, **arguments):
  """Forward and backward."""
  q, k = shaped(1, 2048, 8, width, dtype=dtype), shaped(1, 2048, 2, width, dtype=dtype)
  arrays = (q, k, k, *([shaped(1, 8, 2048, 2048, dtype='float32')] if bias else []))
  def out(*x):
    return dot_product_attention(*x, implementation=implementation, **arguments).astype(jnp.float32).sum()
  return jax.grad(out, tuple(range(len(arrays)))), arrays


def gpu_cases():
  """{(target, name): (function, arguments, tensor-core instructions of which each kernel must have one, or None)}."""
  out = {}
  for target, dtypes in TENSOR_CORE.items():
    for dtype, instruction in dtypes.items():
      out[target, f'matmul triton {dtype}'] = *gemm(dtype), instruction
    core = dtypes['bfloat16']
    for width in (64, 128):
      out[target, f'attention triton bfloat16 {width} causal'] = *attention(width=width, is_causal=True), core
    # its tiles are too small for some warp groups
    out[target, 'attention triton bfloat16 256 causal'] = *attention(width=256, is_causal=True), (core, 'HMMA')
    out[target, 'attention triton float32 64 causal'] = *attention('float32', 64, is_causal=True), 'HMMA'
  stamps = jnp.arange(2048)
  out['h100', 'attention triton bfloat16 128 stamps'] = *attention(stamps=stamps, logits_soft_cap=30.0), 'HGMMA'
  out['h100', 'attention triton bfloat16 128 entmax'] = *attention(width=64, is_causal=True, alpha=1.5), 'HGMMA'
  for dtype, instruction in (('bfloat16', 'HGMMA'), ('float16', 'HGMMA'), ('tf32', 'HGMMA'),
                             ('float8_e4m3fn', 'QGMMA'), ('float8_e5m2', 'QGMMA')):
    out['h100', f'matmul mosaic_gpu {dtype}'] = *gemm(dtype, 'mosaic_gpu'), instruction
  out['h100', 'matmul mosaic_gpu bfloat16 everything'] = *gemm(
      'bfloat16', 'mosaic_gpu', arrays=('c', 'bias', 'a_scale', 'b_scale'), beta=0.5, activation='gelu'), 'HGMMA'
  out['h100', 'matmul mosaic_gpu float8_e4m3fn scales'] = *gemm(
      'float8_e4m3fn', 'mosaic_gpu', arrays=('a_scale', 'b_scale', 'bias')), 'QGMMA'
  for width in (64, 128):
    out['h100', f'attention mosaic_gpu bfloat16 {width} causal'] = *attention(
        width=width, implementation='mosaic_gpu', is_causal=True), 'HGMMA'
  out['h100', 'attention mosaic_gpu bfloat16 128 full'] = *attention(implementation='mosaic_gpu'), 'HGMMA'
  out['h100', 'attention mosaic_gpu bfloat16 128 stamps'] = *attention(
      implementation='mosaic_gpu', stamps=stamps, segment_ids=jnp.zeros(2048, jnp.int32)), 'HGMMA'
  return out


def tpu_cases():
  """{(target, name): (function, arguments)}."""
  out = {}
  for target in ('v5e', 'v6e'):
    for dtype in ('float32', 'bfloat16', 'int8', 'float8_e4m3fn', 'float8_e5m2'):
      out[target, f'matmul mosaic_tpu {dtype}'] = gemm(dtype, 'mosaic_tpu')
    for dtype in ('bfloat16', 'float32'):
      out[target, f'attention mosaic_tpu {dtype} 128 causal'] = attention(dtype, 128, 'mosaic_tpu', is_causal=True)
    out[target, 'attention mosaic_tpu bfloat16 128 bias'] = attention(
        implementation='mosaic_tpu', is_causal=True, bias=True)
    out[target, 'attention mosaic_tpu bfloat16 64 stamps'] = attention(
        width=64, implementation='mosaic_tpu', stamps=jnp.arange(2048), logits_soft_cap=30.0)
  return out


def gpu_facts(target, name):
  f, arguments, _ = gpu_cases()[target, name]
  found = report.compile_report(f, *arguments, target=target)
  return {f'{k.name} {n}': {'registers': k.registers, 'spill_bytes': k.spill_bytes, 'shared_memory': k.shared_memory,
                            'instructions': k.instructions} for n, k in enumerate(found.kernels)}


def tpu_facts(target, name):
  f, arguments = tpu_cases()[target, name]
  found = report.compile_report(f, *arguments, target=target)
  return {'temporary': found.temporary, 'kernels': found.custom_calls.get('tpu_custom_call', 0)}


def versions():
  import importlib.metadata as metadata
  names = ('jax', 'jaxlib', 'triton', 'jax-triton', 'jax-cuda13-plugin', 'libtpu')
  found = {}
  for name in names:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      pass
  return found


def main():
  golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
  golden['versions'] = versions()
  for facts, cases in ((gpu_facts, gpu_cases()), (tpu_facts, tpu_cases())):
    for target, name in cases:
      if len(sys.argv) > 1 and not all(word in f'{target} {name}' for word in sys.argv[1:]):
        continue
      try:
        golden.setdefault(target, {})[name] = facts(target, name)
      except Exception as error:
        print(f'{target} {name}: {type(error).__name__}: {str(error)[:600]}', flush=True)
        continue
      print(target, name, golden[target][name], flush=True)
      GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + '\n')


if __name__ == '__main__':
  main()
