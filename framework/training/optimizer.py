"""Learning-rate schedules and optimizers, from optax."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from framework import config as config_lib


def decay_start(c: config_lib.Optimizer, steps: int) -> int:
  """The number of steps of a wsd run whose learning rate is that of any longer run: its warm-up and stable phase."""
  return max(c.warmup_steps, steps - max(1, round(c.decay_fraction * steps)))


def schedule(c: config_lib.Optimizer, steps: int) -> optax.Schedule:
  """Learning rate of each step: linear warm-up from lr / warmup, then the decay of `c.schedule` over the rest."""
  peak, final = c.learning_rate, c.final_learning_rate
  rest = max(1, steps - c.warmup_steps)
  if c.schedule == 'constant':
    after = optax.constant_schedule(peak)
  elif c.schedule == 'cosine':  # Loshchilov and Hutter 2017, arXiv:1608.03983
    after = optax.cosine_decay_schedule(peak, rest, alpha=final / peak if peak else 0.0)
  elif c.schedule == 'linear':
    after = optax.linear_schedule(peak, final, rest)
  else:  # warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395
    decay = max(1, round(c.decay_fraction * steps))
    after = optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)],
                                 [decay_start(c, steps) - c.warmup_steps])
  if not c.warmup_steps:
    return after
  warmup = optax.linear_schedule(peak / c.warmup_steps, peak, max(1, c.warmup_steps - 1))
  return optax.join_schedules([warmup, after], [c.warmup_steps])


UNDECAYED = ('bias', 'scale', 'relative_bias')
MATRICES = ('weight', 'kernel')
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5  # Jordan 2024


def _name(path) -> str:
  return path[-1].key


def is_matrix(params: Any) -> Any:
  """True on weights, embeddings and heads, false on biases and norm scales: what weight decay applies to."""
  return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in UNDECAYED, params)


def _muon_takes(path) -> bool:
  """The hidden weights: all matrices but embeddings and heads. `weight` is this framework's name of them, `kernel`
  flax's."""
  return _name(path) in MATRICES and 'blocks' in [p.key for p in path]


def orthogonalize(x_NxIxO: jax.Array) -> jax.Array:
  """U V^T of each x = U S V^T, with singular values of about .7 to 1.2 instead of 1 (Jordan 2024).

  A step of Newton and Schulz multiplies x by a polynomial of x x^T. All of these are functions of the first x x^T, so
  where x is much longer than wide they are multiplied among themselves, which are small, and x once by the result.
  """
  if x_NxIxO.shape[1] > x_NxIxO.shape[2]:
    return orthogonalize(x_NxIxO.mT).mT
  x = x_NxIxO.astype(jnp.float32)
  x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
  together = NEWTON_SCHULZ_STEPS if x.shape[2] > 1.5 * x.shape[1] else 1  # fewer products from there on
  # Rounding errors of x x^T grow by 3.4445^2 a step where it is not computed anew.
  times = functools.partial(jnp.matmul, precision='highest' if together > 1 else None)
  a, b, c = NEWTON_SCHULZ
  for _ in range(NEWTON_SCHULZ_STEPS // together):
    gram, product = times(x, x.mT), None
    for _ in range(together):
      factor = a * jnp.eye(x.shape[1]) + b * gram + c * times(gram, gram)
      product = factor if product is None else times(factor, product)
      gram = times(factor, times(gram, factor))
    x = times(product, x)
  return x.astype(x_NxIxO.dtype)


def _muon_update(path, x: jax.Array) -> jax.Array:
  """A leaf's matrices, stacked over layers, orthogonal and with a root mean square of .2, as AdamW's updates have."""
  inputs = 2 if path[-2].key == 'out' and x.ndim == 4 else 1  # a head axis belongs to the side of its heads
  matrices = x.reshape(len(x), math.prod(x.shape[1:1 + inputs]), -1)
  return 0.2 * math.sqrt(max(matrices.shape[1:])) * orthogonalize(matrices).reshape(x.shape)


def muon(learning_rate: optax.Schedule, weight_decay: float, beside: optax.GradientTransformation):
  """Jordan 2024, with the scaling of Liu et al. 2025 (arXiv:2502.16982), under which AdamW's learning rates fit.

  optax.contrib.muon takes half as long again, and decays all or nothing of what its AdamW gets.

  Args:
    beside: the optimizer of embeddings, heads, biases and norms.
  """
  hidden = optax.chain(optax.trace(0.95, nesterov=True),
                       optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_muon_update, updates)),
                       optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))
  def labels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: 'hidden' if _muon_takes(path) else 'beside', params)
  return optax.partition({'hidden': hidden, 'beside': beside}, labels)


def build(c: config_lib.Optimizer, steps: int) -> optax.GradientTransformation:
  """Clipping by the global norm, then the optimizer with decoupled weight decay on matrices only."""
  rate = schedule(c, steps)
  # Loshchilov and Hutter 2019, arXiv:1711.05101. Without Nesterov's momentum beside Muon, short runs end worse: 1.841
  # against 1.827 nats, the mean of nine seeds of the largest cell of sweeps/first.py.
  adamw = optax.adamw(rate, c.beta1, c.beta2, c.epsilon, weight_decay=c.weight_decay, mask=is_matrix,
                      nesterov=c.name == 'muon')
  if c.name == 'adamw':
    update = adamw
  elif c.name == 'lion':  # Chen et al. 2023, arXiv:2302.06675
    update = optax.lion(rate, c.beta1, c.beta2, weight_decay=c.weight_decay, mask=is_matrix)
  else:
    update = muon(rate, c.weight_decay, adamw)
  return optax.chain(optax.clip_by_global_norm(c.clip_norm), update) if c.clip_norm else update


def only(update: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
  """`update` for the parameters below `name`; all others stay as they are and have no optimizer state."""
  def labels(params):
    return {key: jax.tree.map(lambda _: 'trained' if key == name else 'frozen', part) for key, part in params.items()}
  return optax.partition({'trained': update, 'frozen': optax.set_to_zero()}, labels)
