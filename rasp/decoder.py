"""The decoder that programs become: everything that RASP asks of `framework`, so that a change there is met here."""

from collections.abc import Iterator, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from framework import config, generation
from framework.config import Model
from framework.models import contract
from framework.models.decoder import Decoder

EXACT: dict[str, Any] = {'norm': 'none', 'activation': 'relu', 'attention_scale': 'one', 'bias': True,
                         'tied_head': False, 'attention': 'xla'}  # the products that proofs are about


def settings(**fields) -> Model:
  """A decoder's settings: attention and ramps as they are written, no scale and no norm, unless `fields` differ."""
  return config.resolve(config.Config(model=Model(**EXACT | fields))).model


def build(model: Model, vocabulary: int, length: int) -> Any:
  """The module of a vocabulary of V tokens and inputs of L tokens, BOS included."""
  return Decoder(model, vocabulary, length)


def zeros(module: Any) -> Any:
  """Parameters of the module's shapes that compute nothing yet, as NumPy arrays to be written."""
  return jax.tree.map(lambda a: np.zeros(a.shape, np.float32), contract.shapes(module))


def random(module: Any, seed: int) -> Any:
  """Parameters as the framework initialises them."""
  return contract.init(module, jax.random.key(seed))


def apply(module: Any, params: Any, tokens_BxL: jax.Array, segments_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(hidden states [B, L, D], logits [B, L, V]), to be differentiated or jitted; segment 0 is padding."""
  positions = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
  x, _ = module.apply({'params': params}, tokens_BxL, positions, segments_BxL)
  return x, module.logits(params, x)


@functools.partial(jax.jit, static_argnums=0)
def _extend(module, params, tokens_BxL, first, cache):
  positions = first + jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
  x, cache = module.apply({'params': params}, tokens_BxL, positions, jnp.ones_like(tokens_BxL), cache=cache)
  return x, module.logits(params, x), cache


_apply = jax.jit(apply, static_argnums=0)


def run(module: Any, params: Any, tokens_BxL: Any, segments_BxL: Any) -> tuple[jax.Array, jax.Array]:
  """As `apply`, jitted, with products in full precision on every device."""
  with jax.default_matmul_precision('highest'):
    return _apply(module, params, tokens_BxL, segments_BxL)


def empty_cache(module: Any, rows: int, length: int) -> Any:
  """What `extend` reads before the first of `length` tokens."""
  return module.empty_cache(rows, length)


def extend(module: Any, params: Any, tokens_BxL: Any, first: int, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
  """As `run`, for tokens number `first` on, with the cache of those before; and the cache that holds them too."""
  with jax.default_matmul_precision('highest'):
    return _extend(module, params, tokens_BxL, first, cache)


def greedy(module: Any, params: Any, prompt: Sequence[int], tokens: int) -> Iterator[int]:
  """The most likely continuation of a prompt, one token at a time, with the cache."""
  for block in generation.generate(
      module, params, [np.array(prompt, np.int32)], tokens=tokens, window=module.length,
      settings=generation.Sampling(temperature=0.0), seed=0):
    yield from map(int, block[0])
