"""What training does to a compiled program, which is a model like any other: how much of it gradient steps keep."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rasp import decoder
from rasp.compiling import Compiled
from rasp.language import Value

CONFIDENT = 3.0  # scale of the head: compiled logits of neighbouring values differ by 1, a trained model's by more


@dataclasses.dataclass(frozen=True)
class Course:
  """accuracy[t] of values at held-out inputs after t steps, loss[t] in nats before step t + 1, and the end."""
  accuracy: list[float]
  loss: list[float]
  params: Any


def confident(compiled: Compiled) -> Any:
  """The compiled parameters with a head as sure as a trained one."""
  params = jax.tree.map(jnp.asarray, compiled.params)
  return params | {'head': params['head'] * CONFIDENT}


def random(compiled: Compiled, seed: int) -> Any:
  """Parameters of the same shapes as the framework initialises them."""
  return decoder.random(compiled.module, seed)


@functools.partial(jax.jit, static_argnums=0)
def _loss(module, params, tokens, segments, targets):
  _, logits = decoder.apply(module, params, tokens, segments)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  weights = (segments == 1) & (targets > 0)
  return (nats * weights).sum() / weights.sum()


def train(
    compiled: Compiled, params: Any, batches: Sequence[Sequence[Sequence[Value]]], held_out: Sequence[Sequence[Value]],
    optimizer: optax.GradientTransformation, exact: Callable[[Sequence[Value]], Sequence[Value]]) -> Course:
  """One step a batch; `exact(sequence)` gives the values that are wanted."""
  module = compiled.module
  token = {value: t for t, value in compiled.outputs.items()}
  longest = compiled.report.longest
  def targets(rows):
    out = np.zeros((len(rows), 1 + longest), np.int32)
    for i, row in enumerate(rows):
      out[i, 1:1 + len(row)] = [token[v] for v in exact(row)]
    return out
  right = [list(exact(row)) for row in held_out]
  def accuracy(params):
    outputs = compiled.batch(held_out, longest, params)
    return float(np.mean([a == b for x, y in zip(right, outputs) for a, b in zip(x, y)]))
  state = optimizer.init(params)
  gradient = jax.value_and_grad(functools.partial(_loss, module))
  course = Course([accuracy(params)], [], None)
  with jax.default_matmul_precision('highest'):
    for rows in batches:
      value, g = gradient(params, *compiled.tokenize(rows, longest), targets(rows))
      updates, state = optimizer.update(g, state, params)
      params = optax.apply_updates(params, updates)
      course.loss.append(float(value))
      course.accuracy.append(accuracy(params))
  return dataclasses.replace(course, params=params)


def gentle() -> optax.GradientTransformation:
  """Adam on the head, and 500 times slower on queries and keys; the rest of a compiled program stays.

  Its feed-forward layers tell whole numbers apart at slopes of thousands, where an equal step for every parameter
  would be an error of many units.
  """
  def label(path, _):
    names = [p.key for p in path]
    return 'head' if names[0] == 'head' else 'scores' if {'query', 'key'} & set(names) else 'kept'
  return optax.multi_transform(
      {'head': optax.adam(1e-3), 'scores': optax.adam(2e-6), 'kept': optax.set_to_zero()},
      lambda params: jax.tree_util.tree_map_with_path(label, params))
