"""Held-out documents that are trained on as well, word for word: their loss says what is remembered, not what is
predicted.
"""

import hashlib
import itertools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.data.sources import Source

ENDS = 8  # tokens at either end of a document that are compared before all of it is
GROUP = 1 << 25  # tokens whose documents are looked at together

log = logging.getLogger(__name__)


def warn(train: Any, validation: Any, sources: Sequence[Source]) -> None:
  """Logs one line if documents of `validation` stand in `train` too, with the files among `sources` that are equal."""
  both = shared(train, validation)
  if not both.any():
    return
  lengths = np.diff(validation.starts, append=validation.tokens - 1)
  pairs = _equal(sources)
  named = f'; equal files: {pairs[0][0]!r} and {pairs[0][1]!r}' + f', {len(pairs) - 1} more pairs' * (len(pairs) > 1) \
      if pairs else ''
  log.warning('%d of %d held-out documents, %.3g %% of the held-out tokens, are also trained on%s', both.sum(),
              len(both), 100 * lengths[both].sum() / lengths.sum(), named)


def shared(train: Any, validation: Any) -> np.ndarray:
  """bool [documents of validation]: whether one of `train` (both `corpus.Split`) has the same tokens."""
  keys = [_keys(split) for split in (train, validation)]
  seen = set(_digests(train, np.isin(keys[0], keys[1])).values())
  out = np.zeros(len(keys[1]), bool)
  for number, digest in _digests(validation, np.isin(keys[1], keys[0])).items():
    out[number] = digest in seen
  return out


def _documents(split: Any) -> tuple[np.ndarray, np.ndarray]:
  """The first token of each document of a split, and the one after its last."""
  return split.starts + 1, np.append(split.starts[1:], split.tokens - 1)


def _keys(split: Any) -> np.ndarray:
  """uint64 [documents] that are equal for equal documents, and seldom else."""
  first, end = _documents(split)
  key = (end - first).astype(np.uint64)
  parts = np.flatnonzero(np.diff(first // GROUP)) + 1
  for some in np.split(np.arange(len(first)), parts):
    tokens = np.memmap(split.path, split.dtype, 'r')  # anew: what is mapped counts as memory until it is let go
    for i in range(ENDS):
      for place in (np.minimum(first[some] + i, end[some] - 1), np.maximum(end[some] - 1 - i, first[some])):
        key[some] = key[some] * np.uint64(0x9E3779B97F4A7C15) + tokens[place]
  return key


def _digests(split: Any, chosen: np.ndarray) -> dict[int, bytes]:
  first, end = _documents(split)
  return {number: hashlib.sha256(split.read(int(first[number]), int(end[number])).tobytes()).digest()
          for number in np.flatnonzero(chosen).tolist()}


def _equal(sources: Sequence[Source]) -> list[tuple[str, str]]:
  """The names of files with the same content, each beside the first of them."""
  def content(source: Source) -> bytes:
    with pathlib.Path(source.path).open('rb') as file:
      return hashlib.file_digest(file, 'sha256').digest()

  first: dict[bytes, str] = {}
  pairs = []
  for _, group in itertools.groupby(sorted(sources, key=lambda source: source.size), key=lambda source: source.size):
    alike = list(group)
    for source in alike if len(alike) > 1 and alike[0].size else ():
      name = first.setdefault(content(source), source.path)
      pairs += [(name, source.path)] if name != source.path else []
  return pairs
