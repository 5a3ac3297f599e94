"""What a config and a vocabulary become: shared by training, evaluation and generation."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

from absl import logging
import jax
import optax

from framework import config as config_lib
from framework import models, sharding
from framework.data import tokenizer as tokenizer_lib
from framework.models import contract
from framework.training import checkpoint, layout, optimizer, partition, run, state, step


@dataclasses.dataclass(frozen=True)
class Setup:
  """The model, the devices and the optimizer of a run."""
  config: config_lib.Config
  module: contract.Model
  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule

  def init(self) -> state.State:
    """The state before the first step, each array where it lies on the mesh."""
    return jax.jit(self._init, out_shardings=self.where)()

  @functools.cached_property
  def shapes(self) -> state.State:
    """Of each array of the state."""
    return jax.eval_shape(self._init)

  @functools.cached_property
  def where(self) -> state.State:
    """The sharding of each array of the state."""
    return layout.shardings(self.shapes, self.module, self.mesh)

  def like(self) -> state.State:
    """Shapes, dtypes and shardings of the state, without making it."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, self.where)

  def compile_step(self, reduce: Callable = partition.summed) -> Any:  # of jax.jit, whose type has no name
    """step(state, batch) -> (state, metrics) over the mesh. `reduce`: see partition.spread_gradient."""
    c = self.config.training
    gradient = partition.spread_gradient(self.module, c, self.mesh, reduce)
    return partition.spread(step.make(gradient, self.optimizer, self.learning_rate, c), self.mesh, self.where)

  def _init(self) -> state.State:
    return state.init(self.module, self.optimizer, self.config.training.seed)

  def lower_step(self) -> jax.stages.Lowered:
    """The step before it is compiled, of shapes alone: nothing is on a device."""
    return self.compile_step().lower(self.like(), layout.batch_like(self.config, self.mesh))


def set_up(config: config_lib.Config, vocabulary: int, mesh: jax.sharding.Mesh | None = None) -> Setup:
  """Builds everything but the data.

  Args:
    mesh: None: of all devices, as the config has it.

  Raises:
    ConfigError: a model that is unknown, half written or sees its targets; a mesh for other devices.
  """
  if config.model.mask == 'bidirectional':
    raise config_lib.ConfigError("model.mask is 'bidirectional', which sees the token that it is scored on; expected "
                                 "'causal' or 'strict'")
  module, o, steps = models.build(config, vocabulary), config.optimizer, config.training.steps
  update = optimizer.build(o, steps, contract.describe(module), getattr(module, 'trained', ''))
  if mesh is None:
    mesh = layout.make_mesh(sizes=sharding.sizes(config.training.mesh, jax.device_count()))
  return Setup(config, module, mesh, update, optimizer.schedule(o, steps))


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run's newest checkpoint, ready to be evaluated or sampled."""
  setup: Setup
  params: Any
  tokenizer: tokenizer_lib.Tokenizer
  step: int


def readers_mesh(config: config_lib.Config) -> jax.sharding.Mesh:
  """The mesh of a run if its devices are here, else a replica a device: a checkpoint knows no mesh."""
  try:
    return layout.make_mesh(sizes=sharding.sizes(config.training.mesh, jax.device_count()))
  except config_lib.ConfigError as error:
    logging.info('%s; read with a replica on each device', error)
    return layout.make_mesh()


def load(workdir: pathlib.Path, step: int | None = None) -> Trained:
  """The run in `workdir`, which may still be training; of a run in several stages the last.

  Args:
    step: of the checkpoint; None: the newest that can be trusted.

  Raises:
    ConfigError: it has no usable checkpoint.
  """
  config = run.read_config(workdir)
  last = models.stages(config)[-1]
  if last.name and not (workdir / 'checkpoints').exists():
    return load(workdir / last.name, step)
  tokenizer = run.read_tokenizer(workdir)
  setup = set_up(config, tokenizer.size, readers_mesh(config))
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', read_only=True)
  try:
    like = setup.like().replace(optimizer=None)
    restored = checkpoints.restore(like) if step is None else checkpoints.one(step, like)
  finally:
    checkpoints.close()
  if restored is None:
    raise config_lib.ConfigError(f'workdir {workdir} holds a run without a checkpoint; train it first')
  return Trained(setup, restored[0].params, tokenizer, restored[1]['step'])
