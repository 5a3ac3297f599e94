"""What a matrix product reads and writes, and how fast this machine does it: the roofline, measured.

Example:
  python -m experiments.gemm --output=runs/gemm

Writes section.json, for experiments.report, and roofline.svg. The roofs are the fastest product and the fastest
update of a large array that were measured; each point is a product of two n x n matrices at the intensity of the least
possible traffic, and what fits into the caches may lie above the slope.
"""

import time

from absl import flags

from experiments.shared import launch
from foundation import outputs

OUTPUT = flags.DEFINE_string('output', None, 'folder of the results; files of an earlier measurement are replaced')
SIZES = flags.DEFINE_list('sizes', ['16', '32', '64', '128', '256', '512', '1024', '2048'], 'n of the products')
SECONDS = flags.DEFINE_float('seconds', 0.5, 'of measuring, for each size', lower_bound=0.01)

LECTURE = [(1, 1), (3, 1), (3, 3)]  # tiles of a 3 x 3 product: none, a column, the whole


def fastest(call, seconds: float) -> float:
  """Seconds of the fastest of the calls that fit into `seconds`, at least 3; the first, which compiles, is left out."""
  call()
  best, end, calls = float('inf'), time.perf_counter() + seconds, 0
  while calls < 3 or time.perf_counter() < end:
    start = time.perf_counter()
    call()
    best, calls = min(best, time.perf_counter() - start), calls + 1
  return best


def measure(sizes: list[int], seconds: float) -> tuple[list[dict[str, float]], float]:
  """(a row for each n: n, FLOPs, seconds, FLOP/s, FLOPs a byte; bytes a second of a copy), float32, all cores."""
  import jax
  import jax.numpy as jnp
  from pallas_kernels.traffic import count as traffic
  product = jax.jit(jnp.matmul)
  rows = []
  for n in sizes:
    a, b = jax.random.normal(jax.random.key(0), (2, n, n))
    took = fastest(lambda: product(a, b).block_until_ready(), seconds)
    flops = 2 * n**3
    rows.append({'n': n, 'flops': flops, 'seconds': took, 'flops_per_second': flops / took,
                 'flops_per_byte': flops / traffic.matmul(n, n, n, n, n).least_bytes})
  # Far beyond the caches, and in place, so that no fresh memory has to be found for each copy.
  state = [jnp.zeros(2**26, jnp.float32)]
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  def update():
    state[0] = step(state[0]).block_until_ready()
  return rows, 2 * state[0].nbytes / fastest(update, seconds)


def main() -> int:
  from framework import config as config_lib
  output = launch.workdir_path(launch.required(OUTPUT))
  for word in SIZES.value:
    if not word.isdecimal() or not 1 <= int(word) <= 2**15:
      raise config_lib.ConfigError(f"--sizes has '{word}'; expected whole numbers from 1 to {2**15}")
  outputs.check_folder('--output', output, ('section.json', 'roofline.svg'), mark='section.json')
  launch.start_jax(config_lib.Config(), devices=1)  # with all cores, as a user's own product would run

  import jax
  from experiments.reports import figures
  from foundation import files
  from pallas_kernels.traffic import count as traffic
  rows, bandwidth = measure(sorted({int(word) for word in SIZES.value}), SECONDS.value)
  peak = max(row['flops_per_second'] for row in rows)
  lecture = [[f'{m} x {n}', t.reads, t.writes, t.bytes, t.least_reads] for m, n in LECTURE
             for t in [traffic.matmul(3, 3, 3, m, n)]]
  table = [[row['n'], row['flops_per_byte'], row['flops_per_second'] / 1e9, row['seconds'] * 1e6,
            traffic.attainable(row['flops_per_byte'], peak, bandwidth) / 1e9] for row in rows]
  device = jax.devices()[0]
  best = max(rows, key=lambda row: row['flops_per_second'])
  sentence = (f"A 3 x 3 product that loads every operand when it needs it reads {lecture[0][1]} elements; with blocks "
              f'that are loaded once, {lecture[-1][1]}. This machine ({device.device_kind}) multiplies {best["n"]} x '
              f'{best["n"]} matrices at {peak / 1e9:,.0f} GFLOP/s and moves {bandwidth / 1e9:,.1f} GB/s: a product '
              f'needs {peak / bandwidth:,.0f} FLOPs a byte to be limited by arithmetic.')
  print(sentence, flush=True)
  output.mkdir(parents=True, exist_ok=True)
  figures.roofline(rows, peak, bandwidth, output / 'roofline.svg')
  files.write_sealed(output / 'section.json', {
      'title': 'GEMM', 'paragraphs': [sentence],
      'tables': [{'columns': ['tile of the 3 x 3 result', 'reads', 'writes', 'bytes', 'least reads'], 'rows': lecture},
                 {'columns': ['n', 'FLOPs a byte', 'GFLOP/s', 'microseconds', 'roofline GFLOP/s'], 'rows': table}],
      'figures': [{'file': 'roofline.svg', 'caption': 'The roofline of this machine: n x n products in float32. What '
                   'fits into the caches may lie above the slope.'}]})
  return 0


if __name__ == '__main__':
  launch.run(main)
