"""One pure training step. It knows no device: partition.py spreads it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from framework.config import Training
from framework.training import losses
from framework.training.state import State

Batch = dict[str, jax.Array]
DROPOUT = 1  # folded into the seed's key, so that no two uses of the seed share a stream


def make(
    module, optimizer: optax.GradientTransformation, learning_rate: optax.Schedule, c: Training, dropout: bool,
    reduce: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
  """train_step(state, batch) -> (state, metrics).

  The loss is a sum over all targets of all microbatches and devices, divided once by their number.

  Args:
    reduce: sums a tree over devices that each see a part of the batch; the identity where one program sees it all.
    dropout: whether to derive dropout keys, from (seed, step, global row).
  """

  sum_loss = losses.find(c.loss).sum_loss

  def gradient(params, step, batch):
    keys_B = None
    if dropout:
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), DROPOUT), step)
      keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['rows'])
    nats, grads = jax.value_and_grad(sum_loss, argnums=1)(module, params, batch, keys_B)
    return {'nats': nats, 'targets': batch['weights'].sum(), 'grads': grads}

  def train_step(state: State, batch: Batch):
    if c.accumulation == 1:
      total = gradient(state.params, state.step, batch)
    else:
      # Row i goes to microbatch i mod A: under a mesh every microbatch then keeps rows on every device.
      micro = jax.tree.map(lambda x: x.reshape(-1, c.accumulation, *x.shape[1:]).swapaxes(0, 1), batch)
      def accumulate(total, part):
        return jax.tree.map(jnp.add, total, gradient(state.params, state.step, part)), None
      zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
          gradient, state.params, state.step, jax.tree.map(lambda x: x[0], micro)))
      total, _ = jax.lax.scan(accumulate, zero, micro)
    total = reduce(total)
    targets = jnp.maximum(total['targets'], 1.0)
    grads = jax.tree.map(lambda g: g / targets.astype(g.dtype), total['grads'])
    loss, norm = total['nats'] / targets, optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def update(state):
      updates, opt = optax.with_extra_args_support(optimizer).update(grads, state.optimizer, state.params,
                                                                     step=state.step)
      return state.replace(params=optax.apply_updates(state.params, updates), optimizer=opt)

    metrics = {'loss': loss, 'targets': total['targets'], 'gradient_norm': norm, 'finite': finite,
               'learning_rate': jnp.asarray(learning_rate(state.step), jnp.float32)}
    if c.skip_nonfinite:
      state = jax.lax.cond(finite, update, lambda s: s.replace(skipped=s.skipped + 1), state)
    else:
      state = update(state)
    metrics['skipped'] = state.skipped
    return state.replace(step=state.step + 1), metrics

  return train_step
