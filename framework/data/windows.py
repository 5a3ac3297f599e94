"""Which tokens a step reads and which it predicts: pure functions of (seed, step), so that the place of a run in its
data is the number of its step, whatever the number of hosts, devices and threads.

Of a split of n tokens, tokens 1 to n-1 are targets. They are cut into blocks of `stride` S; window w predicts block
[1 + wS, min(1 + (w+1)S, n)) and reads the L = `window` tokens before the block's last. So every token but the first is
a target exactly once an epoch, with at least L-S tokens of context where the split has them.

Three choices beside that: each epoch may begin its blocks at a phase of its own, so that a token meets other contexts;
all targets of a window may be scored, then each token is one L / S times; the first targets of every window may go
unscored, a stride in other words where S leaves them out anyway. And a fold of the documents may be left out.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

import grain
import numpy as np

from framework.config import ConfigError, Data

Batch = dict[str, np.ndarray]
# 2^32 over the golden ratio, whose multiples keep far apart: seeds that differ by less than 10,000 share no key in the
# first 100,000 epochs.
EPOCH = 0x9E3779B9
GROUP_TOKENS = 2**18  # most tokens of the batches that the loader makes at once


class Text(Protocol):
  """What windows ask of a split, be it of a corpus, endless or a study's own."""

  @property
  def tokens(self) -> int:
    """How many there are."""

  @property
  def bytes(self) -> int:
    """Of text, in UTF-8."""

  @property
  def starts(self) -> np.ndarray:
    """int64 [documents], the first token of each."""

  def rows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
    """[B, length]: `length` tokens from each start, all inside the split."""


