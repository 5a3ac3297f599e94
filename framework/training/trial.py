"""What forks outside the package would do wrong in a step, found from shapes alone: nothing is computed or compiled.

A run whose model, optimizer, schedule or loss is a file of the user's is traced piece by piece before its folder is
begun. Each piece that gives something else than it should is named with what it gives.
"""

from typing import Any

import jax
import jax.numpy as jnp

from foundation import entries
from framework import models, sharding
from framework.models import contract
from framework.training import layout, losses, optimizer
from framework.training.setup import Setup


def check(setup: Setup) -> None:
  """Raises ConfigError where a fork gives what a step cannot take. The package's own files are not traced."""
  c = setup.config
  forks = [name.endswith('.py') for name in (c.model.name, c.optimizer.name, c.optimizer.schedule, c.training.loss)]
  if not any(forks) or len(models.stages(c)) > 1:  # a stage's batches may hold arrays of its own
    return
  with entries.blaming():
    params = contract.shapes(setup.module)
    if forks[0]:
      _check_model(setup, params)
    if forks[2]:
      _check_schedule(setup)
    if forks[0] or forks[3]:
      _check_loss(setup, params)
    if forks[1]:
      _check_optimizer(setup, params)


def _batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
  """A device's microbatch, as shapes."""
  c = setup.config
  return layout.batch_shapes(max(1, c.training.batch // sharding.rows(setup.mesh.shape) // c.training.accumulation),
                             c.data.window)


def _keys(setup: Setup, batch: dict[str, Any]) -> Any:
  """Dropout keys, where the model draws something in training."""
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch['rows']) if setup.module.stochastic else None


def _check_model(setup: Setup, params: Any) -> None:
  model, batch, V = setup.module, _batch(setup), setup.module.vocabulary
  subject, lead = f"model.name is '{setup.config.model.name}'", batch['tokens'].shape
  def is_real(x: Any, ndim: int) -> bool:
    return hasattr(x, 'shape') and len(x.shape) == ndim and jnp.issubdtype(x.dtype, jnp.floating)
  def answers(params, batch):
    x = model.hidden(params, batch, _keys(setup, batch))
    expected = f'states [B, L, D] = [{lead[0]}, {lead[1]}, D] of floats'
    entries.gives(x, is_real(x, 3) and x.shape[:2] == lead, expected, subject, 'hidden(params, batch, keys_B)')
    head = model.head(params)
    entries.gives(head, is_real(head, 2) and head.shape == (V, x.shape[2]),
                  f'a matrix [V, D] = [{V}, {x.shape[2]}] of floats', subject, 'head(params)')
    logits = model.logits(params, x)
    entries.gives(logits, is_real(logits, 3) and logits.shape == (*lead, V),
                  f'float32 [B, L, V] = [{lead[0]}, {lead[1]}, {V}]', subject, 'logits(params, x_BxLxD)')
  jax.eval_shape(answers, params, batch)


def _check_schedule(setup: Setup) -> None:
  o = setup.config.optimizer
  after = optimizer.after_warmup(o, setup.config.training.steps)
  def rate(step):
    value = after(step)
    right = not isinstance(value, (str, list, tuple, dict, type(None))) and jnp.shape(value) == ()
    entries.gives(value, right, 'one number', f"optimizer.schedule is '{o.schedule}'", 'rate of a step')
  jax.eval_shape(rate, jax.ShapeDtypeStruct((), 'int32'))


def _check_loss(setup: Setup, params: Any) -> None:
  """The loss must be one number that the parameters decide: the gradient of a constant is zero, and trains nothing."""
  name, batch = setup.config.training.loss, _batch(setup)
  sum_loss, subject = losses.find(name).sum_loss, f"training.loss is '{name}'"
  if setup.config.model.name.endswith('.py') and not name.endswith('.py'):
    subject = f"model.name is '{setup.config.model.name}'"
  def loss(params, batch):
    value = sum_loss(setup.module, params, batch, _keys(setup, batch))
    # A number of Python or NumPy: no parameter of a trace went into it.
    right = isinstance(value, jax.Array) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    return entries.gives(value, right, 'a float32 scalar of JAX, the sum over targets', subject,
                         'sum_loss(model, params, batch, keys_B)')
  jaxpr = jax.make_jaxpr(loss)(params, batch).jaxpr
  reached = set(jaxpr.invars[:len(jax.tree.leaves(params))])
  for equation in jaxpr.eqns:
    if any(v in reached for v in equation.invars if not hasattr(v, 'val')):  # a literal has a value
      reached.update(equation.outvars)
  if not any(v in reached for v in jaxpr.outvars if not hasattr(v, 'val')):
    entries.gives(0, False, 'one that the parameters decide, else nothing is trained', subject,
                  'sum_loss(model, params, batch, keys_B), whatever the parameters,')
  jax.eval_shape(jax.grad(loss), params, batch)


def _check_optimizer(setup: Setup, params: Any) -> None:
  o = setup.config.optimizer
  subject = f"optimizer.name is '{o.name}'"
  update = optimizer.named(o, setup.learning_rate, contract.describe(setup.module))
  def step(grads, state, params):
    pair = update.update(grads, state, params)
    return entries.gives(pair, isinstance(pair, tuple) and len(pair) == 2, 'a pair (updates, state)', subject,
                         'update(updates, state, params)')
  state = jax.eval_shape(update.init, params)
  updates, after = jax.eval_shape(step, params, state, params)
  shapes = lambda tree: (jax.tree.structure(tree), [x.shape for x in jax.tree.leaves(tree)])
  entries.gives(updates, shapes(updates) == shapes(params), 'a tree of updates like that of the parameters', subject,
                'update(updates, state, params)')
  entries.gives(after, shapes(after) == shapes(state), 'the state in the shapes that it was given', subject,
                'update(updates, state, params), as state,')
