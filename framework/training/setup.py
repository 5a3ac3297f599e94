"""What a config and a vocabulary become: shared by training, evaluation and generation."""

import dataclasses
import pathlib
from typing import Any

import jax
import optax

from framework import config as config_lib
from framework import models
from framework.data import tokenizer as tokenizer_lib
from framework.training import checkpoint, optimizer, partition, run, state


@dataclasses.dataclass(frozen=True)
class Setup:
  """The module, the devices and the optimizer of a run."""
  config: config_lib.Config
  module: Any
  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule

  def init(self) -> state.State:
    """The state before the first step, on every device."""
    whole = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    return jax.jit(self._init, out_shardings=whole)()

  def like(self) -> state.State:
    """Shapes, dtypes and shardings of the state, without making it."""
    whole = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(self._init))

  def _init(self) -> state.State:
    return state.init(self.module, self.optimizer, self.config.training.seed)


def set_up(config: config_lib.Config, vocabulary: int) -> Setup:
  """Builds everything but the data. Raises ConfigError on a model that is unknown or sees its targets."""
  if config.model.mask == 'bidirectional':
    raise config_lib.ConfigError("model.mask is 'bidirectional', which sees the token that it is scored on; expected "
                                 "'causal' or 'strict'")
  update = optimizer.build(config.optimizer, config.training.steps)
  if config.model.name == 'tiered' and config.tiered.tiers > 1:
    update = optimizer.only(update, f'tier_{config.tiered.tiers}')
  return Setup(
      config, models.of_config(config, vocabulary), partition.make_mesh(), update,
      optimizer.schedule(config.optimizer, config.training.steps))


def stage_folder(workdir: pathlib.Path, tier: int) -> pathlib.Path:
  """Where a run of tiers trains tier `tier`: a run folder of its own, whose checkpoints hold the tiers below too."""
  return workdir / f'tier_{tier}'


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run's newest checkpoint, ready to be evaluated or sampled."""
  setup: Setup
  params: Any
  tokenizer: tokenizer_lib.Tokenizer
  step: int


def load(workdir: pathlib.Path) -> Trained:
  """The run in `workdir`, which may still be training. Raises ConfigError if it has no usable checkpoint."""
  config = run.read_config(workdir)
  if config.model.name == 'tiered' and not (workdir / 'checkpoints').exists():
    return load(stage_folder(workdir, config.tiered.tiers))
  tokenizer = tokenizer_lib.load(workdir / run.TOKENIZER)
  setup = set_up(config, tokenizer.size)
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', read_only=True)
  try:
    restored = checkpoints.restore(setup.like().replace(optimizer=None))
  finally:
    checkpoints.close()
  if restored is None:
    raise config_lib.ConfigError(f'workdir {workdir} holds a run without a checkpoint; train it first')
  return Trained(setup, restored[0].params, tokenizer, restored[1]['step'])
