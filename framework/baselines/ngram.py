"""N-gram models by counting: uniform (order 0), unigram, bigram (Shannon 1948), ... with two smoothings.

A model is a trie. Order m holds every m-gram of the text, sorted: `keys` are (number of the prefix in order m-1) * V +
(last token), `p` its probability after that prefix, `backoff` the weight of the shorter context when the m-gram is a
context itself. So p(w | c) is `p` of the m-gram c w if the text holds it, else backoff(c) p(w | c without its first
token). Order 1 holds all V tokens. An `end` opens a document as a context and closes it as a target: no m-gram reaches
from one document into the next.

Smoothings, both of which sum to 1 over the vocabulary after every context:
  kneser_ney: interpolated, modified (Chen and Goodman 1998, TR-10-98, section 3), with the adjusted counts of Heafield
    et al. 2013, "Scalable Modified Kneser-Ney Language Model Estimation", section 3: an m-gram below the top order
    counts the distinct tokens before it, unless it begins with `end`, which nothing precedes.
  backoff: absolute discounting of plain counts, the shorter context only for tokens never seen after the longer one
    (Ney, Essen and Kneser 1994, "On structuring probabilistic dependences", section 3).
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from foundation import files, sealed
from framework.config import ConfigError, nearest

ORDERS = range(9)
SMOOTHINGS = ('kneser_ney', 'backoff')
FALLBACK = (0.5, 1.0, 1.5)  # lmplz --discount_fallback: for texts whose counts of counts give no discount
_BLOCK = 1 << 22  # positions worked on at a time
_META = 'ngram.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """The m-grams of one order, sorted by key; for order 1 the keys are 0 .. V-1 and are left out."""
  keys: np.ndarray | Any  # uint64 [n]; None for order 1
  p: np.ndarray  # float32 [n]
  backoff: np.ndarray  # float32 [n]; 1 where nothing follows, and for the top order


@dataclasses.dataclass(frozen=True, eq=False)
class NGram:
  """See the module's docstring. A state, int64 [B, order-1], numbers the last 1, 2, ... tokens in their orders; -1
  where the text does not hold them."""
  vocabulary: int
  end: int
  order: int
  smoothing: str
  orders: tuple[Order, ...]  # 1 .. order

  def start(self, rows: int) -> np.ndarray:
    """The state of B rows that have read nothing."""
    return np.full((rows, max(self.order - 1, 0)), -1, np.int64)

  def advance(self, state_BxM: np.ndarray, tokens_B: np.ndarray) -> np.ndarray:
    """The state after one more token a row."""
    return self.numbers(state_BxM, tokens_B)[:, :max(self.order - 1, 0)]

  def distribution(self, state_BxM: np.ndarray) -> np.ndarray:
    """p of the next token, float64 [B, V]; every row sums to 1 but for the rounding of float32."""
    B, V = len(state_BxM), self.vocabulary
    if self.order == 0:
      return np.full((B, V), 1 / V)
    p_BxV = np.tile(self.orders[0].p.astype(np.float64), (B, 1))
    for shorter, longer, context_B in zip(self.orders, self.orders[1:], state_BxM.T):
      rows = np.flatnonzero(context_B >= 0)
      context = context_B[rows]
      p_BxV[rows] *= shorter.backoff[context, None]
      first = np.searchsorted(longer.keys, (context * V).astype(np.uint64))
      count = np.searchsorted(longer.keys, ((context + 1) * V).astype(np.uint64)) - first
      place = np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)
      p_BxV[np.repeat(rows, count), (longer.keys[place] % V).astype(np.int64)] = longer.p[place]
    return p_BxV

  def nats(self, tokens_N: np.ndarray) -> np.ndarray:
    """-ln p of tokens 1 .. N-1 of a split, float64 [N-1]; token 0 opens a document. Works in bounded memory."""
    tokens_N = np.asanyarray(tokens_N)
    out = np.empty(max(len(tokens_N) - 1, 0))
    for first in range(1, len(tokens_N), _BLOCK):
      before = max(0, first - max(self.order - 1, 1))  # enough context for the first target
      tokens: Any = tokens_N[before:first + _BLOCK].astype(np.int64)
      if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
        raise ValueError(f'tokens are {tokens.min()} to {tokens.max()}; expected 0 to {self.vocabulary - 1}')
      out[first - 1:first - 1 + _BLOCK] = -np.log(self._probabilities(tokens)[first - before - 1:])
    return out

  def _probabilities(self, tokens_N: np.ndarray) -> np.ndarray:
    """p of tokens 1 .. N-1 after the tokens before them."""
    if self.order == 0:
      return np.full(len(tokens_N) - 1, 1 / self.vocabulary)
    target = tokens_N[1:]
    p, context = self.orders[0].p[target].astype(np.float64), tokens_N[:-1]
    for shorter, longer in zip(self.orders, self.orders[1:]):
      known = context >= 0
      number = _lookup(longer.keys, np.where(known, context * self.vocabulary + target, -1))
      held = number >= 0
      p[known] *= shorter.backoff[context[known]]
      p[held] = longer.p[number[held]]
      # The longer context of target i+1 is the m-gram that ends at target i. One that closes a document has no
      # continuation in the trie, so that nothing reaches across.
      context = np.concatenate([[-1], number[:-1]])
    return p

  def numbers(self, state_BxM: np.ndarray, tokens_B: np.ndarray) -> np.ndarray:
    """The numbers of the 1-, 2-, ... order-grams that `tokens_B` complete, int64 [B, order]."""
    numbers = [np.asarray(tokens_B, np.int64)]
    for longer, context_B in zip(self.orders[1:], state_BxM.T):
      numbers.append(_lookup(longer.keys, np.where(context_B >= 0, context_B * self.vocabulary + numbers[0], -1)))
    return np.stack(numbers[:max(self.order, 1)], axis=1)

  def save(self, folder: pathlib.Path) -> None:
    """Writes a folder of arrays, which appears complete or not at all. Raises FileExistsError if it is there."""
    if folder.exists():
      raise FileExistsError(f'{folder} already exists')
    temporary = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    try:
      temporary.mkdir(parents=True)
      for m, order in enumerate(self.orders, 1):
        for field in dataclasses.fields(order):
          if (array := getattr(order, field.name)) is not None:
            with files.naming(temporary), open(temporary / f'{m}.{field.name}.npy', 'wb') as file:
              np.save(file, array)
              file.flush()
              os.fsync(file.fileno())
      files.write_sealed(temporary / _META, {
          'vocabulary': self.vocabulary, 'end': self.end, 'order': self.order, 'smoothing': self.smoothing,
          'sizes': [len(order.p) for order in self.orders],
          'sha256': {path.name: _sha256(path) for path in sorted(temporary.glob('*.npy'))}})
      os.rename(temporary, folder)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def load(folder: pathlib.Path) -> NGram:
  """The model that `save` wrote, its arrays mapped into memory.

  Raises:
    ConfigError: there is none, or it is not as it was written.
  """
  try:
    meta = sealed.opened(json.loads((folder / _META).read_text(encoding='utf-8')), folder / _META)
    for name, digest in meta.pop('sha256', {}).items():
      if _sha256(folder / pathlib.Path(name).name) != digest:
        raise ValueError(f'{name} is not as it was written')
    orders = []
    for m, size in enumerate(meta.pop('sizes'), 1):
      keys, p, backoff = (None if m == 1 and name == 'keys' else
                          np.load(folder / f'{m}.{name}.npy', mmap_mode='r') for name in ('keys', 'p', 'backoff'))
      if {len(array) for array in (keys, p, backoff) if array is not None} != {size}:
        raise ValueError(f'order {m} does not hold {size} n-grams')
      orders.append(Order(keys, p, backoff))  # type: ignore[arg-type]  # only keys may be None
    return NGram(**meta, orders=tuple(orders))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ConfigError(f"n-gram model '{folder}' cannot be read ({getattr(error, 'strerror', None) or error}); expected "
                      f'a folder written by experiments.count') from None


def check(order: int, smoothing: str) -> None:
  """Raises ConfigError on an order or a smoothing that there is not."""
  if order not in ORDERS:
    raise ConfigError(f'the order is {order}; expected {ORDERS[0]} to {ORDERS[-1]}, nearest is '
                      f'{min(ORDERS, key=lambda known: abs(known - order))}')
  if smoothing not in SMOOTHINGS:
    raise ConfigError(f"the smoothing is '{smoothing}'; expected one of {', '.join(SMOOTHINGS)}"
                      f'{nearest(smoothing, SMOOTHINGS)}')


def count(tokens_N: np.ndarray, *, vocabulary: int, end: int, order: int, smoothing: str = 'kneser_ney') -> NGram:
  """Counts and smooths the n-grams of a split of tokens, `end d_1 end d_2 ... d_n end` (see framework.data.corpus).

  The tokens may be a memory map. Memory: 8 bytes a token where `order` tokens fit into 64 bits (bytes and characters
  always do), else about 40, and 60 bytes a distinct n-gram.

  Args:
    vocabulary: V, `end` included; tokens the text lacks get a share of what smoothing leaves over.
    order: tokens of an n-gram, 0 (uniform) to 8.
    smoothing: 'kneser_ney' or 'backoff'.
  """
  check(order, smoothing)
  V = vocabulary
  if order == 0:
    return NGram(V, end, order, smoothing, ())
  raw_V = _histogram(tokens_N, V)
  seen = np.flatnonzero(raw_V)
  raw_V[int(tokens_N[0])] -= 1  # the first token is no target
  if raw_V.sum() == 0:
    raise ConfigError('the text has no token after its first; expected at least 1')
  tries = _trie(tokens_N, seen, V, end, order) if order > 1 else []
  suffixes = _suffixes(tries, V)
  kneser_ney = smoothing == 'kneser_ney'

  # Order 1 is discounted too, in favour of the uniform distribution.
  counts: Any = np.bincount(suffixes[0], minlength=V) if kneser_ney and order > 1 else raw_V
  taken = _discounts(counts, kneser_ney)[np.minimum(counts, 3)]
  p_below = (counts - taken) / counts.sum() + taken.sum() / counts.sum() / V
  begins = np.arange(V) == end
  orders, keys_below = [], None
  for m, (level, suffix) in enumerate(zip(tries, suffixes), 2):
    begins = begins[level.parent]
    counts = level.raw
    if kneser_ney and m < order:
      counts = np.where(begins, counts, np.bincount(suffixes[m - 1], minlength=len(counts)))
    discounts = _discounts(counts, kneser_ney)
    p, backoff = (_kneser_ney if kneser_ney else _backoff)(counts, discounts, level.parent, p_below, suffix, V)
    orders.append(Order(keys_below, p_below.astype(np.float32), backoff.astype(np.float32)))
    p_below, keys_below = p, level.keys
  orders.append(Order(keys_below, p_below.astype(np.float32), np.ones(len(p_below), np.float32)))
  return NGram(V, end, order, smoothing, tuple(orders))


# Smoothing


def _discounts(counts: np.ndarray, modified: bool) -> np.ndarray:
  """What is taken from a count of 0, 1, 2 and more.

  Modified: Chen and Goodman 1998, equation 26. Else the same of all counts: Ney et al. 1994.
  """
  n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
  if not modified:
    d = n1 / (n1 + 2 * n2) if n1 and n2 else FALLBACK[0]
    return np.array([0.0, d, d, d])
  if min(n1, n2, n3, n4) == 0:
    return np.array([0.0, *FALLBACK])
  y = n1 / (n1 + 2 * n2)
  discounts = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
  usable = (discounts[1:] > 0).all() and (discounts <= np.arange(4)).all()
  return discounts if usable else np.array([0.0, *FALLBACK])


def _kneser_ney(counts, discounts, parent, p_below, suffix, V):
  """(p of every n-gram, back-off weight of every n-gram one shorter)."""
  taken = discounts[np.minimum(counts, 3)]
  total = np.bincount(parent, counts, len(p_below))
  backoff = np.divide(np.bincount(parent, taken, len(p_below)), total, out=np.ones(len(p_below)), where=total > 0)
  return (counts - taken) / total[parent] + backoff[parent] * p_below[suffix], backoff


def _backoff(counts, discounts, parent, p_below, suffix, V):
  """As `_kneser_ney`; what is taken goes to the tokens that never followed, by their probability one order below."""
  taken = discounts[np.minimum(counts, 3)]
  taken[np.bincount(parent, minlength=len(p_below))[parent] == V] = 0  # every token followed: there is none to give to
  total = np.bincount(parent, counts, len(p_below))
  left = 1 - np.bincount(parent, p_below[suffix], len(p_below))
  given = np.divide(np.bincount(parent, taken, len(p_below)), total, out=np.zeros(len(p_below)), where=total > 0)
  backoff = np.divide(given, left, out=np.ones(len(p_below)), where=(total > 0) & (left > 0))
  return (counts - taken) / total[parent], backoff


# Counting


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
  """The m-grams of the text: sorted keys, the number of each one's prefix, and how often each occurs."""
  keys: np.ndarray
  parent: np.ndarray
  raw: np.ndarray


