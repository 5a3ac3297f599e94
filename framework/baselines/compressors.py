"""General compressors as predictors: what a held-out text costs one that has just compressed the training text."""

from collections.abc import Callable
import bz2
import gzip
import lzma

import numpy as np

PRIMING = 16 << 20  # bytes of training text, its last: more than any of them looks back, but for xz (64 MB)

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    'gzip': lambda data: gzip.compress(data, 9),
    'bz2': lambda data: bz2.compress(data, 9),
    'xz': lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def bits(name: str, training: bytes, text: bytes) -> int:
  """Bits that `text` adds to the compressed `training` text, of which the last 16 MB are taken."""
  compress, training = COMPRESSORS[name], training[-PRIMING:]
  return 8 * (len(compress(training + text)) - len(compress(training)))


def text_of(tokens_N: np.ndarray, table: tuple[bytes, ...]) -> bytes:
  """The bytes of tokens; the end of a document has none."""
  return b''.join(map(table.__getitem__, tokens_N.tolist()))
