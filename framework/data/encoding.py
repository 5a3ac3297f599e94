"""What every tokenizer is: text to token ids and back, each id standing for some bytes of text.

One id is the end-of-document token. It is written by the corpus between documents, is never the result of encoding text,
and decodes to nothing.
"""

import codecs
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np

from foundation import files
from foundation.errors import ConfigError

PIECE = 1 << 20  # characters tokenised at a time
PARALLEL = 1 << 16  # characters a thread of the BPE library takes at a time
_HOPELESS = 4  # pieces without any white space after which a text is cut anywhere

# GPT-2's pre-tokeniser starts a new word at every space or newline that follows something else, and never looks back:
# the words on either side of such a place do not depend on the other side.
_CUT = re.compile(r'.*\S(?=[\n ])', re.DOTALL)


def pieces(blocks: Iterable[str], size: int = PIECE, cut: re.Pattern[str] = _CUT, limit: int = 0
           ) -> Iterator[str]:
  """Re-cuts the text `blocks` into pieces of about `size` characters, between words, so that the tokens of the pieces
  are the tokens of the whole. Only a run of 4 `size` characters without a space or newline is cut at an arbitrary
  place, so that memory stays bounded.

  cut: matches up to a place between two words. limit: characters without one in which none is looked for any more; 0: 4
  `size`.
  """
  rest, limit = '', limit or _HOPELESS * size
  for block in blocks:
    rest, start = rest + block, 0
    while (left := len(rest) - start) >= size:
      match = cut.match(rest, start, start + size + 1)  # one character beyond the piece, for the look-ahead
      if not match and left >= limit:
        match = cut.match(rest, start, start + limit + 1)
      if not match and left < limit:
        break
      stop = match.end() if match else start + limit
      yield rest[start:stop]
      start = stop
    rest = rest[start:]
  if rest:
    yield rest


def utf8(text: str) -> bytes:
  """`text` in UTF-8. Raises ConfigError on a lone surrogate, which no file of text can hold."""
  try:
    return text.encode()
  except UnicodeEncodeError as error:
    raise ConfigError(f'the text has U+{ord(text[error.start]):04X} at character {error.start}; expected Unicode text '
                      f'without lone surrogates, nearest is U+FFFD') from None


class Stream:
  """Decodes ids as they are generated, holding back the first bytes of a character until the last one arrives."""

  def __init__(self, table: tuple[bytes, ...]):
    self._table = table
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

  def push(self, ids) -> str:
    """The text that `ids` (an int or a sequence) complete; '' while a character is unfinished."""
    return self._decoder.decode(b''.join(self._table[i] for i in np.ravel(ids)))

  def finish(self) -> str:
    """What is still held back, as U+FFFD."""
    return self._decoder.decode(b'', final=True)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """What all have in common; a subclass gives `table` and `encode`."""
  name: ClassVar[str]

  @property
  def table(self) -> tuple[bytes, ...]:
    """The UTF-8 bytes of each token; b'' for the last, the end of a document."""
    raise NotImplementedError

  def encode(self, text: str) -> np.ndarray:
    """The int32 ids of `text`; never `end`. Raises ConfigError on text that the vocabulary cannot hold."""
    raise NotImplementedError

  @property
  def size(self) -> int:
    """Of the vocabulary, the end-of-document token included."""
    return len(self.table)

  @property
  def end(self) -> int:
    """The end-of-document token."""
    return self.size - 1

  @property
  def begin(self) -> int:
    """What a network reads where a document opens: the end of the one before, unless the tokenizer has another token."""
    return self.end

  @functools.cached_property
  def token_bytes(self) -> np.ndarray:
    """int32 [size]: UTF-8 bytes each token stands for; 0 for `end`. Divides nats per token into bits per byte."""
    return np.array([len(token) for token in self.table], np.int32)

  @property
  def adds_space(self) -> bool:
    """Whether a text is encoded as if a space came before it."""
    return False

  def bytes_of(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of text that each target stands for after its input."""
    return self.token_bytes[targets]

  def document(self, blocks: Iterable[str]) -> Iterator[tuple[np.ndarray, int]]:
    """(ids, UTF-8 bytes) of one document, whose text comes in blocks, a piece of bounded size after the other."""
    for piece in pieces(blocks):
      yield self.encode(piece), len(piece.encode())

  def decode(self, ids) -> str:
    """The text of `ids`; `end` is dropped and bytes that are not UTF-8 show as U+FFFD."""
    ids = np.ravel(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < self.size:
      raise ValueError(f'token ids are {ids.min()} to {ids.max()}; expected 0 to {self.size - 1}')
    return self.joined(ids).decode(errors='replace')

  def joined(self, ids: np.ndarray) -> bytes:
    """What `ids`, those of a text from its beginning, stand for."""
    return b''.join(self.table[i] for i in ids)

  def stream(self) -> Stream:
    """A decoder for ids that arrive one by one: the pushed texts and `finish` join to `decode` of all ids."""
    return Stream(self.table)

  def continued(self, ids) -> str:
    """The text of `ids` that follow others: with the space that a first token would lose."""
    stream = self.stream()
    return stream.push(ids) + stream.finish()

  @functools.cached_property
  def text(self) -> str:
    """The content of its file."""
    return json.dumps({'lemma_tokenizer': self.name, **dataclasses.asdict(self)})

  @property
  def digest(self) -> str:
    """Of all that it is: the first 32 hexadecimal digits of the SHA-256 of its file."""
    return hashlib.sha256(self.text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]

  def save(self, path: str | os.PathLike) -> None:
    """Writes one JSON file, whole or not at all."""
    files.write_atomically(pathlib.Path(path), self.text)
