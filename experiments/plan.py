"""Whether a run fits on hardware that is not here, and how fast it can be there: its true step is compiled for it.

Example:
  python -m experiments.plan --config=experiments/configs/llama_8b.py --target=h100:8

Other targets: h100:4x8 (hosts x GPUs), v5e:16x16, v6e:8x8 (TPU slices), cpu:8 (simulated devices). Prints what a device
holds, what moves, and the least time of a step by compute, memory and network, with the rates assumed. A bound is not a
forecast: real steps take longer. Compilers for GPUs and TPUs come with `pip install -e '.[compile]'`.
"""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import pathlib
import time
from typing import Any

from absl import flags

from experiments.shared import launch, process
from foundation import files
from foundation.errors import ConfigError, nearest
from framework import config as config_lib

CONFIG = launch.define_config()
TARGET = flags.DEFINE_string('target', None, 'h100:8, h100:4x8, h200, a100, v5e:4x4, v5p:4x4x4, v6e:8x8, cpu:8')
SLICES = flags.DEFINE_integer('slices', 1, 'TPU slices, joined by the network of the data centre', lower_bound=1)
VOCABULARY = flags.DEFINE_integer('vocabulary', 0, '0: that of the tokenizer, of bpe data.vocabulary', lower_bound=0)
TOKENS = flags.DEFINE_float('tokens', 0, 'to train on; 0: steps x batch x window', lower_bound=0.0)
PRICE = flags.DEFINE_float('price_per_hour', 0, 'of one device, in any currency; 0: none is printed', lower_bound=0.0)
SEARCH = flags.DEFINE_bool('search', False, 'ranks meshes and remat policies by their bound; one compilation each')
LARGEST = flags.DEFINE_bool('largest', True, 'estimate the largest batch that fits, from a second compilation')
OUTPUT = flags.DEFINE_string('output', None, 'file.json of all figures, besides')

SPARE = 0.08  # of a GPU's memory, for NCCL, the CUDA context and fragmentation
REMATS = ('none', 'dots', 'full')


def vocabulary_of(config: config_lib.Config) -> int:
  """V of a config, without its corpus. Raises ConfigError where only that knows it."""
  from framework.data import tokenizer
  if VOCABULARY.value:
    return VOCABULARY.value
  if config.data.task or config.data.tokenizer == 'chars':
    raise ConfigError(f"the vocabulary of {'a task' if config.data.task else 'chars'} is known from its text alone; "
                      'expected --vocabulary=N')
  return config.data.vocabulary if config.data.tokenizer == 'bpe' else tokenizer.Bytes().size


@dataclasses.dataclass(frozen=True)
class Target:
  """Hardware to plan for. rates: topology.Rates of one device, room: bytes of it that a program may take; of a CPU
  nothing is known: None and 0."""
  name: str
  devices: list[Any]
  rates: Any = None
  room: float = 0.0


def target_of(name: str, dtype: str) -> Target:
  """The target of that name, for arithmetic in `dtype`. Raises ConfigError."""
  import jax
  from framework import topology
  from pallas_kernels.runtime import targets
  if name.split(':')[0] == 'cpu':
    return Target(name, jax.devices())
  try:
    devices, device = targets.devices(name, SLICES.value), targets.describe(name)
  except ValueError as error:
    raise ConfigError(f'--target: {error}') from None
  except ModuleNotFoundError as error:
    raise ConfigError(f"{error}; expected pip install -e '.[compile]', nearest is --target=cpu:8") from None
  flops = device.flops if dtype == 'bfloat16' else device.flops / 2  # tf32 of a GPU; a TPU takes several passes
  gpu = isinstance(device, targets.Gpu)
  together = targets.hosts(name)[1] if gpu else len(devices) // SLICES.value
  return Target(name, devices, topology.Rates(flops, device.bandwidth, device.link, device.network, together),
                device.memory * (1 - SPARE) if gpu else device.memory)


@dataclasses.dataclass(frozen=True)
class Plan:
  """One step on the target. Bytes and FLOPs are of one device; `again` are those that remat computes once more."""
  config: config_lib.Config
  devices: int
  parameters: int
  state: int
  memory: Any
  collectives: list[Any]
  flops: float
  again: float
  bound: Any
  seconds_to_compile: float
  refused: str = ''  # what a TPU's compiler says of a program that does not fit


