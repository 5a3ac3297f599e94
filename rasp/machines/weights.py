"""Decoder parameters written by hand, with names for the residual stream's directions.

For constructions whose point is their weights (a theorem's own layers), not a RASP program. The result is the
framework's decoder like a compiled one.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework import models
from framework.config import Model

Vector = Mapping[str, float]  # direction -> coefficient


class Weights:
  """An empty decoder of zeros; methods fill in heads and units. `params` is what the module takes."""

  def __init__(self, names: Sequence[str], vocabulary: int, length: int, **settings):
    self.at = {name: d for d, name in enumerate(names)}
    defaults = {'norm': 'none', 'activation': 'relu', 'position': 'learned', 'attention_scale': 'one', 'bias': True,
                'tied_head': False, 'width': len(names), 'attention': 'xla'}
    self.model = config_lib.check(config_lib.Config(model=Model(**defaults | settings))).model
    self.module = models.build(self.model, vocabulary, length)
    shapes = jax.eval_shape(lambda: models.init(self.module, jax.random.key(0)))
    self.params = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)

  def row(self, vector: Vector) -> np.ndarray:
    """A vector of the residual stream."""
    out = np.zeros(self.model.width, np.float32)
    for name, value in vector.items():
      out[self.at[name]] += value
    return out

  def embed(self, token: int, vector: Vector) -> None:
    self.params['embedding'][token] = self.row(vector)

  def place(self, position: int, vector: Vector) -> None:
    self.params['position'][position] = self.row(vector)

  def say(self, token: int, vector: Vector) -> None:
    """The token's logit."""
    self.params['head'][token] = self.row(vector)

  def head(self, layer: int, number: int, scores: Sequence[tuple[Vector, Vector]],
           values: Mapping[str, Vector]) -> None:
    """Head `number` with the score sum of query * key, bringing each value to its direction."""
    block = self.params['blocks']
    for k, (query, key) in enumerate(scores):
      block['query']['weight'][layer, :, number, k] = self.row(query)
      block['key']['weight'][layer, :, number, k] = self.row(key)
    for k, (target, value) in enumerate(values.items()):
      block['value']['weight'][layer, :, number, k] = self.row(value)
      block['out']['weight'][layer, number, k, self.at[target]] = 1

  def unit(self, layer: int, number: int, reads: Vector, writes: Vector) -> None:
    """writes += relu(reads)."""
    self.params['blocks']['up']['weight'][layer, :, number] = self.row(reads)
    self.params['blocks']['down']['weight'][layer, number] = self.row(writes)

  def run(self, tokens_BxL: Any) -> tuple[jax.Array, jax.Array]:
    """(hidden states, logits), jitted, products in full precision."""
    with jax.default_matmul_precision('highest'):
      return _run(self.module, self.params, jnp.asarray(tokens_BxL, jnp.int32))

  def extend(self, tokens_BxL: Any, first: int, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
    """As run, for tokens number `first` on, with the cache of those before."""
    with jax.default_matmul_precision('highest'):
      return _extend(self.module, self.params, jnp.asarray(tokens_BxL, jnp.int32), first, cache)


@functools.partial(jax.jit, static_argnums=0)
def _run(module, params, tokens_BxL):
  positions = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
  x, _ = module.apply({'params': params}, tokens_BxL, positions, jnp.ones_like(tokens_BxL))
  return x, module.logits(params, x)


@functools.partial(jax.jit, static_argnums=0)
def _extend(module, params, tokens_BxL, first, cache):
  positions = first + jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
  x, cache = module.apply({'params': params}, tokens_BxL, positions, jnp.ones_like(tokens_BxL), cache=cache)
  return x, module.logits(params, x), cache
