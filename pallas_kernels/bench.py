"""Speed of every implementation on the device that is here, next to the vendor's: python -m pallas_kernels.bench."""

import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from foundation import files
from foundation.command import Command, Flag, run
from foundation.errors import ConfigError
from pallas_kernels import attention, matmul
from pallas_kernels.runtime import device, targets, timing, tune

WRONG = 0.05  # a larger error, relative to the largest entry, is that of no dtype's rounding
HELP = """
A row: seconds, TFLOP/s, per cent of the vendor's library in the same run (cuBLAS by XLA; cuDNN where it is there, else
XLA's own attention), the roofline's floor in seconds where the device is known, the memory that it needs beside inputs
and outputs, the largest difference from XLA (of attention: in blocks), relative to the largest entry. Backward counts
2.5 times the forward FLOPs, a causal mask half of them.

Examples:
  python -m pallas_kernels.bench
  python -m pallas_kernels.bench --only=attention --json=bench.json
  python -m pallas_kernels.bench --tune --only=attention --length=1024 --heads=12 --width=64   # of your model
  python -m pallas_kernels.bench --tune   # first finds the best tiles of Triton and Mosaic GPU for these shapes

--tune also remembers the fastest implementation of each shape (of attention: forward and backward together), which
calls of that shape on this device take from then on where they name none.
"""


def roofline_of(kind: str) -> targets.Gpu | None:
  return next((g for name, g in targets.GPUS.items() if name in kind.lower()), None)


def normal(shape, dtype, seed):
  if jnp.dtype(dtype) == jnp.int8:
    return jax.random.randint(jax.random.key(seed), shape, -127, 128, jnp.int8)
  return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def candidates(operation: str, implementation: str) -> list:
  """Tiles worth a look; `unspilled` says which are worth timing."""
  if operation == 'matmul' and implementation == 'triton':
    from pallas_kernels.matmul.triton import Config
    return [Config(m, n, k, w, s) for m, n, k, w in ((128, 256, 64, 8), (128, 128, 64, 8), (256, 128, 64, 8),
                                                     (128, 128, 128, 8), (64, 256, 64, 4)) for s in (3, 4)]
  if operation == 'matmul' and implementation == 'mosaic_gpu':
    from pallas_kernels.matmul.mosaic_gpu import Config as Hopper
    return [Hopper(m, n, 64, s, w) for m, n, s in ((128, 128, 4), (64, 256, 4), (128, 128, 3)) for w in (1, 8, 16)]
  if operation == 'attention' and implementation == 'triton':
    from pallas_kernels.attention.triton import Config as AttentionConfig
    return [AttentionConfig(128, k, w, s, backward_warps=8) for k in (64, 128) for w in (4, 8) for s in (2, 3)]
  if operation == 'attention' and implementation == 'mosaic_gpu':
    from pallas_kernels.attention.mosaic_gpu import Config as AttentionHopper
    return [AttentionHopper(64, k, s) for k in (64, 128) for s in (2, 3, 4)]
  return []


def unspilled(f, arguments, configs: list) -> list:
  """Those that compile for this device without spills; all where the compiler's report cannot be had."""
  target = next((name for name in targets.GPUS if name in device.kind().lower()), None)
  try:
    return tune.prune(f, arguments, configs, target) if target else configs
  except ModuleNotFoundError:
    return configs


