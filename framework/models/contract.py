"""What a model is: the questions that training, evaluation, generation, sweeps and plans put to every network.

No code outside a model asks for its name or for the name of a parameter: it asks the model, and what a parameter is
follows from its axes and its role. A model that has no answer to a question is refused in one line that names it.

A fork adds a model as one file that holds `build`, see framework.models. `framework.models.token_model.TokenModel` is a
base with most of the answers.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import pathlib
from typing import Any, Protocol

import flax.struct
from flax.core import meta
import flax.linen as nn
import jax
import numpy as np

from foundation import entries
from foundation.errors import ConfigError

Batch = dict[str, jax.Array]  # of framework.data.windows
ROLES = ('hidden', 'embedding', 'head', 'bias', 'scale')


class Parameter(flax.struct.PyTreeNode, meta.AxisMetadata[Any]):
  """An array and what it is for: its logical axes, in order, and its role.

  axes: names such as layers, width, heads, head_width, feedforward, vocabulary, positions; a name stands once.
  role: hidden, a matrix inside the network; embedding, a table that is looked up; head, which gives logits; bias;
    scale, a factor of channels.
  inputs: those of the axes that a product contracts: their sizes make the fan-in, those of the others but `layers` the
    fan-out.
  """
  value: Any
  axes: tuple[str, ...] = flax.struct.field(pytree_node=False)
  role: str = flax.struct.field(pytree_node=False, default='hidden')
  inputs: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

  def unbox(self) -> Any:
    return self.value

  def replace_boxed(self, val: Any) -> 'Parameter':
    return self.replace(value=val)

  def add_axis(self, index: int, params: Mapping[Any, Any]) -> 'Parameter':
    return self.replace(axes=(*self.axes[:index], params[nn.PARTITION_NAME], *self.axes[index:]))

  def remove_axis(self, index: int, params: Mapping[Any, Any]) -> 'Parameter':
    return self.replace(axes=(*self.axes[:index], *self.axes[index + 1:]))

  def sizes(self, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """The sizes of a shape that belong to stacked layers, to inputs and to outputs."""
    kinds: tuple[list[int], list[int], list[int]] = ([], [], [])
    for axis, size in zip(self.axes, shape, strict=True):
      kinds[0 if axis == 'layers' else 1 if axis in self.inputs else 2].append(size)
    return kinds

  @property
  def fans(self) -> tuple[int, int]:
    """(fan-in, fan-out) of a layer."""
    _, inputs, outputs = self.sizes(self.value.shape)
    return math.prod(inputs), math.prod(outputs)


def parameter(init: Callable[..., jax.Array], axes: tuple[str, ...], role: str = 'hidden',
              inputs: tuple[str, ...] = ()) -> Callable[..., Any]:
  """An initializer for flax's `self.param`, which returns the array of the Parameter that is made."""
  if role not in ROLES:
    raise ConfigError(f"a parameter's role is '{role}'; expected one of {', '.join(ROLES)}")
  return lambda *given: Parameter(init(*given), axes, role, inputs)


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of one window, matrix products only: of predicting it, and of training on it without recomputation."""
  forward: float
  train: float


@dataclasses.dataclass(frozen=True)
class Stage:
  """One run of a model's training, in a folder of its own below the run's.

  name: of that folder; '' is the run's own.
  config: what this run is trained with.
  title: for the log, as 'tier 1 of 2'.
  begin: (corpus, folder of the whole run) -> (parameters to begin with or None, a function of windows that gives
    further arrays of a batch or None), from what the stages before have left.
  flops_before: corpus -> FLOPs that are spent before the first step.
  """
  name: str
  config: Any
  title: str = ''
  begin: Callable[[Any, pathlib.Path], tuple[Any, Callable | None]] = lambda corpus, workdir: (None, None)
  flops_before: Callable[[Any], float] = lambda corpus: 0.0


class Model(Protocol):
  """A network over tokens. B batch, L window, D width, V vocabulary.

  Besides, where a model can:

    empty_cache(batch, length) -> cache      and `apply({'params': params}, tokens_BxL, positions_BxL, segments_BxL,
                                             cache=cache) -> (x_BxLxD, cache)`: it writes from left to right, its
                                             losses are code lengths. cache.index counts the tokens in it.
    generate(params, prompt, *, tokens, settings, seed)   it writes in a way of its own: yields (token, notes), the
                                             notes what it thought meanwhile, [text of each tier] or None
    attention(params, tokens_BxL) -> weights_NxBxHxQxT     what every layer and head attends to
    seed, with_seed(seed) -> model           its loss is that of one draw of something: the same with another
    gathers                                  entries of the parameters that it gathers itself, a layer at a time, where
                                             they are split over devices; then its products may be split over `tensor`
    splits_windows = True                    it computes rightly on a device that has a part of each window's tokens
    trained                                  the one entry of the parameters that is trained, '' for all
    two_sided = True                         it sees what follows a target: its losses are no code lengths
  """
  config: Any  # the section `model` of the config
  vocabulary: int

  def __hash__(self) -> int:
    """Equal models are one: what is asked of a model is kept."""

  def parameters(self, key: jax.Array) -> Any:
    """The parameters of a seed: a dictionary of dictionaries of `Parameter`."""

  def hidden(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
    """States that predict each target of a batch, [B, L, D]. `keys_B` turns on what training draws, as dropout."""

  def head(self, params: Any) -> jax.Array:
    """The matrix whose product with a state gives logits, [V, D]."""

  def logits(self, params: Any, x_BxLxD: jax.Array) -> jax.Array:
    """[B, L, V], float32."""

  def flops(self) -> Flops:
    """Of one window of the length that the model was built for."""

  @property
  def stochastic(self) -> bool:
    """Whether training draws something, and so needs keys."""


REQUIRED = ('parameters', 'hidden', 'head', 'logits', 'flops', 'stochastic', 'config', 'vocabulary')


METHODS = ('parameters(key)', 'hidden(params, batch, keys_B=None)', 'head(params)', 'logits(params, x_BxLxD)', 'flops()')


def check(model: Any, name: str) -> Any:
  """The model itself. Raises ConfigError if it lacks what every model must answer, naming that."""
  subject = f"model.name is '{name}'"
  if model is None:
    raise ConfigError(f"{subject}, whose build(config, vocabulary) gives None; expected a model: see {__name__}")
  missing = [answer for answer in REQUIRED if not hasattr(model, answer)]
  if missing:
    raise ConfigError(f"{subject}, whose model has no '{missing[0]}'; expected {', '.join(REQUIRED)}: see {__name__}")
  for method in METHODS:
    entries.check_takes(getattr(model, method.partition('(')[0]), method, subject, __name__)
  try:
    hash(model)
  except TypeError as error:
    raise ConfigError(f'{subject}, whose model cannot be hashed ({error}); expected one that can, such as a frozen '
                      f'dataclass: see {__name__}') from None
  flops = model.flops()
  entries.gives(flops, isinstance(flops, Flops) and all(
      isinstance(x, (int, float)) and 0 <= x < math.inf for x in (flops.forward, flops.train)),
      f'Flops(forward, train) of {__name__}', subject, 'flops()')
  return model


def answers(model: Any, question: str) -> bool:
  """Whether a model answers what not every model does."""
  return getattr(model, question, None) is not None


def require(model: Any, question: str, what: str) -> Any:
  """The answer of a model to what not every model answers. Raises ConfigError, saying `what` needs it."""
  if not answers(model, question):
    why = ', since it reads on both sides of its targets' if answers(model, 'two_sided') else ''
    raise ConfigError(f"model.name is '{model.config.name}', which has no '{question}' (framework.models.contract){why}: "
                      f"{what} needs it, nearest is 'decoder'")
  return getattr(model, question)


@functools.partial(jax.jit, static_argnums=0)
def init(model: Model, key: jax.Array) -> Any:
  """The model's parameters as plain arrays, a pure function of the key."""
  return meta.unbox(model.parameters(key))


