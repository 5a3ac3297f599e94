"""One training step, compiled for devices that need not be here: what it holds, moves and computes."""

import contextlib
import dataclasses
import math
import time
from typing import Any

from foundation.errors import ConfigError
from framework import config as config_lib

SPARE = 0.08  # of a GPU's memory, for NCCL, the CUDA context and fragmentation


def vocabulary_of(config: config_lib.Config, given: int) -> int:
  """V of a config, without its corpus; `given` if that is not 0. Raises ConfigError where only the corpus knows it."""
  from framework.data import tokenizer
  if given:
    return given
  if config.data.task or config.data.tokenizer == 'chars':
    raise ConfigError(f"the vocabulary of {'a task' if config.data.task else 'chars'} is known from its text alone; "
                      'expected --vocabulary=N')
  if foreign := tokenizer.of_file(config.data.tokenizer):
    return foreign.size
  return config.data.vocabulary if config.data.tokenizer == 'bpe' else tokenizer.Bytes().size


@dataclasses.dataclass(frozen=True)
class Target:
  """Hardware to plan for. rates: topology.Rates of one device, room: bytes of it that a program may take; of a CPU
  nothing is known: None and 0."""
  name: str
  devices: list[Any]
  rates: Any = None
  room: float = 0.0


def target_of(name: str, dtype: str, slices: int = 1) -> Target:
  """The target of that name, of so many slices of a TPU, for arithmetic in `dtype`. Raises ConfigError."""
  import jax
  from framework import topology
  from pallas_kernels.runtime import targets
  if name.split(':')[0] == 'cpu':
    return Target(name, jax.devices())
  try:
    devices, device = targets.devices(name, slices), targets.describe(name)
  except ValueError as error:
    raise ConfigError(f'--target: {error}') from None
  except ModuleNotFoundError as error:
    raise ConfigError(f"{error}; expected pip install -e '.[compile]', nearest is --target=cpu:8") from None
  flops = device.flops if dtype == 'bfloat16' else device.flops / 2  # tf32 of a GPU; a TPU takes several passes
  gpu = isinstance(device, targets.Gpu)
  together = targets.hosts(name)[1] if gpu else len(devices) // slices
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


  @property
  def tokens_per_second(self) -> float:
    """Of all devices at the bound; 0 where nothing is known of their rates."""
    return self.config.training.batch * self.config.data.window / self.bound.seconds if self.bound else 0.0

  def fits(self, target: Target) -> bool:
    return not self.refused and (not target.room or self.memory.peak <= target.room)


def planned(config: config_lib.Config, target: Target, vocabulary: int) -> Plan:
  """Compiles the step of a config for a target. Raises ConfigError if it cannot be split so."""
  import jax
  from framework import sharding, topology
  from framework.models import contract
  from framework.training import layout, setup
  from pallas_kernels.runtime import targets
  start, count = time.perf_counter(), len(target.devices)
  with targets.tracing(target.name) if target.rates else contextlib.nullcontext():
    mesh = layout.make_mesh(target.devices, sharding.sizes(config.training.mesh, count))
    made = setup.set_up(config, vocabulary, mesh)
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


def largest(plan: Plan, target: Target, vocabulary: int, key: str) -> int:
  """The largest training.batch or data.window, of at most four that are compiled, that fits; 0: none of them does.

  Each is where a straight line through the two before says that memory ends: the batch's memory is one, a window's
  bends where attention makes all logits at once.
  """
  begin = config_lib.flatten(plan.config)[key]
  step = plan.devices * plan.config.training.accumulation if key == 'training.batch' else min(128, begin)
  peaks, able, value = {begin: plan.memory.peak}, begin if plan.fits(target) else 0, 2 * begin
  if not able:
    value = max(step, begin // 2 // step * step)
  for _ in range(4):
    if value in peaks:
      break
    new = {key: value} | ({'data.stride': value} if key == 'data.window' else {})
    other = planned(config_lib.changed(plan.config, new), target, vocabulary)
    if other.refused:
      return able
    peaks[value] = other.memory.peak
    able = max(able, value) if other.fits(target) else able
    (low, held), (high, more) = sorted(sorted(peaks.items(), key=lambda item: abs(item[1] - target.room))[:2])
    if more <= held:
      return able
    value = max(step, int(low + (target.room - held) * (high - low) / (more - held)) // step * step)
  return able