def matmul_rows(on_cpu: bool):
  """(name, function per implementation, inputs, FLOPs, bytes, reference)."""
  sizes = (512,) if on_cpu else (1024, 2048, 4096, 8192)
  dtypes = ('float32', 'bfloat16') if on_cpu else ('bfloat16', 'float16', 'float8_e4m3fn', 'int8', 'tf32')
  for dtype in dtypes:
    for n in sizes:
      kind = 'float32' if dtype == 'tf32' else dtype
      options = {'precision': 'tf32'} if dtype == 'tf32' else {}
      pairs = [(normal((n, n), kind, 2 * i), normal((n, n), kind, 2 * i + 1)) for i in range(
          timing.copies([jax.ShapeDtypeStruct((n, n), kind)] * 2))]
      def product(implementation, config=None, options=options):
        return lambda a, b: matmul.matmul(a, b, implementation=implementation, config=config, **options)
      item = jnp.dtype(kind).itemsize
      yield f'matmul {dtype} {n}', product, pairs, 2 * n**3, 2 * n * n * item + n * n * max(item, 2), tune.key(
          'matmul', '{}', dtype, n, n, n)
  n = 1024 if on_cpu else 8192
  mask = np.random.default_rng(0).random((n // 128, n // 128)) < 0.1
  pairs = [(normal((n, n), 'bfloat16', 0), normal((n, n), 'bfloat16', 1))]
  yield (f'matmul bfloat16 {n}, 90 % zero blocks',
         lambda implementation, config=None: lambda a, b: matmul.matmul(
             a, b, block_mask=mask, implementation=implementation, config=config),
         pairs, 2 * n**3 * float(mask.mean()), 3 * n * n * 2, '')


def attention_rows(f, on_cpu: bool):
  """The same for attention of the flags f; causal."""
  for n in (f.length,) if f.length else (8192,) if on_cpu else (4096, 8192, 16384):
    for width in (f.width,) if f.width else (64,) if on_cpu else (64, 128):
      B, H, dtype = (1, 2, 'float32') if on_cpu else (max(1, 16384 // n), 2048 // width, 'bfloat16')
      H = f.heads or H
      G = f.kv_heads or H
      if H % G:
        raise ConfigError(f'--kv_heads is {G}; expected a divisor of the {H} query heads')
      inputs = [tuple(normal((B, n, heads, width), dtype, 3 * i + j) for j, heads in enumerate((H, G, G)))
                for i in range(2)]
      flops, size = 2 * B * H * n * n * width, 2 * B * n * (H + G) * width * jnp.dtype(dtype).itemsize
      def forward(implementation, config=None):
        return lambda q, k, v: attention.dot_product_attention(
            q, k, v, is_causal=True, implementation=implementation, config=config)
      def both(implementation, config=None, forward=forward):
        loss = lambda *x: forward(implementation, config)(*x).astype(jnp.float32).sum()
        return lambda *x: jax.grad(loss, (0, 1, 2))(*x)
      key = tune.key('attention', '{}', dtype, n, n, H, G, width)
      yield f'attention forward {dtype} {n} x {width}', forward, inputs, flops, size, key
      yield f'attention forward and backward {dtype} {n} x {width}', both, inputs, 3.5 * flops, 2.5 * size, key


def error_of(f, truth, inputs) -> float:
  """Largest difference, relative to the largest entry of the truth."""
  def widest(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
  return max(widest(a, b) for a, b in zip(jax.tree.leaves(jax.jit(f)(*inputs)), jax.tree.leaves(truth)))


def measure(name, make, inputs, flops, size, key, implementations, roof, tuned):
  """The rows of one case."""
  operation = name.split()[0]
  truth = jax.jit(make({'matmul': 'xla', 'attention': 'xla_chunked'}[operation]))(*inputs[0])
  rows = []
  for implementation in implementations:
    f, row = make(implementation), {'case': name, 'implementation': implementation}
    try:
      if tuned and key and candidates(operation, implementation):
        tune.tune(key.format(implementation), lambda c, i=implementation: make(i, c), inputs,
                  unspilled(lambda c, i=implementation: make(i, c), inputs[0], candidates(operation, implementation)))
      memory = jax.jit(f).lower(*inputs[0]).compile().memory_analysis()
      seconds = timing.seconds(f, inputs)
      row |= {'scratch_bytes': memory.temp_size_in_bytes} if memory else {}
      row |= {'seconds': seconds, 'tflops': flops / seconds / 1e12, 'gbytes': size / seconds / 1e9,
              'error': error_of(f, truth, inputs[0])}
    except Exception as error:  # what one cannot do is a line of the table, not the end of the run
      row['why'] = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
    if roof is not None:
      row['floor_seconds'] = max(flops / roof.flops, size / roof.bandwidth)
    rows.append(row)
  timed = {r['implementation']: r['seconds'] for r in rows if r.get('error', np.inf) < WRONG}
  base = next((i for i in ('cudnn', 'xla') if i in timed), None)
  for row in rows:
    if base and 'seconds' in row:
      row['percent_of_' + base] = 100 * timed[base] / row['seconds']
  if tuned and key and timed:
    tune.record(key.format('fastest'), {'implementation': min(timed, key=timed.get), 'seconds': timed})
  return rows


def line_of(row) -> str:
  if 'why' in row:
    return f"  {row['implementation']:12s} {row['why']}"
  share = next((f'{v:6.0f} % of {k[11:]}' for k, v in row.items() if k.startswith('percent_of_')), '')
  floor = f"  floor {row['floor_seconds'] * 1e3:.3f} ms" if 'floor_seconds' in row else ''
  scratch = f"  scratch {row['scratch_bytes'] / 1e6:.1f} MB" if 'scratch_bytes' in row else ''
  return (f"  {row['implementation']:12s} {row['seconds'] * 1e3:10.3f} ms {row['tflops']:9.3f} TFLOP/s "
          f"{row['gbytes']:8.1f} GB/s {share}{floor}{scratch}  error {row['error']:.1e}")


def bench(flags) -> None:
  """Prints a row an implementation of every case, and writes them to --json."""
  on_cpu = device.platform() == 'cpu'
  roof = roofline_of(device.kind())
  print(f'{device.kind()}, jax {jax.__version__}', flush=True)
  # Interpreters say nothing about speed, so a CPU runs XLA alone.
  here = {'cpu': ('xla', 'xla_chunked'), 'tpu': ('xla', 'xla_chunked', 'mosaic_tpu'),
          'gpu': ('cudnn', 'xla', 'xla_chunked', 'triton', 'mosaic_gpu', 'pallas_triton')}[device.platform()]
  cases = []
  if flags.only != 'attention':
    cases += [(c, [i for i in here if i in matmul.IMPLEMENTATIONS]) for c in matmul_rows(on_cpu)]
  if flags.only != 'matmul':
    cases += [(c, [i for i in here if i in attention.IMPLEMENTATIONS]) for c in attention_rows(flags, on_cpu)]
  rows, start = [], time.monotonic()
  for number, (case, implementations) in enumerate(cases):
    spent = time.monotonic() - start
    left = f', about {spent / number * (len(cases) - number):.0f} s left' if number else ''
    print(f'{case[0]} ({number + 1} of {len(cases)}{left})', flush=True)
    measured = measure(*case, implementations, roof, flags.tune)  # type: ignore[call-arg]  # a case has six parts
    print('\n'.join(map(line_of, measured)), flush=True)
    rows += measured
    if flags.json:
      table = {'device': device.kind(), 'jax': jax.__version__, 'rows': rows}
      files.write_atomically(pathlib.Path(flags.json), json.dumps(table, indent=1) + '\n')


COMMAND = Command('', bench, 'times matrix products and attention, every implementation that can run here', HELP, (
    Flag('only', str, '', 'one operation, both if empty', ('matmul', 'attention')),
    Flag('json', str, '', 'file that the rows are written to, with device and versions'),
    Flag('tune', bool, False, 'times the candidate tiles first; remembers the fastest'),
    Flag('length', int, 0, 'attention: one length in place of the list', least=0),
    Flag('width', int, 0, 'attention: one width of a head in place of the list', least=0),
    Flag('heads', int, 0, 'attention: query heads; 0: 2048 / width, on a CPU 2', least=0),
    Flag('kv_heads', int, 0, 'attention: key heads; 0: as many as heads', least=0)))


if __name__ == '__main__':
  sys.exit(run('python -m pallas_kernels.bench', '', [COMMAND]))