def shapes(model: Model) -> Any:
  """The shapes and dtypes of the parameters, without making them."""
  return jax.eval_shape(lambda: init(model, jax.random.key(0)))


@functools.lru_cache(64)
def describe(model: Model) -> dict[str, Parameter]:
  """{path: Parameter} of all parameters, whose values are shapes and dtypes.

  Raises:
    ConfigError: a parameter does not say what it is.
  """
  tree = jax.eval_shape(lambda: model.parameters(jax.random.key(0)))
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Parameter))
  entries.gives(tree, bool(leaves), 'a dictionary of dictionaries of Parameter', f"model.name is '{model.config.name}'",
                'parameters(key)')
  for place, leaf in leaves:
    path = jax.tree_util.keystr(place)
    if not isinstance(leaf, Parameter):
      raise ConfigError(f"model.name is '{model.config.name}', whose parameter {path} has no axes and no role; "
                        'expected an initializer of framework.models.contract.parameter')
    if len(leaf.axes) != leaf.value.ndim or len(set(leaf.axes)) != len(leaf.axes):
      raise ConfigError(f"model.name is '{model.config.name}', whose parameter {path} of shape {leaf.value.shape} has "
                        f'the axes {leaf.axes}; expected a name of its own for each axis')
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def where(parameters: Mapping[str, Parameter], test: Callable[[Parameter], bool]) -> Callable[[Any], Any]:
  """A function that turns a tree of parameters, or a part of it, into a tree of what `test` says of each."""
  return lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: test(parameters[jax.tree_util.keystr(path)]), params)


def decays(parameter: Parameter) -> bool:  # pylint: disable=redefined-outer-name
  """Whether weight decay applies: to matrices and tables."""
  return parameter.role not in ('bias', 'scale')


def counts(model: Model) -> dict[str, int]:
  """Numbers of parameters: {total, embedding, head}. The embedding includes tables of positions; a tied head is 0."""
  described = describe(model).values()
  def count(*roles: str) -> int:
    return int(sum(np.prod(p.value.shape, dtype=np.int64) for p in described if p.role in roles))
  return {'total': count(*ROLES), 'embedding': count('embedding'), 'head': count('head')}
