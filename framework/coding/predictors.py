"""Models as predictors for a coder: after each token, whole counts for every token that may come next.

A predictor reads B streams side by side. `advance(tokens_B)` appends a token to each and returns cumulative counts
[B, V] of the next. Coding and decoding call the same programs on the same shapes in the same order, so that they see
the same counts, to the bit; the shapes depend neither on the number of devices nor on the direction.
"""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework.baselines import ngram

COUNTS = 1 << 23  # shared out by probability; every token has one more, so that none is impossible
LANES = 32  # rows of one program: rows are computed in groups of so many


@functools.partial(jax.jit, static_argnames='module', donate_argnames='cache')
def read(module, params: Any, cache: Any, tokens_BxK: jax.Array) -> tuple[Any, jax.Array]:
  """(cache, cumulative counts of the next token [B, V], int32) after K more tokens a row; the old cache is used up."""
  B, K = tokens_BxK.shape
  positions_BxK = jnp.broadcast_to(cache.index + jnp.arange(K, dtype=jnp.int32), (B, K))
  x_BxKxD, cache = module.apply({'params': params}, tokens_BxK, positions_BxK, jnp.ones((B, K), jnp.int32),
                                cache=cache)
  p_BxV = jax.nn.softmax(module.logits(params, x_BxKxD[:, -1:])[:, 0], axis=-1)
  return cache, jnp.cumsum(jnp.floor(p_BxV * COUNTS).astype(jnp.int32) + 1, axis=-1)


class Network:
  """A module with a cache. When a window is full, its later half is read again into an empty cache.

  Groups of LANES rows take turns on the devices, each of which has a copy of the parameters.
  """

  def __init__(self, module, params: Any, window: int, rows: int):
    self._module, self._window, self._rows = module, window, rows
    self._lanes = min(rows, LANES)
    groups = -(-rows // self._lanes)
    devices = jax.local_devices()
    self._devices = [devices[group % len(devices)] for group in range(groups)]
    self._params = {device: jax.device_put(params, device) for device in set(self._devices)}
    self._caches = self._empty_caches()
    self._inputs_BxL = np.zeros((groups * self._lanes, window), np.int32)
    self._filled = 0

  def _empty_caches(self) -> list[Any]:
    return [jax.device_put(self._module.empty_cache(self._lanes, self._window), device) for device in self._devices]

  def advance(self, tokens_B: np.ndarray) -> np.ndarray:
    """Cumulative counts [B, V] of the next token, int32, after one more a row."""
    columns = 1
    if self._filled == self._window:
      keep = self._window // 2
      self._inputs_BxL[:, :keep] = self._inputs_BxL[:, self._window - keep:]
      self._caches = self._empty_caches()
      self._filled, columns = keep, keep + 1
    self._inputs_BxL[:self._rows, self._filled] = tokens_B
    self._filled += 1
    tokens = self._inputs_BxL[:, self._filled - columns:self._filled]
    counts = []
    for group, device in enumerate(self._devices):  # none waits for another: they run side by side
      rows = tokens[group * self._lanes:(group + 1) * self._lanes]
      self._caches[group], counts_BxV = read(self._module, self._params[device], self._caches[group], rows)
      counts.append(counts_BxV)
    counts_BxV = np.concatenate([np.asarray(c) for c in counts])[:self._rows]
    if (counts_BxV[:, -1] < COUNTS // 2).any():
      raise config_lib.ConfigError('the model gives NaN for a probability; expected a run whose loss is finite')
    return counts_BxV


class Counted:
  """An n-gram model."""

  def __init__(self, model: ngram.NGram, rows: int):
    self._model, self._state = model, model.start(rows)

  def advance(self, tokens_B: np.ndarray) -> np.ndarray:
    """Cumulative counts [B, V] of the next token, int64, after one more a row."""
    self._state = self._model.advance(self._state, np.asarray(tokens_B, np.int64))
    p_BxV = self._model.distribution(self._state)
    return np.cumsum(np.floor(p_BxV * COUNTS).astype(np.int64) + 1, axis=1)


def fingerprint(config: config_lib.Config, tokenizer_json: str, arrays: Any) -> bytes:
  """16 bytes of all that decides what a model predicts: settings, tokenizer and arrays (a tree)."""
  settings = {key: value for key, value in config_lib.flatten(config).items()
              if key.startswith('model.') or key == 'data.window'}
  hasher = hashlib.blake2b(json.dumps([settings, tokenizer_json], sort_keys=True).encode(), digest_size=16)
  for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
    leaf = np.asarray(leaf)
    hasher.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
    hasher.update(leaf.tobytes())
  return hasher.digest()
