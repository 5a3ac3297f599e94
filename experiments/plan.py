"""Whether a run fits on hardware that is not here, and how fast it can be there: its true step is compiled for it.

Example:
  python -m experiments.plan --config=experiments/configs/llama_8b.py --target=h100:8
  python -m experiments.plan --config=experiments/configs/llama_8b.py --target=h100 --chips=8..1024 \\
    --config.training.batch=1024 --output=plans/chips.json

Other targets: h100:4x8 (hosts x GPUs), v5e:16x16, v6e:8x8 (TPU slices), cpu:8 (simulated devices). Prints what a device
holds, what moves, and the least time of a step by compute, memory and network, with the rates assumed. A bound is not a
forecast: real steps take longer. Compilers for GPUs and TPUs come with `pip install -e '.[compile]'`.
"""

import copy
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from absl import flags

from experiments.planning import chips
from experiments.planning.compiled import SPARE, Plan, Target, largest, planned, target_of, vocabulary_of
from experiments.shared import launch, process
from foundation import files
from foundation.errors import ConfigError, nearest
from framework import config as config_lib

CONFIG = launch.define_config()
TARGET = flags.DEFINE_string('target', None, 'h100:8, h100:4x8, h200, a100, v5e:4x4, v5p:4x4x4, v6e:8x8, cpu:8')
SLICES = flags.DEFINE_integer('slices', 1, 'TPU slices, joined by the network of the data centre', lower_bound=1)
VOCABULARY = flags.DEFINE_integer('vocabulary', 0, '0: that of the tokenizer, of bpe data.vocabulary', lower_bound=0)
TOKENS = flags.DEFINE_float('tokens', 0, 'to train on; 0: steps x batch x window', lower_bound=0.0)
PRICE = flags.DEFINE_float('price_per_hour', 0, 'of one device, in dollars; 0: none is printed', lower_bound=0.0)
SEARCH = flags.DEFINE_bool('search', False, 'ranks meshes and remat policies by their bound; one compilation each')
LARGEST = flags.DEFINE_bool('largest', False, 'also the largest batch and window that fit; up to eight compilations more')
CHIPS = flags.DEFINE_string('chips', None, 'fewest and most devices, as 8..1024: the bound of each number, doubled from '
                            'one to the next, for one batch')
OUTPUT = flags.DEFINE_string('output', None, 'file.json of all figures, besides; scaling plan --machine takes it. Of '
                             '--chips also a figure beside it')

REMATS = ('none', 'dots', 'full')


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
  total = TOKENS.value or c.training.steps * c.training.batch * c.data.window
  hours = total / plan.tokens_per_second / 3600
  return [f'a step takes at least {bound.seconds:.4g} s, by {bound.by}: compute {bound.compute:.4g}, memory '
          f'{bound.memory:.4g}, network {bound.network:.4g} s',
          f'at most {plan.tokens_per_second / plan.devices:,.0f} tokens/s a device, MFU '
          f'{plan.flops / rates.flops / bound.seconds:.0%}',
          f'assumed: {rates.flops / 1e12:.0f} TFLOP/s, {rates.bandwidth / 1e12:.2f} TB/s of memory, '
          f'{rates.link / 1e9:.0f} GB/s between {rates.together} neighbours, {rates.network / 1e9:.3g} GB/s a device beyond '
          'them (data sheets, see pallas_kernels/runtime/targets.py)',
          f'{total:.3g} tokens: at least {hours:.3g} hours' + (
              f', {hours * plan.devices * PRICE.value:,.0f} at {PRICE.value:g} an hour' if PRICE.value else '')]


def candidates(config: config_lib.Config, count: int, together: int, vocabulary: int) -> list[config_lib.Config]:
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
      layout.check(one, models.build(one, vocabulary), sharding.sizes(mesh, count))
      found.append(one)
    except ConfigError:
      continue
  return found


def search(config: config_lib.Config, target: Target, vocabulary: int) -> list[str]:
  """The meshes and remat policies that fit, the fastest bound first."""
  from experiments.shared import progress
  if target.rates is None:
    raise ConfigError('--search ranks by rates, of which a CPU has none; expected --target=h100:8 or the like')
  rows, able = [], candidates(config, len(target.devices), target.rates.together, vocabulary)
  with progress.steps() as show:
    for number, one in enumerate(able):
      show(number, len(able), f'{one.training.mesh} {one.model.remat}')
      plan = planned(one, target, vocabulary)
      if plan.fits(target):
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
  vocabulary = vocabulary_of(config, VOCABULARY.value)
  output = files.expand('--output', OUTPUT.value) if OUTPUT.value else None
  numbers = chips.counts(CHIPS.value) if CHIPS.value else []
  if numbers and (name == 'cpu' or count):
    raise ConfigError(f"--target is '{asked}' with --chips; expected a kind alone, nearest is "
                      f"{'h100' if name == 'cpu' else name}")
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's warnings of memory, which is told below
  import jax
  jax.config.update('jax_platforms', 'cpu')  # nothing runs elsewhere, also where there is a GPU
  process.start_jax(config, int(count) if name == 'cpu' else 1)
  if numbers:
    return more_and_more(config, name, numbers, vocabulary, output)
  target = target_of(asked, config.model.dtype, SLICES.value)
  if SEARCH.value:
    print('\n'.join(search(config, target, vocabulary)))
    return 0
  plan = planned(config, target, vocabulary)
  print('\n'.join(described(plan, target)), flush=True)
  if output:
    write(plan, target.name, output)
  if LARGEST.value and not plan.refused and target.room:
    for key in ('training.batch', 'data.window'):
      print(f'the largest {key} that was compiled and fits is {largest(plan, target, vocabulary, key)}', flush=True)
  return 0


def more_and_more(config: config_lib.Config, kind: str, numbers: list[int], vocabulary: int, output: pathlib.Path | None
                  ) -> int:
  """The bound of one config on each number of devices: a table, and with `output` that and a figure."""
  from experiments.shared import progress
  from foundation import figures
  from pallas_kernels.runtime import targets
  with progress.steps() as show:
    table = list(chips.rows(config, kind, isinstance(targets.describe(kind), targets.Gpu), numbers, vocabulary, show))
  print('\n'.join(chips.described(table)), flush=True)
  if output and any('why_not' not in row for row in table):
    files.write_atomically(output, json.dumps(table, indent=1) + '\n')
    title = f'{config.training.batch} x {config.data.window} tokens a step on {kind}'
    files.write_atomically(output.with_suffix('.svg'), figures.svg(chips.draw(table, title)))
  return 0


def write(plan: Plan, target: str, path: pathlib.Path) -> None:
  """All figures of a plan as JSON."""
  from framework import topology
  figures = {'target': target, 'slices': SLICES.value, 'devices': plan.devices, 'mesh': plan.config.training.mesh,
             'config': config_lib.flatten(plan.config), 'parameters': plan.parameters, 'state_bytes': plan.state,
             'memory': dataclasses.asdict(plan.memory), 'moves': topology.table(plan.collectives),
             'flops_a_device': plan.flops, 'refused': plan.refused,
             'bound': plan.bound and dataclasses.asdict(plan.bound) | {'seconds': plan.bound.seconds},
             'tokens_per_second': plan.tokens_per_second, 'dollars_per_hour': PRICE.value * plan.devices}
  files.write_atomically(path, json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
  launch.run(main)
