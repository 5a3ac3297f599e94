"""How much a blocked kernel reads and writes, from the command line: python -m pallas_kernels.traffic --help."""

import math
import os
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing is run

from foundation.command import Command, Flag, run  # noqa: E402
from foundation.errors import ConfigError
from pallas_kernels.runtime import targets  # noqa: E402
from pallas_kernels.traffic import count as traffic

HELP = """
Every tile of the result reads its rows of A and its columns of B once: taller and wider tiles read less.

Examples:
  python -m pallas_kernels.traffic --op=matmul --m=3 --n=3 --k=3 --block=3
  python -m pallas_kernels.traffic --op=matmul --m=4096 --n=4096 --k=4096 --block=128 --dtype=bfloat16 --device=h100
  python -m pallas_kernels.traffic --op=attention --length=4096 --heads=32 --kv_heads=8 --width=128 --block=128 --causal
"""
SIZES = {'float32': 4, 'bfloat16': 2, 'float16': 2, 'float8': 1, 'int8': 1}


def rows(f) -> list[tuple[str, traffic.Traffic, float]]:
  """(what the tiles are, their traffic, FLOPs) of the kernel that the flags f describe."""
  item = SIZES[f.dtype]
  if f.op == 'matmul':
    flops = 2 * f.m * f.n * f.k
    tiles = dict.fromkeys([(1, 1), (f.block, 1), (f.block, f.block)])
    return [(f'{m} x {n}', traffic.matmul(f.m, f.n, f.k, m, n, item), flops) for m, n in tiles]
  from pallas_kernels.attention.mask import Mask
  groups = f.kv_heads or f.heads
  if f.heads % groups:
    raise ConfigError(f'--kv_heads is {groups}; expected a divisor of --heads {f.heads}')
  mask = Mask(f.length, f.length, is_causal=f.causal)
  pairs = f.length * (f.length + 1) // 2 if f.causal else f.length**2
  flops = 4 * f.batch * f.heads * pairs * f.width
  sides = dict.fromkeys([min(b, f.length) for b in (f.block, 2 * f.block, 4 * f.block)])
  return [(f'{b} x {b}', traffic.attention((f.batch, f.length, f.heads, f.width), f.length, groups, mask, b, b, item),
           flops) for b in sides]


def human(x: float) -> str:
  """Three digits and a prefix; whole numbers below a million as they are."""
  if x == int(x) and x < 1e6:
    return f'{int(x):,}'
  for size, prefix in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if x >= size:
      return f'{x / size:.3g} {prefix}'
  return f'{x:.3g} '


def roofline(points: list[tuple[str, float]], peak: float, bandwidth: float, width: int = 64, height: int = 12) -> str:
  """The roof in log-log with a letter at each kernel's FLOPs per byte."""
  ridge = peak / bandwidth
  low = min([ridge / 100, *(x / 2 for _, x in points)])
  high = max([ridge * 10, *(x * 2 for _, x in points)])
  def column(x):
    return round(math.log(x / low) / math.log(high / low) * (width - 1))
  bottom = low * bandwidth
  def line(value):
    return round(math.log(value / bottom) / math.log(peak / bottom) * (height - 1))
  grid = [[' '] * width for _ in range(height)]
  for c in range(width):
    x = low * (high / low) ** (c / (width - 1))
    grid[line(min(peak, max(bottom, x * bandwidth)))][c] = '.'
  for letter, x in points:
    grid[line(traffic.attainable(x, peak, bandwidth))][column(x)] = letter
  edge = [f'{human(peak)}FLOP/s'.rjust(14) if y == height - 1 else ' ' * 14 for y in range(height)]
  lines = [f'{edge[y]} |{"".join(grid[y]).rstrip()}' for y in reversed(range(height))]
  axis = f'{low:.2g}'.ljust(width // 2) + f'{high:.3g}'.rjust(width - width // 2)
  return '\n'.join([*lines, ' ' * 14 + ' +' + '-' * width, ' ' * 16 + axis + '  FLOP/byte'])


def show(flags) -> None:
  """Prints a row a tile, then the roofline."""
  table = rows(flags)
  device = targets.describe(flags.device)
  peak, bandwidth = device.flops, device.bandwidth
  head = ('', 'tile', 'reads', 'writes', 'bytes', 'least reads', 'least bytes', 'FLOP/byte', 'roofline FLOP/s')
  lines, points = [head], []
  for letter, (tile, t, flops) in zip('ABCDEF', table):
    points.append((letter, flops / t.bytes))
    lines.append((letter, tile, human(t.reads), human(t.writes), human(t.bytes), human(t.least_reads),
                  human(t.least_bytes), f'{flops / t.bytes:.3g}', human(traffic.attainable(flops / t.bytes, peak,
                                                                                         bandwidth))))
  widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
  for line in lines:
    print('  '.join(cell.rjust(w) for cell, w in zip(line, widths)))
  print(f'\n{flags.device}: {human(peak)}FLOP/s in bfloat16, {human(bandwidth)}byte/s, '
        f'ridge at {peak / bandwidth:.3g} FLOP/byte\n')
  print(roofline(points, peak, bandwidth))


def size(name: str, default: int, text: str, least: int = 1) -> Flag:
  """A flag of a whole number."""
  return Flag(name, int, default, text, least=least)


COMMAND = Command('', show, 'elements and bytes that a kernel moves to and from memory, and the roofline', HELP, (
    Flag('op', str, 'matmul', 'which kernel', ('matmul', 'attention')),
    size('m', 3, 'rows of A'), size('n', 3, 'columns of B'), size('k', 3, 'columns of A'),
    size('length', 4096, 'queries and keys'), size('heads', 1, 'query heads'),
    size('kv_heads', 0, 'key heads; 0: as many as heads', least=0), size('width', 128, 'width of a head'),
    size('batch', 1, 'rows'), size('block', 3, 'rows and columns of a tile'),
    Flag('causal', bool, False, 'attention: keys after the query are skipped'),
    Flag('dtype', str, 'float32', 'of the operands and the result', tuple(SIZES)),
    Flag('device', str, 'h100', 'whose roofline', tuple(targets.names()))))


if __name__ == '__main__':
  sys.exit(run('python -m pallas_kernels.traffic', '', [COMMAND]))