def planned(config: config_lib.Config, target: Target) -> Plan:
  """Compiles the step of a config for a target. Raises ConfigError if it cannot be split so."""
  import jax
  from framework import sharding, topology
  from framework.models import contract
  from framework.training import layout, setup
  from pallas_kernels.runtime import targets
  start, count = time.perf_counter(), len(target.devices)
  with targets.tracing(target.name) if target.rates else contextlib.nullcontext():
    mesh = layout.make_mesh(target.devices, sharding.sizes(config.training.mesh, count))
    made = setup.set_up(config, vocabulary_of(config), mesh)
    layout.check(config, made.module, mesh.shape)
    like = made.like()
    state = sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(like))
    parameters, refused, used, found = contract.counts(made.module)['total'], '', topology.Memory(0, 0, 0), []
    try:
      compiled = made.lower_step().compile()
      used = topology.memory(compiled, target.devices[0].platform)
      found = topology.collectives(compiled.as_text() or '', config.model.layers)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      refused = topology.exhausted(str(error))
    flops = made.module.flops()
  a_device = config.training.batch / count
  again = a_device * flops.forward if config.model.remat == 'full' else 0.0
  bound = topology.bound(a_device * flops.train + again, used, found, target.rates) if (
      target.rates and not refused) else None
  return Plan(config, count, parameters, state, used, found, a_device * flops.train, again, bound,
              time.perf_counter() - start, refused)


def gib(size: float) -> str:
  return f'{size / 2**30:.2f} GiB' if size >= 2**28 else f'{size / 2**20:.1f} MiB'


def described(plan: Plan, target: Target) -> list[str]:
  """What is printed of a plan."""
  from framework import topology
  c, limit = plan.config, target.room
  lines = [f'{plan.parameters:,} parameters; {plan.devices} devices of {target.name}, mesh {c.training.mesh}, '
           f'batch {c.training.batch} x {c.data.window} tokens; compiled in {plan.seconds_to_compile:.0f} s',
           f'a device holds {gib(plan.state)} of parameters and optimizer state']
  if plan.refused:
    return [*lines, f'does not fit: {plan.refused}']
  lines.append(f'besides {gib(plan.memory.temporaries)} of activations, gathered weights and gradients; at most '
               f'{gib(plan.memory.peak)} together')
  if limit:
    left = limit - plan.memory.peak
    lines.append(f"{'fits' if left >= 0 else 'does not fit'}: {gib(abs(left))} {'are left' if left >= 0 else 'too much'} "
                 f'of {gib(limit)} ({SPARE:.0%} of a GPU kept for its runtime)')
  for kind, (times, size) in topology.table(plan.collectives).items():
    lines.append(f'moves: {times} {kind}, {size / 1e9:.3g} GB')
  lines.append(f'{plan.flops:.3g} FLOPs a device, by formula'
               + (f'; {plan.again:.3g} more are computed again (model.remat=full)' if plan.again else ''))
  return lines + (speed(plan, target.rates) if plan.bound else [])


def speed(plan: Plan, rates: Any) -> list[str]:
  """The bound at a device's rates, and what it means for a run."""
  c, bound = plan.config, plan.bound
  tokens = c.training.batch * c.data.window
  total = TOKENS.value or c.training.steps * tokens
  hours = total / tokens * bound.seconds / 3600
  return [f'a step takes at least {bound.seconds:.4g} s, by {bound.by}: compute {bound.compute:.4g}, memory '
          f'{bound.memory:.4g}, network {bound.network:.4g} s',
          f'at most {tokens / bound.seconds / plan.devices:,.0f} tokens/s a device, MFU '
          f'{plan.flops / rates.flops / bound.seconds:.0%}',
          f'assumed: {rates.flops / 1e12:.0f} TFLOP/s, {rates.bandwidth / 1e12:.2f} TB/s of memory, '
          f'{rates.link / 1e9:.0f} GB/s between {rates.together} neighbours, {rates.network / 1e9:.3g} GB/s a device beyond '
          'them (data sheets, see pallas_kernels/runtime/targets.py)',
          f'{total:.3g} tokens: at least {hours:.3g} hours' + (
              f', {hours * plan.devices * PRICE.value:,.0f} at {PRICE.value:g} an hour' if PRICE.value else '')]


