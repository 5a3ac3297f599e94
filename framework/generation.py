"""Sampling from a decoder: the prompts are read once, then tokens are written one by one from the cache.

The cache holds one training window. When a row's is full, the later half of its context is read again into an empty
cache, so that text of any length can be written at a constant cost a token. Each row is read again when its own context
is full, so its text does not depend on the rows beside it; what the others have read is then read again with it.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foundation.errors import ConfigError
from framework.models import contract

LEAST, MOST = float(jnp.finfo(jnp.float32).tiny), float(jnp.finfo(jnp.float32).max)
COLD = 1e-6  # temperatures below are divided by with care: logits may overflow
PARTS = 4  # of a window: the lengths that are read, if rows of several lengths are read again, are multiples of one


@dataclasses.dataclass(frozen=True)
class Sampling:
  """temperature 0 is greedy; top_k 0 and top_p 1 keep every token; `stop` is a token id that ends a row.

  Raises:
    ConfigError: a setting is out of its bounds.
  """
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  stop: int = -1

  def __post_init__(self):
    for name, good, expected in (('temperature', self.temperature >= 0, 'at least 0, nearest is 0'),
                                 ('top_k', self.top_k >= 0, 'at least 0, nearest is 0'),
                                 ('top_p', 0 < self.top_p <= 1, 'more than 0 and at most 1, nearest is 1')):
      if not good:  # NaN among them
        raise ConfigError(f'{name} is {getattr(self, name)}; expected {expected}')


def tempered(logits_BxV: jax.Array, temperature: float) -> jax.Array:
  """Logits over a temperature above 0, however small or large."""
  if temperature < COLD:  # the likeliest become 0 and stay so, all others go far below
    logits_BxV = logits_BxV - logits_BxV.max(-1, keepdims=True)
  return logits_BxV / min(max(temperature, LEAST), MOST)


def filter_logits(logits_BxV: jax.Array, s: Sampling) -> jax.Array:
  """Logits over temperature, -inf outside the top k and outside the smallest set of probability top_p.

  Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751.
  """
  logits_BxV = tempered(logits_BxV, s.temperature)
  sorted_BxV = jnp.flip(jnp.sort(logits_BxV, axis=-1), axis=-1)
  if s.top_k and s.top_k < logits_BxV.shape[-1]:
    logits_BxV = jnp.where(logits_BxV >= sorted_BxV[:, s.top_k - 1, None], logits_BxV, -jnp.inf)
    sorted_BxV = jnp.where(jnp.arange(sorted_BxV.shape[-1]) < s.top_k, sorted_BxV, -jnp.inf)
  if s.top_p < 1.0:
    p_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
    before_BxV = jnp.cumsum(p_BxV, axis=-1) - p_BxV  # a token stays if those before it do not reach top_p
    least_B = jnp.where(before_BxV < max(s.top_p, LEAST), sorted_BxV, jnp.inf).min(-1, keepdims=True)
    logits_BxV = jnp.where(logits_BxV >= least_B, logits_BxV, -jnp.inf)
  return logits_BxV


def sample(logits_BxV: jax.Array, key: jax.Array, count, s: Sampling) -> jax.Array:
  """The next token of each row, int32 [B]; its randomness is that of (seed, row, number of tokens written).

  Args:
    key: of the seed, or [B], one of each row.
  """
  if s.temperature == 0.0:
    return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
  keys_B = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(logits_BxV.shape[0]))
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, count)
  return jax.vmap(jax.random.categorical)(keys_B, filter_logits(logits_BxV, s)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=('module', 'length'))
def prefill(module, params: Any, tokens_BxP: jax.Array, lengths_B: jax.Array, length: int):
  """Reads prompts that are padded on the left into a new cache of `length` places.

  Returns (logits of the next token [B, V], cache, position of the next token [B]).
  """
  B, P = tokens_BxP.shape
  positions_BxP = jnp.arange(P) - (P - lengths_B[:, None])
  segments_BxP = (positions_BxP >= 0).astype(jnp.int32)
  x_BxPxD, cache = module.apply({'params': params}, tokens_BxP, jnp.maximum(positions_BxP, 0), segments_BxP,
                                cache=module.empty_cache(B, length))
  return module.logits(params, x_BxPxD[:, -1:])[:, 0], cache, lengths_B


@functools.partial(jax.jit, static_argnames=('module', 'settings', 'most'), donate_argnames=('carry',))
def decode(module, params: Any, key: jax.Array, carry: Any, settings: Sampling, most: int, limit: jax.Array):
  """Writes up to `limit` <= `most` tokens a row, fewer if every row has stopped.

  `carry` is (logits_BxV, cache, positions_B, done_B, count); returns (carry, tokens [B, most], how many).
  """
  def unfinished(loop):
    (_, _, _, done_B, _), _, n = loop
    return (n < limit) & ~done_B.all()

  def body(loop):
    (logits_BxV, cache, positions_B, done_B, count), out_BxM, n = loop
    token_B = sample(logits_BxV, key, count, settings)
    token_B = jnp.where(done_B, settings.stop, token_B)
    done_B = done_B | (token_B == settings.stop)
    out_BxM = out_BxM.at[:, n].set(token_B)
    x_Bx1xD, cache = module.apply({'params': params}, jnp.maximum(token_B, 0)[:, None], positions_B[:, None],
                                  jnp.ones((token_B.size, 1), jnp.int32), cache=cache)
    return (module.logits(params, x_Bx1xD)[:, 0], cache, positions_B + 1, done_B, count + 1), out_BxM, n + 1

  out = jnp.full((carry[3].size, most), settings.stop, jnp.int32)
  carry, out, n = jax.lax.while_loop(unfinished, body, (carry, out, jnp.zeros((), jnp.int32)))
  return carry, out, n


def generate(
    module, params: Any, prompts: Sequence[np.ndarray], *, tokens: int, window: int, settings: Sampling,
    seed: int | jax.Array, chunk: int = 16,
) -> Iterator[np.ndarray]:
  """Yields int32 [B, n] arrays of new tokens, at most `chunk` columns each and `tokens` in all.

  A row that has stopped is filled up with `settings.stop`. A row's text is that of the same row in any other batch.

  Args:
    prompts: token ids, one array a row, of any lengths of at least 1; an over-long one keeps its later part.
    seed: of the sampling, or a key for each row, [B].
  """
  contract.require(module, 'empty_cache', 'generation')
  rows = [list(map(int, p)) for p in prompts]
  if not all(rows):
    raise ConfigError(f'prompt {rows.index([])} is empty; expected at least 1 token, nearest is the end of a document')
  key = jax.random.key(seed) if isinstance(seed, int) else seed
  done_B, count = jnp.zeros(len(rows), bool), 0
  half = max(1, window // 2)
  begins = [0 if len(row) < window else len(row) - half for row in rows]
  lengths = [len(row) - begin for row, begin in zip(rows, begins)]
  # Rows of several lengths are full one after the other, and what is then read has many lengths: few are compiled.
  several = len(set(lengths)) > 1 and max(lengths) + tokens > window
  step = -(-window // PARTS) if several else 1
  while rows and count < tokens:
    context = [row[-1:] if done else row[begin:] for row, begin, done in zip(rows, begins, np.asarray(done_B))]
    longest = max(map(len, context))
    P = -(-longest // step) * step
    padded = np.array([[0] * (P - len(row)) + row for row in context], np.int32)
    logits, cache, positions = prefill(module, params, padded, np.array([len(r) for r in context], np.int32),
                                       max(2, window + step - 1))
    carry = (logits, cache, positions, done_B, jnp.asarray(count, jnp.int32))
    places = max(1, window - longest)  # the last token needs none, but a full cache is simplest to reason about
    while places > 0 and count < tokens:
      limit = min(chunk, places, tokens - count)
      carry, out, n = decode(module, params, key, carry, settings, chunk, limit)
      n = int(n)
      new = np.asarray(out)[:, :n]
      for row, written in zip(rows, new):
        row.extend(map(int, written))
      places, count, done_B = places - n, count + n, carry[3]
      if n:
        yield new
      if bool(done_B.all()):
        return
    begins = [begin if len(row) - begin < window else len(row) - half for row, begin in zip(rows, begins)]
