"""What a config and a vocabulary become: shared by training, evaluation and generation."""

import dataclasses
import pathlib
from typing import Any

import jax
import optax

from framework import config as config_lib
from framework import models
from framework.data import tokenizer as tokenizer_lib
from framework.models import contract
from framework.training import checkpoint, optimizer, partition, run, state


@dataclasses.dataclass(frozen=True)
class Setup:
  """The model, the devices and the optimizer of a run."""
  config: config_lib.Config
  module: contract.Model
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
  """Builds everything but the data. Raises ConfigError on a model that is unknown, half written or sees its targets."""
  if config.model.mask == 'bidirectional':
    raise config_lib.ConfigError("model.mask is 'bidirectional', which sees the token that it is scored on; expected "
                                 "'causal' or 'strict'")
  module, o, steps = models.build(config, vocabulary), config.optimizer, config.training.steps
  update = optimizer.build(o, steps, contract.describe(module), getattr(module, 'trained', ''))
  return Setup(config, module, partition.make_mesh(), update, optimizer.schedule(o, steps))


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run's newest checkpoint, ready to be evaluated or sampled."""
  setup: Setup
  params: Any
  tokenizer: tokenizer_lib.Tokenizer
  step: int


def load(workdir: pathlib.Path) -> Trained:
  """The run in `workdir`, which may still be training; of a run in several stages the last.

  Raises:
    ConfigError: it has no usable checkpoint.
  """
  config = run.read_config(workdir)
  last = models.stages(config)[-1]
  if last.name and not (workdir / 'checkpoints').exists():
    return load(workdir / last.name)
  tokenizer = run.read_tokenizer(workdir)
  setup = set_up(config, tokenizer.size)
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', read_only=True)
  try:
    restored = checkpoints.restore(setup.like().replace(optimizer=None))
  finally:
    checkpoints.close()
  if restored is None:
    raise config_lib.ConfigError(f'workdir {workdir} holds a run without a checkpoint; train it first')
  return Trained(setup, restored[0].params, tokenizer, restored[1]['step'])
