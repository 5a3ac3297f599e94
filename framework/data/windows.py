"""Which tokens a step reads and which it predicts: pure functions of (seed, step), so that the place of a run in its
data is the number of its step, whatever the number of hosts, devices and threads.

Of a split of n tokens, tokens 1 to n-1 are targets. They are cut into blocks of `stride` S; window w predicts block
[1 + wS, min(1 + (w+1)S, n)) and reads the L = `window` tokens before the block's last. So every token but the first is
a target exactly once an epoch, with at least L-S tokens of context where the split has them.
"""

import sys
from collections.abc import Iterator

import grain
import numpy as np

from framework.data.corpus import Split

Batch = dict[str, np.ndarray]
GROUP_TOKENS = 2**18  # most tokens of the batches that the loader makes at once


def count(n: int, stride: int) -> int:
  """The number of windows of a split of n tokens; the last may predict fewer than `stride`."""
  return max(0, -(-(n - 1) // stride))


def batch(split: Split, end: int, windows_B: np.ndarray, window: int, stride: int, packed: bool) -> Batch:
  """The given windows of `split`; `end` is its end-of-document token.

  Returns:
    tokens, targets: int32 [B, L]; targets[b, i] is the token after tokens[b, i].
    weights: float32 [B, L], 1 on the targets of the window's own block and 0 on its context and padding.
    segments: int32 [B, L]; packed: 1 for the window's first document, one more from each later `end` on; else 1.
      0 is padding, which only a split shorter than a window has, on the right.
    positions: int32 [B, L], from 0 at the start of each segment.
    start: uint32 [B], the place of the window's first token in the split, modulo 2^32: it keys rollouts.
  """
  windows_B = np.asarray(windows_B, np.int64)
  last_B = np.minimum((windows_B + 1) * stride, split.tokens - 1)  # the block's last token
  start_B = np.maximum(last_B - window, 0)
  real = min(window, split.tokens - 1)  # the same in every window: only a short split pads
  tokens_BxT = split.rows(start_B, real + 1)

  def padded(filler: int) -> np.ndarray:
    return np.full((len(windows_B), window), filler, np.int32)

  tokens_BxL, targets_BxL, segments_BxL, positions_BxL = padded(end), padded(end), padded(0), padded(0)
  tokens_BxL[:, :real] = tokens_BxT[:, :-1]
  targets_BxL[:, :real] = tokens_BxT[:, 1:]
  place_L = np.arange(window, dtype=np.int32)
  segments_BxL[:, :real] = 1
  positions_BxL[:, :real] = place_L[:real]
  if packed:
    opens_BxT = tokens_BxL[:, :real] == end
    opens_BxT[:, 0] = True
    segments_BxL[:, :real] = np.cumsum(opens_BxT, axis=1)
    positions_BxL[:, :real] -= np.maximum.accumulate(np.where(opens_BxT, place_L[:real], 0), axis=1)
  target_BxL = start_B[:, None] + 1 + place_L
  weights_BxL = (target_BxL > windows_B[:, None] * stride) & (target_BxL <= last_B[:, None])
  return {'tokens': tokens_BxL, 'targets': targets_BxL, 'weights': weights_BxL.astype(np.float32),
          'segments': segments_BxL, 'positions': positions_BxL, 'start': start_B.astype(np.uint32)}


_arrays = batch  # under a name that no parameter below hides


def indices(windows: int, batch: int, seed: int, step: int, rows: slice = slice(None)) -> np.ndarray:
  """int64 [rows]: the windows that these rows of global batch `step` read.

  Equals `grain.MapDataset.range(windows).shuffle(seed).repeat().batch(batch)[step][rows]`: every epoch is a permutation
  of its own, and a batch may end one epoch and begin the next. It asks grain's permutation directly, which takes a
  quarter of the time.
  """
  shuffle = grain.experimental.index_shuffle
  places = (divmod(step * batch + row, windows) for row in range(batch)[rows])
  return np.array([shuffle(place, max_index=windows - 1, seed=(seed + epoch) % 2**32, rounds=4)
                   for epoch, place in places], np.int64)


def loader(split: Split, end: int, *, window: int, stride: int, packed: bool, batch: int, seed: int,
           start_step: int = 0, rows: slice = slice(None), prefetch: int = 4) -> Iterator[Batch]:
  """Training batches `start_step`, `start_step + 1`, ... without end, made ahead by a thread.

  Args:
    rows: this host's part of the global batch of `batch` windows.
    prefetch: batches made ahead; 0 makes each when it is asked for.

  Returns:
    An iterator of the arrays of the function `batch`, and `rows`, int32 [rows]: the place of each in the global batch,
    which keys its dropout. Its `close()` stops the thread.
  """
  windows = count(split.tokens, stride)
  rows_B = np.arange(batch, dtype=np.int32)[rows]
  B = len(rows_B)
  # Small batches are made several at a time: their cost is Python's, and on a CPU it is taken from the training step.
  group = max(1, min(16, GROUP_TOKENS // max(1, B * window)))

  def make(number: int) -> list[Batch]:
    steps = range(number * group, (number + 1) * group)
    picked = np.concatenate([indices(windows, batch, seed, step, rows) for step in steps])
    arrays = _arrays(split, end, picked, window, stride, packed)
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


def evaluation_batches(split: Split, end: int, *, window: int, stride: int, packed: bool, batch: int,
                       limit: int = 0, rows: slice = slice(None)) -> Iterator[Batch]:
  """Every window once and in order, or `limit` windows spread evenly over the split; then a last batch is filled up
  with rows of weight 0, so that all batches have one shape. The arrays are those of `loader`."""
  windows = count(split.tokens, stride)
  picked = min(limit or windows, windows)
  rows_B = np.arange(batch, dtype=np.int32)[rows]
  for first in range(0, picked, batch):
    place_B = first + rows_B.astype(np.int64)
    arrays = _arrays(split, end, np.minimum(place_B, picked - 1) * windows // picked, window, stride, packed)
    arrays['weights'][place_B >= picked] = 0
    yield {**arrays, 'rows': rows_B}