def _histogram(tokens_N: np.ndarray, V: int) -> np.ndarray:
  total = np.zeros(V, np.int64)
  for first in range(0, len(tokens_N), _BLOCK):
    total += np.bincount(tokens_N[first:first + _BLOCK], minlength=V)
  return total


def _trie(tokens_N: np.ndarray, seen: np.ndarray, V: int, end: int, order: int) -> list[_Level]:
  """The levels 2 .. order, from one sort of the windows of `order` tokens that begin at each place.

  A window is one or more uint64 words of fields of `bits` bits, the first token in the highest; a token is its rank
  among those `seen`, from 1, and 0 is the place after a document's end.
  """
  bits = int(len(seen)).bit_length()
  per_word = 64 // bits
  fields = [divmod(m, per_word) for m in range(order)]  # word, place from the left
  words = fields[-1][0] + 1
  rank_V = np.zeros(V, np.uint64)
  rank_V[seen] = np.arange(1, len(seen) + 1, dtype=np.uint64)

  windows = np.zeros((words, len(tokens_N) - 1), np.uint64)
  for first in range(0, len(tokens_N) - 1, _BLOCK):
    tokens = np.asarray(tokens_N[first:first + _BLOCK + order - 1])
    size = min(_BLOCK, len(tokens_N) - 1 - first)
    ranks = np.concatenate([rank_V[tokens], np.zeros(order, np.uint64)])
    ends = np.concatenate([tokens == end, np.zeros(order, bool)])
    inside = np.ones(size, bool)
    for m, (word, place) in enumerate(fields):
      field = np.where(inside, ranks[m:m + size], np.uint64(0))
      windows[word, first:first + size] |= field << np.uint64(bits * (per_word - 1 - place))
      if m:
        inside &= ~ends[m:m + size]
  if words == 1:
    windows[0].sort()
  else:
    windows = windows[:, np.lexsort(windows[::-1])]
  changed = np.zeros(windows.shape[1], bool)
  changed[0] = True
  for column in windows:
    changed[1:] |= column[1:] != column[:-1]
  distinct = np.flatnonzero(changed)
  times = np.diff(distinct, append=len(changed))
  rows = windows[:, distinct]
  del windows, changed, distinct

  levels = []
  new = np.zeros(len(times), bool)
  new[0] = True
  for m, (word, place) in enumerate(fields):
    field = (rows[word] >> np.uint64(bits * (per_word - 1 - place))) & np.uint64((1 << bits) - 1)
    new[1:] |= field[1:] != field[:-1]
    real = field > 0
    token = seen[np.maximum(field, 1).astype(np.int32) - 1]
    if m == 0:
      number = token
      continue
    begins = np.flatnonzero(new & real)
    parent = number[begins]
    levels.append(_Level(parent.astype(np.uint64) * np.uint64(V) + token[begins].astype(np.uint64),
                         parent.astype(np.int32), np.add.reduceat(times * real, begins)))
    number = np.cumsum(new & real) - 1
  return levels


def _suffixes(levels: list[_Level], V: int) -> list[np.ndarray]:
  """For the levels 2, 3, ...: the number, one level below, of each m-gram without its first token."""
  suffixes = []
  for below, level in zip([None, *levels], levels):
    token = (level.keys % np.uint64(V)).astype(np.int64)
    if below is None:
      suffixes.append(token)
    else:
      keys = suffixes[-1][level.parent].astype(np.uint64) * np.uint64(V) + token.astype(np.uint64)
      suffixes.append(np.searchsorted(below.keys, keys).astype(np.int32))
  return suffixes


def _lookup(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """The place of each wanted key, int64; -1 where it is not or is negative. In order, which spares the memory."""
  if not len(keys):
    return np.full(len(wanted), -1)
  order = np.argsort(wanted)
  asked = wanted[order].astype(np.uint64)  # -1 becomes the greatest, which no key is
  place = np.searchsorted(keys, asked)
  out = np.empty(len(wanted), np.int64)
  out[order] = np.where(keys[np.minimum(place, len(keys) - 1)] == asked, place, -1)
  return out
