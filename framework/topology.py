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
  holds. group: the numbers of the devices that take part in the first of them. count: times a step. name: of the
  operation, as JAX calls it.
  """
  kind: str
  bytes: float
  group: tuple[int, ...]
  count: int
  name: str = ''

  @property
  def devices(self) -> int:
    """How many take part."""
    return len(self.group)

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
  of_tpu = ':T(8,128)' in hlo  # how its arrays are laid out
  found: list[Collective] = []
  for name, count in _visits(bodies, entry, layers).items():
    if name.startswith('async_collective_fusion') or any('AsyncCollectiveDone' in line for line in bodies[name]):
      continue  # on a TPU: the middle and the end of what has been counted where it starts
    for line in bodies[name]:
      match = re.search(r'= (\(.*?\)|\S+) (' + '|'.join(KINDS) + r')(-start)?\(', line)
      if not match:
        continue
      arrays, group = _sizes(match[1]), _group(line)
      if match[3] and match[2] != 'all-reduce':  # what an asynchronous one begins with comes first
        arrays = [arrays[1]] if match[2] == 'collective-permute' else arrays[len(arrays) // 2:]
      size = sum(arrays)
      kind, label = match[2], re.search(r'op_name="([^"]*)"', line)
      if kind == 'reduce-scatter':
        size *= len(group)
      elif kind == 'all-reduce' and not label and of_tpu:  # where a scatter is written so, as a sum that is cut
        kind = 'reduce-scatter'
      if len(group) > 1:
        found.append(Collective(kind, size, group, count, label[1] if label else ''))
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


def _group(line: str) -> tuple[int, ...]:
  """The first group of devices, of which there are four spellings."""
  listed = re.search(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}', line)
  if listed:
    return tuple(int(number) for number in listed[1].split(',') if number)
  shaped = re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line)
  if shaped:
    sizes = [int(n) for n in shaped[3].split(',')]
    order = [int(n) for n in shaped[4].split(',')] if shaped[4] else range(len(sizes))
    return tuple(np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(int(shaped[1]), -1)[0].tolist())
  named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))?\s*\{([^}]*)\}", line)
  if named:
    axes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    taken = re.findall(r"'([^']+)'", named[4])
    devices = np.arange(math.prod(map(int, axes.values())))
    if named[2]:
      devices = devices.reshape([int(n) for n in named[2].split(',')]).transpose([int(n) for n in named[3].split(',')])
    devices = devices.reshape([int(n) for n in axes.values()])
    return tuple(devices[tuple(slice(None) if axis in taken else 0 for axis in axes)].reshape(-1).tolist())
  return ()


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


@dataclasses.dataclass(frozen=True)
class Rates:
  """What one device can do a second, at best. flops: of products in the dtype of the arithmetic. bandwidth: bytes of its
  memory. link: bytes that it receives from devices of its host or slice. network: from other hosts. together: devices
  that share a host, or a slice."""
  flops: float
  bandwidth: float
  link: float
  network: float
  together: int


@dataclasses.dataclass(frozen=True)
class Bound:
  """Seconds that a step takes at least, if each of the three were alone; together they take the longest at least."""
  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    return max(self.compute, self.memory, self.network)

  @property
  def by(self) -> str:
    """What binds: compute, memory or network."""
    return max(dataclasses.asdict(self), key=lambda name: getattr(self, name))


def moving(found: list[Collective], rates: Rates) -> float:
  """Seconds of all collectives of a step, one after the other, each at the best rate of its way.

  Devices of one host that take part in one beyond it share their adapters: what comes to the host comes to all.
  """
  total = 0.0
  for c in found:
    here = sum(device // rates.together == c.group[0] // rates.together for device in c.group)
    rate = rates.link if here == c.devices else min(rates.link, here * rates.network)
    total += c.sent / rate
  return total


def bound(flops: float, used: 'Memory', found: list[Collective], rates: Rates) -> Bound:
  """Of a step of so many FLOPs a device."""
  # The state is read and written, and so is whatever is kept for the backward pass.
  return Bound(flops / rates.flops, 2 * (used.arguments + used.temporaries) / rates.bandwidth, moving(found, rates))


def memory(compiled: Any, platform: str) -> Memory:
  """What a compiled program holds at most. A TPU's compiler knows the peak; elsewhere all temporaries are counted."""
  of = compiled.memory_analysis()
  arguments = of.argument_size_in_bytes + of.output_size_in_bytes - of.alias_size_in_bytes
  peak = arguments + of.temp_size_in_bytes
  if platform == 'tpu':
    peak = of.peak_memory_in_bytes
  return Memory(int(arguments), int(of.temp_size_in_bytes), int(np.int64(peak)))


def exhausted(message: str) -> str:
  """What a TPU's compiler says of a program that does not fit, in short."""
  sizes = re.search(r'Used ([\d.]+[KMG]) of ([\d.]+[KMG]) hbm|\(([\d.]+[KMG])\) exceeds available HBM \(([\d.]+[KMG])\)',
                    message)
  if not sizes:
    return ' '.join(message.split())[:200]
  used, have = [size for size in sizes.groups() if size]
  return f'a device needs {used} of {have} (the compiler of the TPU)'
