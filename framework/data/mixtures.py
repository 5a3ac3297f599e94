"""Several texts read in given shares: which window of which text a row reads is a function of (seed, step, row).

Row g of a run, counted over all steps, belongs to the text in whose part of [0, 1) the fractional part of g / phi + s
lies, the parts being as long as the shares and s that of the seed. So of any rows that follow each other each text has
its share to within a few, and how many rows before g were a text's has a closed form: that count says which epoch of the
text row g is in, and which place of its permutation it reads. Nothing has to be remembered, whatever the number of hosts.

The held-out loss of a mixture is the mean of those of its texts by their shares, which is what training lowers.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from framework.config import Data
from framework.data.windows import EPOCH, Batch, Text, Windows

RING = 2**32
GOLDEN = 0x9E3779B9  # RING over the golden ratio: odd, so that every place of the ring comes once a turn
_SHIFT, _TEXT = 0x85EBCA6B, 0xC2B2AE35  # odd, so that seeds and texts have places and permutations of their own


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
  """The splits of several texts, one behind the other; the interface is that of framework.data.splits.Split."""
  names: tuple[str, ...]
  weights: tuple[float, ...]  # shares of the windows that are read, 1 in all
  parts: tuple[Any, ...]

  @functools.cached_property
  def firsts(self) -> np.ndarray:
    """int64 [texts + 1]: the first token of each text, and the end."""
    return np.cumsum([0, *(part.tokens for part in self.parts)])

  @property
  def tokens(self) -> int:
    return int(self.firsts[-1])

  @property
  def begin(self) -> int | None:
    return getattr(self.parts[0], 'begin', None)

  @property
  def bytes(self) -> int:
    return sum(part.bytes for part in self.parts)

  @property
  def documents(self) -> int:
    return sum(part.documents for part in self.parts)

  @functools.cached_property
  def starts(self) -> np.ndarray:
    return np.concatenate([part.starts + first for part, first in zip(self.parts, self.firsts)])

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop), clipped to the split."""
    pieces = [part.read(start - first, stop - first) for part, first in zip(self.parts, self.firsts.tolist())
              if start < first + part.tokens and stop > first]
    return np.concatenate(pieces or [self.parts[0].read(0, 0)])

  def rows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
    """[B, length]: `length` tokens from each start, all inside the split."""
    return np.stack([self.read(int(start), int(start) + length) for start in starts_B])


def floor_sum(n: int, m: int, a: int, b: int) -> int:
  """The sum of floor((a i + b) / m) over i = 0 .. n - 1, in O(log m) (Graham, Knuth and Patashnik, section 3.5)."""
  total = 0
  while n:
    total += a // m * (n * (n - 1) // 2) + b // m * n
    a, b = a % m, b % m
    n, b = divmod(a * n + b, m)
    a, m = m, a
  return total


