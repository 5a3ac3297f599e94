"""One config on more and more devices: from where on the network binds, and what a device then does."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from experiments.planning import compiled
from foundation.errors import ConfigError
from framework import config as config_lib

SLICE = 256  # chips of the largest slice of a v5e or v6e; more are several slices


def counts(text: str) -> list[int]:
  """The numbers of devices of '1..4096': doubled from the first to the last. Raises ConfigError."""
  first, dots, last = text.partition('..')
  if not (dots and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) <= 2**16):
    raise ConfigError(f"--chips is '{text}'; expected the fewest and the most devices, as 1..4096")
  found = [int(first)]
  while 2 * found[-1] <= int(last):
    found.append(2 * found[-1])
  return found


def named(kind: str, count: int, gpu: bool) -> tuple[str, int]:
  """(target, slices) of so many devices of a kind: hosts of 8 GPUs, or the squarest slice of a TPU."""
  if gpu:
    return (f'{kind}:{count}' if count <= 8 else f'{kind}:{count // 8}x8'), 1
  slices = max(1, count // SLICE)
  side = 1
  while side * side * 4 <= count // slices:
    side *= 2
  shape = [side, count // slices // side]
  return f"{kind}:{'x'.join(map(str, shape + [1] * (kind == 'v5p')))}", slices


def rows(config: config_lib.Config, kind: str, gpu: bool, numbers: Iterable[int], vocabulary: int,
         show: Callable[[int, int, str], None]) -> Iterator[dict[str, Any]]:
  """A row for each number of devices that the config divides over, its batch as it is: what is fixed is the run."""
  numbers = list(numbers)
  for place, count in enumerate(numbers):
    name, slices = named(kind, count, gpu)
    show(place, len(numbers), name)
    try:
      target = compiled.target_of(name, config.model.dtype, slices)
      plan = compiled.planned(config, target, vocabulary)
    except ConfigError as error:
      yield {'devices': count, 'target': name, 'why_not': str(error)}
      continue
    if plan.refused:
      yield {'devices': count, 'target': name, 'why_not': plan.refused}
      continue
    yield {'devices': count, 'target': name, 'compute': plan.bound.compute, 'memory': plan.bound.memory,
           'network': plan.bound.network, 'by': plan.bound.by, 'tokens_per_second': plan.tokens_per_second,
           'fits': plan.fits(target), 'peak_bytes': plan.memory.peak}


def described(table: list[dict[str, Any]]) -> list[str]:
  """What is printed of the rows, and where the network begins to bind."""
  lines = [f"{'devices':>8}  {'tokens/s':>12}  {'a device':>10}  {'bound by':<8}  memory"]
  for row in table:
    if 'why_not' in row:
      lines.append(f"{row['devices']:>8}  {row['why_not']}")
      continue
    lines.append(f"{row['devices']:>8}  {row['tokens_per_second']:>12,.0f}  "
                 f"{row['tokens_per_second'] / row['devices']:>10,.0f}  {row['by']:<8}  "
                 f"{row['peak_bytes'] / 2**30:.1f} GiB{'' if row['fits'] else ', does not fit'}")
  bound = [row['devices'] for row in table if row.get('by') == 'network']
  return [*lines, f'the network binds from {bound[0]} devices on' if bound else 'the network never binds']


def draw(table: list[dict[str, Any]], title: str) -> Any:
  """Tokens a second against devices, by what compute, memory and network alone would allow."""
  from foundation import figures
  able = [row for row in table if 'why_not' not in row]
  figure, axes = figures.axes(title, 'devices', 'tokens a second, at most', log='xy')
  x = [row['devices'] for row in able]
  work = [row['tokens_per_second'] * max(row['compute'], row['memory'], row['network']) for row in able]
  for name in ('compute', 'memory', 'network'):
    points = [(count, tokens / row[name]) for count, tokens, row in zip(x, work, able) if row[name] > 0]
    axes.plot(*zip(*points), '--', linewidth=1, label=f'{name} alone')
  axes.plot(x, [row['tokens_per_second'] for row in able], 'o-', label='all three')
  bound = [row for row in able if row['by'] == 'network']
  if bound:
    axes.axvline(bound[0]['devices'], color=figures.GREY, linewidth=1)
    axes.annotate('the network binds', (bound[0]['devices'], bound[0]['tokens_per_second']), textcoords='offset points',
                  xytext=(6, -12))
  axes.set_xscale('log', base=2)
  axes.legend()
  return figure
