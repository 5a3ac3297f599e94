"""Trains small models on endless tasks, for studies: batches are drawn on the device, many steps a call."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework.models import contract
from framework.training import optimizer, state, step

CHUNK = 50  # steps a call
Show = Callable[[int, int, str], None]  # steps done, steps in all, what


def rows(task: Any, key: jax.Array, count: int, place: jax.Array | int, hard_only: bool = False
         ) -> dict[str, jax.Array]:
  """A batch of one block a row, each block a document; its targets are the tokens after the task's start.

  Args:
    task: a Question of framework.data.tasks.
    place: a number of the batch; it keys rollouts, so no two batches may share it.
    hard_only: the task's hard token is the only target.
  """
  u_BxN = jax.random.uniform(key, (count, task.draws))
  block_BxT = jax.vmap(lambda u: task.spell(u, jnp))(u_BxN).astype(jnp.int32)
  L = task.length - 1
  index_L = jnp.arange(L, dtype=jnp.int32)
  scored_L = index_L + 1 == task.hard if hard_only else index_L >= task.start
  start_B = ((place * count + jnp.arange(count)) * task.length).astype(jnp.uint32)
  return {'tokens': block_BxT[:, :-1], 'targets': block_BxT[:, 1:],
          'weights': jnp.broadcast_to(scored_L.astype(jnp.float32), (count, L)),
          'segments': jnp.ones((count, L), jnp.int32), 'positions': jnp.broadcast_to(index_L, (count, L)),
          'start': start_B, 'rows': jnp.arange(count, dtype=jnp.int32),
          'starts': jnp.full((count, 1), task.start, jnp.int32)}


def train(module: Any, draw: Callable[[jax.Array, jax.Array], dict[str, jax.Array]], *, steps: int, seed: int,
          settings: config_lib.Optimizer, params: Any = None, only: str = '', show: Show = lambda *_: None,
          what: str = '') -> tuple[Any, list[float]]:
  """Parameters after `steps` steps and the mean loss (nats) of each chunk.

  Args:
    draw: (key, number of the step) -> batch.
    params: to begin with; None: from the seed.
    only: the one entry of `params` that is trained; '': all.
  """
  update = optimizer.build(settings, steps, contract.describe(module), only)
  c = config_lib.Training(steps=steps, seed=seed, skip_nonfinite=1)
  train_step = step.make(step.make_gradient(module, c), update, optimizer.schedule(settings, steps), c)
  if params is None:
    params = contract.init(module, jax.random.key(seed))
  zero = jnp.zeros((), jnp.int32)
  carry = state.State(zero, zero, params, jax.jit(update.init)(params))
  key = jax.random.key(seed + 1)

  @functools.partial(jax.jit, static_argnums=2)
  def chunk(carry, first, count):
    def one(carry, number):
      number = first + number
      carry, metrics = train_step(carry, draw(jax.random.fold_in(key, number), number))
      return carry, metrics['loss']
    return jax.lax.scan(one, carry, jnp.arange(count))

  losses = []
  for first in range(0, steps, CHUNK):
    count = min(CHUNK, steps - first)
    carry, loss = chunk(carry, first, count)
    losses.append(float(loss.mean()))
    show(first + count, steps, f'{what} loss {losses[-1]:.4f}')
  if not np.isfinite(losses).all() or int(carry.skipped):
    raise FloatingPointError(f'{what}: {int(carry.skipped)} steps were not finite')
  return carry.params, losses


def answers(module: Any, params: Any, batches: list[dict[str, jax.Array]], place: int) -> dict[str, float]:
  """Accuracy and bits of the token at `place` of the blocks, and their number. Ties count as the first."""
  @jax.jit
  def one(params, batch):
    x_BxLxD = module.hidden(params, batch)
    log_p = jax.nn.log_softmax(module.logits(params, x_BxLxD[:, place - 1:place])[:, 0])
    target_B = batch['targets'][:, place - 1]
    bits_B = -jnp.take_along_axis(log_p, target_B[:, None], axis=1)[:, 0] / jnp.log(2.0)
    return (log_p.argmax(-1) == target_B), bits_B
  right, bits = (np.concatenate(x) for x in zip(*(jax.device_get(one(params, batch)) for batch in batches)))
  return {'accuracy': float(right.mean()), 'bits': float(bits.mean()), 'answers': int(right.size)}
