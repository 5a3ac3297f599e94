"""What a training step reads and writes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from framework.models import contract


class State(flax.struct.PyTreeNode):
  """`step` counts steps taken; `skipped` those of them whose loss or gradient was not finite."""
  step: jax.Array
  skipped: jax.Array
  params: Any
  optimizer: Any


def init(module, optimizer: optax.GradientTransformation, seed: int) -> State:
  """The state before the first step, a pure function of the seed."""
  params = contract.init(module, jax.random.key(seed))
  return State(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), params, optimizer.init(params))
