"""What a compiled step costs on its devices, read from the program: memory, and what moves between devices.

Everything here is read from XLA's own output, also of a program that is compiled for devices that are not there.
"""

from collections.abc import Iterator
import dataclasses
import math
import re
from typing import Any

import numpy as np

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4,
         'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'f8e4m3fn': 1, 'f8e5m2': 1}


@dataclasses.dataclass(frozen=True)
class Collective:
  """Something that moves, as often as a step does it.

  kind: of KINDS. bytes: of the whole array on one device: what a gather gives, a scatter takes, a sum or permutation
  holds. devices: that take part in one. count: times a step. name: of the operation, as JAX calls it.
  """
  kind: str
  bytes: float
  devices: int
  count: int
  name: str = ''

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a step, by the ring algorithms (Patarasuk and Yuan 2009)."""
    share = (self.devices - 1) / self.devices
    once = {'all-reduce': 2 * share, 'collective-permute': 1.0}.get(self.kind, share)
    return once * self.bytes * self.count


def collectives(hlo: str, layers: int = 1) -> list[Collective]:
  """What moves in a step, from the text of a compiled program.

  Args:
    layers: trips of a loop whose number the text does not say, as on a TPU.
  """
  bodies, entry = _computations(hlo)
  found: list[Collective] = []
  for name, count in _visits(bodies, entry, layers).items():
    for line in bodies[name]:
      match = re.search(r'= (\(.*?\)|\S+) (' + '|'.join(KINDS) + r')(-start)?\(', line)
      if not match:
        continue
      arrays = _sizes(match[1])
      size = arrays[-1] if match[3] else sum(arrays)  # what an asynchronous one begins with comes first
      devices = _devices(line)
      if match[2] == 'reduce-scatter':
        size *= devices
      if devices > 1 or match[2] == 'collective-permute':
        label = re.search(r'op_name="([^"]*)"', line)
        found.append(Collective(match[2], size, devices, count, label[1] if label else ''))
  return found


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  bodies: dict[str, list[str]] = {}
  entry = name = ''
  for line in hlo.splitlines():
    head = re.match(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$', line)
    if head:
      name = head[2]
      bodies[name] = []
      entry = name if head[1] else entry
    elif name and line.startswith('  '):
      bodies[name].append(line)
  return bodies, entry


def _visits(bodies: dict[str, list[str]], entry: str, layers: int) -> dict[str, int]:
  """Times that each computation runs in one run of the entry."""
  counts: dict[str, int] = {}
  def visit(name: str, times: int) -> None:
    counts[name] = counts.get(name, 0) + times
    for line in bodies[name]:
      for called, trips in _calls(line, layers):
        if called in bodies:
          visit(called, times * trips)
  visit(entry, 1)
  return counts


def _calls(line: str, layers: int) -> Iterator[tuple[str, int]]:
  body = re.search(r'body=%?([\w.\-]+)', line)
  if body:
    trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    yield body[1], int(trips[1]) if trips else layers
  for names in re.findall(r'(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?([^{}=]*?)'
                          r'(?:\}|, \w+=|$)', line):
    for name in re.findall(r'%?([\w.\-]+)', names):
      yield name, 1


def _sizes(shapes: str) -> list[float]:
  return [BYTES[kind] * math.prod(int(n) for n in sizes.split(',') if n)
          for kind, sizes in re.findall(r'(\w+)\[([\d,]*)\]', shapes) if kind in BYTES]


def _devices(line: str) -> int:
  """The size of a group, of which there are three spellings."""
  pairs = re.search(r'source_target_pairs=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}', line)
  if pairs:
    return 2
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', line)
  if listed:
    return len(listed[1].split(','))
  shaped = re.search(r'replica_groups=\[(\d+),(\d+)\]<=', line)
  if shaped:
    return int(shaped[2])
  named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
  if named:
    axes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    return math.prod(int(axes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
  return 1


def table(found: list[Collective]) -> dict[str, tuple[int, int]]:
  """{'all-gather x4': (times a step, bytes of all of them)} by kind and size of the group, of more than 1 KB each."""
  rows: dict[str, tuple[int, int]] = {}
  for c in found:
    if c.bytes > 1024:
      key = f'{c.kind} x{c.devices}'
      times, size = rows.get(key, (0, 0))
      rows[key] = times + c.count, size + int(c.bytes * c.count)
  return dict(sorted(rows.items()))


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device. arguments: state and batch. temporaries: activations, gathered weights, gradients."""
  arguments: int
  temporaries: int
  peak: int


def memory(compiled: Any, platform: str) -> Memory:
  """What a compiled program holds at most. A TPU's compiler knows the peak; elsewhere all temporaries are counted."""
  of = compiled.memory_analysis()
  arguments = of.argument_size_in_bytes + of.output_size_in_bytes - of.alias_size_in_bytes
  peak = arguments + of.temp_size_in_bytes
  if platform == 'tpu':
    peak = of.peak_memory_in_bytes
  return Memory(int(arguments), int(of.temp_size_in_bytes), int(np.int64(peak)))
