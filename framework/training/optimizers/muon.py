"""Muon (Jordan 2024): the hidden matrices move by orthogonal steps, all else by AdamW with Nesterov's momentum.

With the scaling of Liu et al. 2025 (arXiv:2502.16982), under which AdamW's learning rates fit. optax.contrib.muon takes
half as long again, and decays all or nothing of what its AdamW gets.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from framework import sharding
from framework.models import contract
from framework.training.optimizers import adamw

OVER_TENSOR = False  # a matrix that is split over devices is gathered, layer by layer
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5  # Jordan 2024


def orthogonalize(x_NxIxO: jax.Array) -> jax.Array:
  """U V^T of each x = U S V^T, with singular values of about .7 to 1.2 instead of 1 (Jordan 2024).

  A step of Newton and Schulz multiplies x by a polynomial of x x^T. All of these are functions of the first x x^T, so
  where x is much longer than wide they are multiplied among themselves, which are small, and x once by the result.
  """
  if x_NxIxO.shape[1] > x_NxIxO.shape[2]:
    return orthogonalize(x_NxIxO.mT).mT
  x = x_NxIxO.astype(jnp.float32)
  x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
  joined = NEWTON_SCHULZ_STEPS if x.shape[2] > 1.5 * x.shape[1] else 1  # fewer products from there on
  # Rounding errors of x x^T grow by 3.4445^2 a step where it is not computed anew.
  times = functools.partial(jnp.matmul, precision='highest' if joined > 1 else None)
  a, b, c = NEWTON_SCHULZ
  for _ in range(NEWTON_SCHULZ_STEPS // joined):
    gram = times(x, x.mT)
    product: Any = None
    for _ in range(joined):
      factor = a * jnp.eye(x.shape[1]) + b * gram + c * times(gram, gram)
      product = factor if product is None else times(factor, product)
      gram = times(factor, times(gram, factor))
    x = times(product, x)
  return x.astype(x_NxIxO.dtype)


def takes(parameter: contract.Parameter) -> bool:
  """The matrices of stacked layers; embeddings, heads and single matrices are AdamW's."""
  return parameter.role == 'hidden' and 'layers' in parameter.axes


def step(parameter: contract.Parameter, x: jax.Array) -> jax.Array:
  """A leaf's matrices, orthogonal and with a root mean square of .2, as AdamW's updates have."""
  stacked, inputs = (math.prod(sizes) for sizes in parameter.sizes(x.shape)[:2])
  matrices = sharding.whole_layers(x.reshape(stacked, inputs, -1))
  whole = sharding.whole_layers(orthogonalize(matrices))[:stacked]
  return 0.2 * math.sqrt(max(matrices.shape[1:])) * whole.reshape(x.shape)


def build(c, rate: optax.Schedule, parameters: Mapping[str, contract.Parameter]) -> optax.GradientTransformation:
  # Without Nesterov's momentum beside it, short runs end worse: 1.841 against 1.827 nats, the mean of nine seeds of the
  # largest cell of sweeps/first.py.
  beside = adamw.build(c, rate, parameters, nesterov=True)
  def steps(updates, _):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: step(parameters[jax.tree_util.keystr(path)], x), updates)
  hidden = optax.chain(optax.trace(0.95, nesterov=True), optax.stateless(steps),
                       optax.add_decayed_weights(c.weight_decay), optax.scale_by_learning_rate(rate))
  taken = contract.where(parameters, takes)
  def labels(params):
    return jax.tree.map(lambda here: 'hidden' if here else 'beside', taken(params))
  return optax.partition({'hidden': hidden, 'beside': beside}, labels)
