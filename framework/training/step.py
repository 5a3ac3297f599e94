"""One pure training step. It knows no device: partition.py spreads it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from framework.config import Training
from framework.models import contract
from framework.training import losses
from framework.training.state import State

Batch = dict[str, jax.Array]
Gradient = Callable[[Any, jax.Array, Batch], dict[str, Any]]
DROPOUT = 1  # folded into the seed's key, so that no two uses of the seed share a stream


def make_gradient(module: contract.Model, c: Training, enter: Callable[[Any], Any] = lambda params: params) -> Gradient:
  """gradient(params, step, batch) -> {nats, targets, grads}: sums over the targets of a batch, of all its microbatches.

  Args:
    enter: what the model is given in place of the parameters that the gradient is of, such as all of what is split.
  """
  sum_loss = losses.find(c.loss).sum_loss

  def one(params, step, batch):
    keys_B = None
    if module.stochastic:  # dropout keys, from (seed, step, global row)
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), DROPOUT), step)
      keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['rows'])
    nats, grads = jax.value_and_grad(lambda params: sum_loss(module, enter(params), batch, keys_B))(params)
    return {'nats': nats, 'targets': batch['weights'].sum(), 'grads': grads}

  def gradient(params, step, batch):
    if c.accumulation == 1:
      return one(params, step, batch)
    # Row i goes to microbatch i mod A: every microbatch then keeps rows on every device.
    micro = jax.tree.map(lambda x: x.reshape(-1, c.accumulation, *x.shape[1:]).swapaxes(0, 1), batch)
    def accumulate(total, part):
      return jax.tree.map(jnp.add, total, one(params, step, part)), None
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
        one, params, step, jax.tree.map(lambda x: x[0], micro)))
    return jax.lax.scan(accumulate, zero, micro)[0]

  return gradient


def make(gradient: Gradient, optimizer: optax.GradientTransformation, learning_rate: optax.Schedule, c: Training
         ) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
  """train_step(state, batch) -> (state, metrics).

  The loss is a sum over all targets of all microbatches and devices, divided once by their number.

  Args:
    gradient: of `make_gradient`, spread over devices or not.
  """
  def train_step(state: State, batch: Batch):
    total = gradient(state.params, state.step, batch)
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
