"""Lossless compression of text by arithmetic coding under a model (Rissanen and Langdon 1979; for language models
Deletang et al. 2024, arXiv:2309.10668).

The text's tokens are cut into rows that are coded side by side, symbol by symbol into one stream. A file is

  8 bytes   magic
  16 bytes  fingerprint of the model
  16 bytes  hash of the text
  8, 8, 4   numbers of bytes, tokens and rows, big-endian
  ...       the stream
  8 bytes   hash of all before

so that a damaged file or another model is refused before anything is decoded, and text that came out wrong, because
the arithmetic of another machine differs, is never handed over.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import math
import struct
from typing import Any

import numpy as np

from framework.coding import predictors, range_coder
from framework.config import ConfigError
from framework.data import tokenizer as tokenizers

MAGIC = b'lemma-z1'
_HEADER = struct.Struct('>8s16s16sQQI')
_TAIL = 8
# A file of other rows is refused: a change of these two is another magic.
ROW_TOKENS = 4096  # about, of a row: its first tokens lack context, which costs some 10 bytes
MOST_ROWS = 1024
_SLACK = 8  # bytes that a decoder reads ahead, beyond the end of its code

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done
MakePredictor = Callable[[int], Any]  # of a number of rows: an object of framework.coding.predictors


@dataclasses.dataclass(frozen=True)
class Packed:
  """The file's bytes, and the bits that the model's counts ask for: the cross-entropy of the text."""
  data: bytes
  tokens: int
  bits: float


def _digest(data: bytes, size: int) -> bytes:
  return hashlib.blake2b(data, digest_size=size).digest()


def encode_text(tokenizer: tokenizers.Tokenizer, data: bytes) -> np.ndarray:
  """The tokens of a file. Raises ConfigError if they would not decode to these very bytes."""
  if tokenizer.name == 'bytes':
    return np.frombuffer(data, np.uint8).astype(np.int32)  # any bytes, not only UTF-8
  try:
    tokens = tokenizer.encode(data.decode())
  except UnicodeDecodeError as error:
    raise ConfigError(f'byte {error.start} is not UTF-8; expected text, nearest is a run with data.tokenizer=bytes, '
                      'which takes any file') from None
  if tokenizer.joined(tokens) != data:
    raise ConfigError('the tokens do not decode to the same bytes; nearest is a run with data.tokenizer=bytes')
  return tokens


def _rows(tokens: int) -> int:
  return min(max(1, tokens // ROW_TOKENS), MOST_ROWS)


def _steps(tokens: int, rows: int) -> Iterator[int]:
  """How many rows have a token at each step: the longer rows come first."""
  for step in range(-(-tokens // rows)):
    yield min(rows, tokens - step * rows)


def _row_major(rows: int, tokens: int) -> np.ndarray:
  """The place in the text of symbol (step, row), in coding order: rows are contiguous parts of the text."""
  lengths = np.full(rows, tokens // rows)
  lengths[:tokens % rows] += 1
  starts = np.cumsum(lengths) - lengths
  return np.concatenate([starts[:count] + step for step, count in enumerate(_steps(tokens, rows))] or
                        [np.zeros(0, np.int64)])


def pack(data: bytes, tokenizer: tokenizers.Tokenizer, fingerprint: bytes, make: MakePredictor,
         progress: Progress = lambda done, total, what: None) -> Packed:
  """The compressed file of `data`. Raises ConfigError on text that the tokenizer cannot hold."""
  tokens = encode_text(tokenizer, data)
  rows = _rows(len(tokens))
  encoder, bits, done = range_coder.Encoder(), 0.0, 0
  predictor: Any = make(rows) if len(tokens) else None
  symbols = tokens[_row_major(rows, len(tokens))]
  last_B = np.full(rows, tokenizer.begin)
  for count in _steps(len(tokens), rows):
    counts_BxV = predictor.advance(last_B)[:count]
    token_B, row_B = symbols[done:done + count], np.arange(count)
    first_B = np.where(token_B > 0, counts_BxV[row_B, token_B - 1], 0)
    size_B = counts_BxV[row_B, token_B] - first_B
    for first, size, total in zip(first_B.tolist(), size_B.tolist(), counts_BxV[:, -1].tolist()):
      encoder.encode(first, size, total)
    bits += float(np.log2(counts_BxV[:, -1] / size_B).sum())
    last_B[:count] = token_B
    done += count
    progress(done * len(data) // len(tokens), len(data), 'packing')
  body = _HEADER.pack(MAGIC, fingerprint, _digest(data, 16), len(data), len(tokens), rows)
  body += encoder.finish() if len(tokens) else b''
  return Packed(body + _digest(body, _TAIL), len(tokens), bits)


def check(packed: bytes, fingerprint: bytes) -> None:
  """Raises ConfigError if these bytes are no compressed file, a damaged one, or one of another model."""
  if packed[:len(MAGIC)] != MAGIC[:len(packed)] or not packed:
    raise ConfigError('this is no file of experiments.compress; expected one that begins with lemma-z1')
  if len(packed) < _HEADER.size + _TAIL or _digest(packed[:-_TAIL], _TAIL) != packed[-_TAIL:]:
    raise ConfigError('the file is damaged: its checksum does not fit; expected the file as it was written')
  if (theirs := _HEADER.unpack_from(packed)[1]) != fingerprint:
    raise ConfigError(f'the file was packed under model {theirs.hex()[:12]}, this run is {fingerprint.hex()[:12]}; '
                      'expected the very model that packed it: the same run at the same step')


def is_of(packed: bytes, data: bytes) -> bool:
  """Whether these may be a compressed file of this very text, by what its header says, under whatever model."""
  if len(packed) < _HEADER.size or not packed.startswith(MAGIC):
    return False
  _, _, text_digest, size, _, _ = _HEADER.unpack_from(packed)
  return size == len(data) and text_digest == _digest(data, 16)


def check_sizes(packed: bytes, tokenizer: tokenizers.Tokenizer) -> None:
  """Raises ConfigError if the numbers that a file claims cannot be those of its stream: before anything is allocated,
  since anyone can write a header whose checksum fits."""
  *_, size, tokens, rows = _HEADER.unpack_from(packed)
  longest, stream = max(map(len, tokenizer.table)), len(packed) - _HEADER.size - _TAIL
  # The first token may be a space that the text has not. Every token leaves at least one count to each of the others,
  # and so costs some bits. A tenth is for rounding.
  least = 0.9 * (tokenizer.size - 1) / (predictors.COUNTS + tokenizer.size) / math.log(2)
  fits = tokens - tokenizer.adds_space <= size <= tokens * longest and tokens * least <= 8 * (stream + _SLACK)
  if rows != _rows(tokens) or not fits:
    raise ConfigError(f'the file claims {size:,} bytes in {tokens:,} tokens and {rows:,} rows, which its {stream:,} '
                      'bytes of code cannot hold; expected the file as it was written')


def unpack(packed: bytes, tokenizer: tokenizers.Tokenizer, fingerprint: bytes, make: MakePredictor,
           progress: Progress = lambda done, total, what: None) -> bytes:
  """The text of a compressed file. Raises ConfigError rather than return anything but what was packed."""
  check(packed, fingerprint)
  check_sizes(packed, tokenizer)
  _, _, text_digest, size, tokens, rows = _HEADER.unpack_from(packed)
  decoder = range_coder.Decoder(packed[_HEADER.size:-_TAIL])
  parts, done = [np.zeros(0, np.int32)], 0  # as they come: a claim alone takes no memory
  predictor: Any = make(rows) if tokens else None
  last_B = np.full(rows, tokenizer.begin)
  for count in _steps(tokens, rows):
    counts_BxV = predictor.advance(last_B)[:count]
    for row, total in enumerate(counts_BxV[:, -1].tolist()):
      counts_V = counts_BxV[row]
      token = int(counts_V.searchsorted(decoder.peek(total), 'right'))
      first = int(counts_V[token - 1]) if token else 0
      decoder.take(first, int(counts_V[token]) - first, total)
      last_B[row] = token
    if decoder.beyond > _SLACK:
      raise ConfigError(f'the file claims {tokens:,} tokens and its code ends after some {done:,}; expected the file '
                        'as it was written')
    parts.append(last_B[:count].astype(np.int32))
    done += count
    progress(done * size // tokens, size, 'restoring')
  text = np.zeros(tokens, np.int32)
  text[_row_major(rows, tokens)] = np.concatenate(parts)
  data = tokenizer.joined(text)
  if len(data) != size or _digest(data, 16) != text_digest:
    raise ConfigError('what was restored is not what was packed: this machine computes the model differently (another '
                      'processor, jax version or device); expected the machine and versions that packed it')
  return data