def count(n: int, stride: int, random_phase: bool = False) -> int:
  """The number of windows of a split of n tokens; the last may predict fewer than `stride`, and with a random phase
  the first too, and the last none."""
  return max(0, -(-(n - 1) // stride)) + random_phase


ORDER = 2  # of the batches of a run, raised when they change; 1 had the later epochs of a seed as the first of the next


def indices(windows: int, batch: int, seed: int, step: int, rows: slice = slice(None)) -> np.ndarray:
  """int64 [rows]: the windows that these rows of global batch `step` read.

  Every epoch of every seed is a permutation of its own, and a batch may end one epoch and begin the next. The first
  epoch is that of `grain.MapDataset.range(windows).shuffle(seed)`, by a direct call of grain's permutation, which takes
  a quarter of the time. A later epoch's key lies `EPOCH` after the one before it: were it the next, as in grain, the
  second epoch of a seed would be the first of the next seed.
  """
  shuffle = grain.experimental.index_shuffle
  places = (divmod(step * batch + row, windows) for row in range(batch)[rows])
  return np.array([shuffle(place, max_index=windows - 1, seed=(seed + EPOCH * epoch) % 2**32, rounds=4)
                   for epoch, place in places], np.int64)


def phases(windows: int, batch: int, seed: int, step: int, stride: int, rows: slice = slice(None)) -> np.ndarray:
  """int64 [rows]: the phase, uniform in [0, S), of the epoch that each of these rows of global batch `step` is in."""
  epochs = [(step * batch + row) // windows for row in range(batch)[rows]]
  drawn = {epoch: np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(stride) for epoch in set(epochs)}
  return np.array([drawn[epoch] for epoch in epochs], np.int64)


def folds(split: Text, parts: int) -> np.ndarray:
  """int64 [F+1]: the first token of each of F folds of whole documents, of about equal size, and the end of the last.

  Raises:
    ConfigError: the split has too few documents.
  """
  starts = np.asarray(split.starts)
  wanted = np.arange(1, parts) * split.tokens / parts
  cuts = starts[np.abs(starts[:, None] - wanted).argmin(0)] if len(starts) else starts
  places = np.concatenate([[0], cuts, [split.tokens]])
  if (np.diff(places) <= 0).any():
    raise ConfigError(f'data.folds is {parts}; the training text has {len(starts)} documents, too few or too uneven: '
                      f'expected fewer folds, nearest is {max(0, min(parts, len(starts)) - 1)}')
  return places


def touching(split: Text, first: int, end: int, window: int, stride: int) -> tuple[int, int]:
  """The range [low, high) of the windows that read, or have as a target, any of the tokens first .. end-1."""
  total = count(split.tokens, stride)
  low = max(0, -(-first // stride) - 1)  # the first whose block's last token is at `first` or later
  high = -(-(end + window) // stride) - 1  # the first that begins at `end` or later
  if split.tokens - 1 - window < end:  # where the last window begins, which is cut short
    high = total
  return int(min(low, total)), int(min(max(low, high), total))


def skip(windows_B: np.ndarray, left_out: tuple[int, int]) -> np.ndarray:
  """The windows of those numbers when the range `left_out` is not counted."""
  low, high = left_out
  return windows_B + (high - low) * (windows_B >= low)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """The windows of a split, in order: each reads L = `window` tokens and predicts the last S = `stride` of them.

  end: the end-of-document token. packed: attention stays inside a document. random_phase: each epoch begins its blocks
  at a phase of its own. scored: 'stride', the targets of the window's own block, or 'window', all of the window up to
  the block's last. unscored: share of the window whose first targets are not scored. left_out: a range of windows that
  training does not read.
  """
  split: Text
  end: int
  window: int
  stride: int
  packed: bool = True
  random_phase: bool = False
  scored: str = 'stride'
  unscored: float = 0.0
  left_out: tuple[int, int] = (0, 0)

  @classmethod
  def of(cls, split: Text, end: int, d: Data, left_out: tuple[int, int] = (0, 0)) -> 'Windows':
    """What a run with the section `data` trains on."""
    return cls(split, end, d.window, d.stride, d.packed, d.random_phase, d.scored, d.unscored, left_out)

  @property
  def count(self) -> int:
    """Windows of an epoch of training."""
    return count(self.split.tokens, self.stride, self.random_phase) - (self.left_out[1] - self.left_out[0])

  @property
  def tokens_per_byte(self) -> float:
    """Of the text."""
    return (self.split.tokens - 1) / self.split.bytes

  def drawn(self, batch: int, seed: int, step: int, rows: slice = slice(None)) -> np.ndarray:
    """int64 [rows]: the windows that these rows of global batch `step` read, see `indices`."""
    return skip(indices(self.count, batch, seed, step, rows), self.left_out)

  def batch(self, windows_B: np.ndarray, phase_B: np.ndarray | int = 0) -> Batch:
    """The given windows.

    Args:
      phase_B: tokens, 0 to S-1, by which the blocks of a window's epoch begin earlier.

    Returns:
      tokens, targets: int32 [B, L]; targets[b, i] is the token after tokens[b, i].
      weights: float32 [B, L], 1 on the targets that are scored and 0 on context and padding.
      segments: int32 [B, L]; packed: 1 for the window's first document, one more from each later `end` on; else 1.
        0 is padding, which only a split shorter than a window has, on the right.
      positions: int32 [B, L], from 0 at the start of each segment.
      start: uint32 [B], the place of the window's first token in the split, modulo 2^32: it keys rollouts.
    """
    before_B = np.asarray(windows_B, np.int64) * self.stride - phase_B  # the last token before the block
    last_B = np.minimum(before_B + self.stride, self.split.tokens - 1)  # the block's last token
    start_B = np.maximum(last_B - self.window, 0)
    real = min(self.window, self.split.tokens - 1)  # the same in every window: only a short split pads
    tokens_BxT = self.split.rows(start_B, real + 1)

    def padded(filler: int) -> np.ndarray:
      return np.full((len(before_B), self.window), filler, np.int32)

    tokens_BxL, targets_BxL, segments_BxL, positions_BxL = padded(self.end), padded(self.end), padded(0), padded(0)
    tokens_BxL[:, :real] = tokens_BxT[:, :-1]
    targets_BxL[:, :real] = tokens_BxT[:, 1:]
    place_L = np.arange(self.window, dtype=np.int32)
    segments_BxL[:, :real] = 1
    positions_BxL[:, :real] = place_L[:real]
    opens_BxT = tokens_BxL[:, :real] == self.end
    begin = getattr(self.split, 'begin', None)
    if begin not in (None, self.end):
      tokens_BxL[:, :real][opens_BxT] = begin
    if self.packed:
      opens_BxT[:, 0] = True
      segments_BxL[:, :real] = np.cumsum(opens_BxT, axis=1)
      positions_BxL[:, :real] -= np.maximum.accumulate(np.where(opens_BxT, place_L[:real], 0), axis=1)
    target_BxL = start_B[:, None] + 1 + place_L
    # Counted from where the window would begin if no end of the split cut it short: so no token is scored once more.
    before_B = np.maximum(before_B + self.stride - self.window + round(self.unscored * self.window),
                          before_B if self.scored == 'stride' else 0)
    weights_BxL = (target_BxL > before_B[:, None]) & (target_BxL <= last_B[:, None])
    return {'tokens': tokens_BxL, 'targets': targets_BxL, 'weights': weights_BxL.astype(np.float32),
            'segments': segments_BxL, 'positions': positions_BxL, 'start': start_B.astype(np.uint32)}

  def batches(self, batch: int, seed: int, *, start_step: int = 0, rows: slice = slice(None), prefetch: int = 4,
              extra: Callable[[np.ndarray], Batch] | None = None) -> Iterator[Batch]:
    """Training batches `start_step`, `start_step + 1`, ... without end, made ahead by a thread.

    Args:
      rows: this host's part of the global batch of `batch` windows.
      prefetch: batches made ahead; 0 makes each when it is asked for.
      extra: further arrays of the given windows, which are added to their batch.

    Returns:
      An iterator of the arrays of the method `batch`, and `rows`, int32 [rows]: the place of each in the global batch,
      which keys its dropout. Its `close()` stops the thread.
    """
    rows_B = np.arange(batch, dtype=np.int32)[rows]
    B = len(rows_B)
    # Small batches are made several at a time: their cost is Python's, and on a CPU it is taken from the training step.
    group = max(1, min(16, GROUP_TOKENS // max(1, B * self.window)))

    def make(number: int) -> list[Batch]:
      steps = range(number * group, (number + 1) * group)
      picked = np.concatenate([self.drawn(batch, seed, step, rows) for step in steps])
      phase_B = np.concatenate([phases(self.count, batch, seed, step, self.stride, rows) for step in steps]) \
          if self.random_phase else 0
      arrays = self.batch(picked, phase_B) | (extra(picked) if extra else {})
      return [{name: x[i * B:(i + 1) * B] for name, x in arrays.items()} | {'rows': rows_B} for i in range(group)]

    # One thread: more would only take turns at the interpreter lock.
    options = grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=-(-prefetch // group))
    iterator = iter(grain.MapDataset.range(sys.maxsize).map(make).to_iter_dataset(options))
    iterator.set_state({'next_index': start_step // group})

    def one_by_one() -> Iterator[Batch]:
      try:
        yield from next(iterator)[start_step % group:]
        for batches in iterator:
          yield from batches
      finally:
        iterator.close()

    return one_by_one()

  def each(self, batch: int, limit: int = 0, rows: slice = slice(None)) -> Iterator[Batch]:
    """Every window once and in order, or `limit` windows spread evenly over the split, for evaluation; the last batch
    is filled up with rows of weight 0, so that all batches have one shape. The arrays are those of `batches`."""
    windows = count(self.split.tokens, self.stride)
    picked = min(limit or windows, windows)
    rows_B = np.arange(batch, dtype=np.int32)[rows]
    for first in range(0, picked, batch):
      place_B = first + rows_B.astype(np.int64)
      arrays = self.batch(np.minimum(place_B, picked - 1) * windows // picked)
      arrays['weights'][place_B >= picked] = 0
      yield {**arrays, 'rows': rows_B}
