"""The nats of the true tokens: the length of a code (Shannon 1948)."""

import jax

from framework import cross_entropy
from framework.models import contract


def sum_loss(model: contract.Model, params, batch: contract.Batch, keys_B: jax.Array | None) -> jax.Array:
  x_BxLxD = model.hidden(params, batch, keys_B)
  return cross_entropy.sum_nats(x_BxLxD, model.head(params), batch['targets'], batch['weights'])
