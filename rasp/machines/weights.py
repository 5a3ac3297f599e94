"""Decoder parameters written by hand, with names for the residual stream's directions.

For constructions whose point is their weights (a theorem's own layers), not a RASP program. The result is the
framework's decoder like a compiled one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rasp import decoder

Vector = Mapping[str, float]  # direction -> coefficient


class Weights:
  """An empty decoder of zeros; methods fill in heads and units. `params` is what the module takes."""

  def __init__(self, names: Sequence[str], vocabulary: int, length: int, **settings):
    self.at = {name: d for d, name in enumerate(names)}
    self.model = decoder.settings(**{'position': 'learned', 'width': len(names)} | settings)
    self.module = decoder.build(self.model, vocabulary, length)
    self.params = decoder.zeros(self.module)

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
    tokens_BxL = jnp.asarray(tokens_BxL, jnp.int32)
    return decoder.run(self.module, self.params, tokens_BxL, jnp.ones_like(tokens_BxL))

  def extend(self, tokens_BxL: Any, first: int, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
    """As run, for tokens number `first` on, with the cache of those before."""
    return decoder.extend(self.module, self.params, jnp.asarray(tokens_BxL, jnp.int32), first, cache)