class Shares:
  """The texts of the rows of a run."""

  def __init__(self, weights: tuple[float, ...], seed: int):
    self.bounds = [round(RING * share) for share in np.cumsum([0.0, *weights])]
    self.bounds[-1] = RING
    self.shift = seed * _SHIFT % RING

  def below(self, rows: int, bound: int) -> int:
    """How many of the first `rows` rows lie below a place of the ring."""
    over = floor_sum(rows, RING, GOLDEN, self.shift + RING - bound) - rows  # of (GOLDEN i + shift - bound)
    return floor_sum(rows, RING, GOLDEN, self.shift) - over

  def counts(self, rows: int) -> np.ndarray:
    """int64 [texts]: how many of the first `rows` rows are each text's."""
    return np.diff([self.below(rows, bound) for bound in self.bounds])

  def of(self, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """([rows] the text of each row from `first` on, [rows] how many rows before it are that text's)."""
    place = np.array([(GOLDEN * (first + i) + self.shift) % RING for i in range(rows)], np.int64)
    text = np.searchsorted(np.array(self.bounds[1:], np.int64), place, side='right')
    before, rank = self.counts(first), np.zeros(rows, np.int64)
    for i in range(len(before)):
      mine = text == i
      rank[mine] = before[i] + np.arange(mine.sum())
    return text, rank


@dataclasses.dataclass(frozen=True, eq=False)
class MixedWindows(Windows):
  """The windows of a mixture, numbered one text after the other; none crosses from one text to the next."""
  split: Any  # a Mixture

  @functools.cached_property
  def parts(self) -> tuple[Windows, ...]:
    """The windows of each text."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(Windows)}
    return tuple(Windows(**fields | {'split': part}) for part in self.split.parts)

  @functools.cached_property
  def firsts(self) -> np.ndarray:
    """int64 [texts + 1]: the first window of each text, and their number."""
    return np.cumsum([0, *(part.count for part in self.parts)])

  @property
  def count(self) -> int:
    """Windows of one reading of every text."""
    return int(self.firsts[-1])

  @property
  def tokens_per_byte(self) -> float:
    """Of the mixture."""
    return 1 / sum(weight / part.tokens_per_byte for weight, part in zip(self.split.weights, self.parts))

  def epochs(self, rows: int, seed: int) -> dict[str, float]:
    """How often the first `rows` rows of a run read each text."""
    counts = Shares(self.split.weights, seed).counts(rows)
    return {name: round(float(n) / part.count, 6) for name, n, part in zip(self.split.names, counts, self.parts)}

  def drawn(self, batch: int, seed: int, step: int, rows: slice = slice(None)) -> np.ndarray:
    text_B, rank_B = Shares(self.split.weights, seed).of(step * batch, batch)
    shuffle, out = grain.experimental.index_shuffle, []
    for text, rank in zip(text_B[rows].tolist(), rank_B[rows].tolist()):
      windows_ = self.parts[text].count
      epoch, place = divmod(rank, windows_)
      key = (seed + text * _TEXT + EPOCH * epoch) % RING
      out.append(self.firsts[text] + shuffle(place, max_index=windows_ - 1, seed=key, rounds=4))
    return np.array(out, np.int64)

  def batch(self, windows_B: np.ndarray, phase_B: np.ndarray | int = 0) -> Batch:
    windows_B = np.asarray(windows_B, np.int64)
    text_B = np.searchsorted(self.firsts[1:], windows_B, side='right')
    out: Batch = {}
    for text in np.unique(text_B).tolist():
      mine = text_B == text
      arrays = self.parts[text].batch(windows_B[mine] - self.firsts[text], phase_B)
      arrays['start'] = (arrays['start'] + np.uint64(self.split.firsts[text])).astype(np.uint32)
      for name, x in arrays.items():
        out.setdefault(name, np.zeros((len(windows_B), *x.shape[1:]), x.dtype))[mine] = x
    return out

  def each(self, batch: int, limit: int = 0, rows: slice = slice(None)) -> Iterator[Batch]:
    raise NotImplementedError('each text of a mixture is evaluated by itself, see framework.training.evaluation')


def trained_on(split: Text, end: int, d: Data, left_out: tuple[int, int] = (0, 0)) -> Windows:
  """What a run with the section `data` trains on."""
  return (MixedWindows if isinstance(split, Mixture) else Windows).of(split, end, d, left_out)


def evaluated_on(split: Text, end: int, window: int, stride: int, packed: bool) -> Windows:
  """Every target of a split once."""
  return (MixedWindows if isinstance(split, Mixture) else Windows)(split, end, window, stride, packed)


def sources(text: Windows, targets: int, rows: int, seed: int, final: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """What a run says of each text of its mixture; {} of any other text.

  Args:
    targets, rows: that were trained on. final: the last evaluation.
  """
  if not isinstance(text, MixedWindows):
    return {}
  counts, out = Shares(text.split.weights, seed).counts(rows), {}
  for name, weight, part, n in zip(text.split.names, text.split.weights, text.parts, counts.tolist()):
    read = round(targets * n / max(1, rows))
    losses = final.get('sources', {}).get(name, {})
    out[name] = {'weight': weight, 'tokens': read, 'tokens_unique': min(read, part.split.tokens - 1),
                 'epochs': n / part.count} | {key: losses[key] for key in ('nats_per_token', 'bits_per_byte') if losses}
  return out
