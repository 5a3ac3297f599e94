"""Tokens with the starts of their documents, on disk and in memory: what windows read, see framework.data.windows.Text.

`end d_1 end d_2 ... end d_n end`: as an input, `end` opens the document that follows it; as a target, it closes the one
before. `starts` holds the place of each document's opening `end`.
"""

from collections.abc import Iterable
import dataclasses
import itertools

import numpy as np

from framework.data import tokenizer as tokenizers


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Tokens on disk. Nothing stays open or mapped between reads, so memory does not grow with what has been read."""
  path: str
  dtype: np.dtype
  tokens: int
  starts: np.ndarray = dataclasses.field(repr=False)  # int64 [documents], increasing
  bytes: int  # of text, in UTF-8
  documents: int
  begin: int | None = None  # token that is read in the place of the opening `end`; None: that itself

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop), clipped to the split, in the type they are stored in."""
    start = max(0, start)
    count = max(0, min(stop, self.tokens) - start)
    return self.rows(np.array([start]), count)[0]

  def rows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
    """[B, length]: `length` tokens from each start, all inside the split."""
    tokens_BxL = np.empty((len(starts_B), length), self.dtype)
    with open(self.path, 'rb', buffering=0) as file:
      for row_L, start in zip(tokens_BxL, starts_B):
        file.seek(int(start) * self.dtype.itemsize)
        if length and file.readinto(memoryview(row_L).cast('B')) != row_L.nbytes:
          raise OSError(f'{self.path} ends before token {start + length}; it held {self.tokens} when it was opened')
    return tokens_BxL


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
  """Tokens in memory."""
  array: np.ndarray = dataclasses.field(repr=False)  # int32 [tokens]
  starts: np.ndarray = dataclasses.field(repr=False)  # int64 [documents], increasing
  bytes: int  # of text, in UTF-8
  begin: int | None = None  # as of a Split

  @property
  def tokens(self) -> int:
    return len(self.array)

  @property
  def documents(self) -> int:
    return len(self.starts)

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop), clipped to the split."""
    return self.array[max(0, start):max(0, stop)]

  def rows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
    """int32 [B, length]: `length` tokens from each start, all inside the split."""
    return self.array[np.asarray(starts_B, np.int64)[:, None] + np.arange(length)]


def held(texts: Iterable[tuple[str, str]], tokenizer: tokenizers.Tokenizer) -> Held:
  """(document, text) pairs, see framework.data.texts.read, as tokens in memory. Raises ConfigError on text that the
  tokenizer cannot hold."""
  parts, starts, tokens, size = [], [], 0, 0
  end = np.array([tokenizer.end], np.int32)
  for _, blocks in itertools.groupby(texts, key=lambda pair: pair[0]):
    starts.append(tokens)
    parts.append(end)
    tokens += 1
    for ids, count in tokenizer.document(text for _, text in blocks):
      parts.append(np.asarray(ids, np.int32))
      tokens, size = tokens + len(ids), size + count
  return Held(np.concatenate([*parts, end]), np.array(starts, np.int64), size, tokenizer.begin)