def largest_batch(plan: Plan, target: Target) -> str:
  """About the largest batch that fits, from the memory of this one and of another."""
  batch = plan.config.training.batch
  other = planned(config_lib.changed(plan.config, {'training.batch': 2 * batch}), target)
  if other.refused or other.memory.peak <= plan.memory.peak:
    return 'twice the batch does not fit' if other.refused else ''
  a_row = (other.memory.peak - plan.memory.peak) / batch
  most = int((target.room - plan.memory.peak) / a_row + batch)
  most -= most % plan.devices
  return f'the largest batch that fits is about {most} windows ({gib(a_row * plan.devices)} each)' if most > 0 else ''


def candidates(config: config_lib.Config, count: int, together: int) -> list[config_lib.Config]:
  """Meshes and remat policies that the config divides over, the tensor axis within a host."""
  from framework import models, sharding
  from framework.training import layout
  found = []
  sizes = [n for n in range(1, count + 1) if count % n == 0 and n & (n - 1) == 0 or n == count]
  for fsdp, tensor, remat in itertools.product(sizes, [n for n in sizes if n <= min(8, together)], REMATS):
    if count % (fsdp * tensor):
      continue
    mesh = f'data={count // fsdp // tensor},fsdp={fsdp},tensor={tensor}'
    try:
      one = config_lib.changed(config, {'training.mesh': mesh, 'training.partition': 'mesh', 'model.remat': remat,
                                        'model.scan': True})
      layout.check(one, models.build(one, vocabulary_of(one)), sharding.sizes(mesh, count))
      found.append(one)
    except ConfigError:
      continue
  return found


def search(config: config_lib.Config, target: Target) -> list[str]:
  """The meshes and remat policies that fit, the fastest bound first."""
  from experiments.shared import progress
  if target.rates is None:
    raise ConfigError('--search ranks by rates, of which a CPU has none; expected --target=h100:8 or the like')
  rows, able = [], candidates(config, len(target.devices), target.rates.together)
  with progress.steps() as show:
    for number, one in enumerate(able):
      show(number, len(able), f'{one.training.mesh} {one.model.remat}')
      plan = planned(one, target)
      if not plan.refused and plan.memory.peak <= target.room:
        rows.append((plan.bound.seconds, plan.memory.peak, one.training.mesh, one.model.remat, plan.bound.by))
  lines = [f'{len(rows)} of {len(able)} fit; least seconds of a step, most memory:']
  return lines + [f'{seconds:9.4g} s  {gib(peak):>11}  {mesh}  remat={remat}  bound by {by}'
                  for seconds, peak, mesh, remat, by in sorted(rows)]


def main() -> int:
  config = copy.deepcopy(launch.given_config(CONFIG))
  asked = launch.required(TARGET)
  config.training.partition = 'mesh'
  config = config_lib.resolve(config)
  from pallas_kernels.runtime import targets
  name, _, count = asked.partition(':')
  known = ['cpu', *targets.names()]
  if name not in known:
    raise ConfigError(f"--target is '{asked}'; expected one of {', '.join(known)}{nearest(name, known)}")
  if name == 'cpu' and not (count.isdecimal() and 0 < int(count) <= 512):
    raise ConfigError(f"--target is '{asked}'; expected a number of devices up to 512, as cpu:8")
  import jax
  jax.config.update('jax_platforms', 'cpu')  # nothing runs elsewhere, also where there is a GPU
  process.start_jax(config, int(count) if name == 'cpu' else 1)
  target = target_of(asked, config.model.dtype)
  if SEARCH.value:
    print('\n'.join(search(config, target)))
    return 0
  plan = planned(config, target)
  print('\n'.join(described(plan, target)), flush=True)
  if OUTPUT.value:
    write(plan, target.name, files.expand('--output', OUTPUT.value))
  if LARGEST.value and not plan.refused and target.room:
    print(largest_batch(plan, target))
  return 0


def write(plan: Plan, target: str, path: pathlib.Path) -> None:
  """All figures of a plan as JSON."""
  from framework import topology
  figures = {'target': target, 'slices': SLICES.value, 'devices': plan.devices, 'mesh': plan.config.training.mesh,
             'config': config_lib.flatten(plan.config), 'parameters': plan.parameters, 'state_bytes': plan.state,
             'memory': dataclasses.asdict(plan.memory), 'moves': topology.table(plan.collectives),
             'flops_a_device': plan.flops, 'refused': plan.refused,
             'bound': plan.bound and dataclasses.asdict(plan.bound) | {'seconds': plan.bound.seconds}}
  files.write_atomically(path, json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
  launch.run(main)
