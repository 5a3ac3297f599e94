"""Text to token ids and back: `bytes`, `chars`, `bpe` and the `symbols` of synthetic languages, each lossless on what
it accepts.

The last id of every vocabulary is the end-of-document token. It is written by the corpus between documents, is never
the result of encoding text, and decodes to nothing.
"""

import codecs
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np
import tokenizers

from foundation import files, reading
from foundation.errors import ConfigError, nearest

PIECE = 1 << 20  # characters tokenised at a time
SAMPLE_BYTES = 64 << 20  # of the training text, read by the BPE trainer: bounds its memory
_PARALLEL = 1 << 16  # characters a thread of the BPE library takes at a time
_HOPELESS = 4  # pieces without any white space after which a text is cut anywhere

# GPT-2's pre-tokeniser starts a new word at every space or newline that follows something else, and never looks back:
# the words on either side of such a place do not depend on the other side.
_CUT = re.compile(r'.*\S(?=[\n ])', re.DOTALL)


def pieces(blocks: Iterable[str], size: int = PIECE) -> Iterator[str]:
  """Re-cuts the text `blocks` into pieces of about `size` characters, between words, so that the tokens of the pieces
  are the tokens of the whole. Only a run of 4 `size` characters without a space or newline is cut at an arbitrary
  place, so that memory stays bounded."""
  rest, limit = '', _HOPELESS * size
  for block in blocks:
    rest, start = rest + block, 0
    while (left := len(rest) - start) >= size:
      match = _CUT.match(rest, start, start + size + 1)  # one character beyond the piece, for the look-ahead
      if not match and left >= limit:
        match = _CUT.match(rest, start, start + limit + 1)
      if not match and left < limit:
        break
      cut = match.end() if match else start + limit
      yield rest[start:cut]
      start = cut
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


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


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
  """What the three have in common; a subclass gives `table` and `encode`."""
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

  @functools.cached_property
  def token_bytes(self) -> np.ndarray:
    """int32 [size]: UTF-8 bytes each token stands for; 0 for `end`. Divides nats per token into bits per byte."""
    return np.array([len(token) for token in self.table], np.int32)

  def decode(self, ids) -> str:
    """The text of `ids`; `end` is dropped and bytes that are not UTF-8 show as U+FFFD."""
    ids = np.ravel(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < self.size:
      raise ValueError(f'token ids are {ids.min()} to {ids.max()}; expected 0 to {self.end}')
    return b''.join(self.table[i] for i in ids).decode(errors='replace')

  def stream(self) -> Stream:
    """A decoder for ids that arrive one by one: the pushed texts and `finish` join to `decode` of all ids."""
    return Stream(self.table)

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


@dataclasses.dataclass(frozen=True)
class Bytes(Tokenizer):
  """Ids 0 to 255 are the UTF-8 bytes of the text."""
  name: ClassVar[str] = 'bytes'

  @functools.cached_property
  def table(self) -> tuple[bytes, ...]:
    return (*(bytes([i]) for i in range(256)), b'')

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(utf8(text), np.uint8).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Chars(Tokenizer):
  """Ids are places in a sorted alphabet of characters."""
  alphabet: str
  name: ClassVar[str] = 'chars'

  def __post_init__(self):
    if not isinstance(self.alphabet, str) or list(self.alphabet) != sorted(set(self.alphabet)):
      raise ValueError('an alphabet is a string of distinct characters in order')

  @functools.cached_property
  def table(self) -> tuple[bytes, ...]:
    return (*(utf8(character) for character in self.alphabet), b'')

  @functools.cached_property
  def _ids(self) -> np.ndarray:
    ids = np.full(0x110000, -1, np.int32)
    ids[_code_points(self.alphabet)] = np.arange(len(self.alphabet))
    return ids

  def encode(self, text: str) -> np.ndarray:
    ids = self._ids[_code_points(text)]
    if ids.size and ids.min() < 0:
      character = text[int(np.argmax(ids < 0))]
      raise ConfigError(f"the text has the character {character!r} (U+{ord(character):04X}); expected the "
                        f"{len(self.alphabet)} characters of the corpus, nearest is data.tokenizer 'bytes'")
    return ids


@dataclasses.dataclass(frozen=True)
class Symbols(Chars):
  """The alphabet of a synthetic language, in the order of its symbols.

  A symbol counts as one byte, so that bits per byte are bits per symbol.
  """
  name: ClassVar[str] = 'symbols'

  def __post_init__(self):
    if not isinstance(self.alphabet, str) or len(set(self.alphabet)) != len(self.alphabet):
      raise ValueError('an alphabet is a string of distinct characters')

  @functools.cached_property
  def token_bytes(self) -> np.ndarray:
    return np.array([1] * len(self.alphabet) + [0], np.int32)


@dataclasses.dataclass(frozen=True)
class Bpe(Tokenizer):
  """Byte-level byte pair encoding (GPT-2's): any text round-trips, unseen characters as their bytes.

  `model` is the JSON of the tokenizers library.
  """
  model: str
  name: ClassVar[str] = 'bpe'

  @functools.cached_property
  def _library(self) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer.from_str(self.model)
    library.no_padding()  # somebody else's file may ask for 10^8 tokens a text, or for the first of each
    library.no_truncation()
    return library

  @functools.cached_property
  def table(self) -> tuple[bytes, ...]:
    vocabulary = self._library.get_vocab()
    byte_of = _byte_of_character()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return (*(bytes(byte_of[character] for character in token) for token in tokens), b'')

  def encode(self, text: str) -> np.ndarray:
    utf8(text)  # the library's own complaint about a surrogate is no ConfigError
    parts = [np.zeros(0, np.int32)]
    for piece in pieces([text]):
      # The batch is spread over threads; 'fast' leaves out the offsets, which would take most of the memory.
      batch = self._library.encode_batch_fast(list(pieces([piece], _PARALLEL)), add_special_tokens=False)
      parts.append(np.fromiter(itertools.chain.from_iterable(encoding.ids for encoding in batch), np.int32))
    return np.concatenate(parts)


def _byte_of_character() -> dict[str, int]:
  """GPT-2's printable stand-ins for the 256 bytes: a printable Latin-1 character is itself, the others follow on from
  U+0100 in order."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = (byte for byte in range(256) if byte not in printable)
  return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def train_bpe(texts: Iterable[str], vocabulary: int) -> Bpe:
  """A `Bpe` of at most `vocabulary` tokens (end included) from `texts`; fewer if no pair of tokens repeats any more.

  The caller bounds the memory by bounding the texts: see `SAMPLE_BYTES`.
  """
  if vocabulary < 257:
    raise ConfigError(f'data.vocabulary is {vocabulary}; expected at least 257: the bytes and the end of a document')
  library = tokenizers.Tokenizer(tokenizers.models.BPE())
  library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=vocabulary - 1, min_frequency=2, show_progress=False,
      initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  library.train_from_iterator(texts, trainer)
  return Bpe(library.to_str())


PROBE = 'the cat, the hat: 12 12 345\n\tthey\'ll sit; "Zoë" don\'t -- naïve 東京 東京 \U0001f600  the  end\n' * 2


@functools.cache
def behaviour(name: str) -> str:
  """A digest of what a kind of tokenizer makes of a short text, so that tokens of another rule, or of another version
  of a library, are not taken for its own."""
  made = {'bytes': Bytes, 'chars': lambda: Chars(''.join(sorted(set(PROBE)))), 'bpe': lambda: train_bpe([PROBE], 300)}
  tokenizer = made[name]()
  return hashlib.sha256(f'{tokenizer.digest} {tokenizer.encode(PROBE).tolist()}'.encode()).hexdigest()


CLASSES = {cls.name: cls for cls in (Bytes, Chars, Symbols, Bpe)}


def load(path: str | os.PathLike) -> Tokenizer:
  """The tokenizer that `Tokenizer.save` wrote. Raises ConfigError if the file is missing, corrupt or unknown."""
  try:
    fields = reading.value(pathlib.Path(path), most=1 << 28)  # of a million tokens
    name = fields.pop('lemma_tokenizer')
  except (OSError, ConfigError, KeyError) as error:
    reason = getattr(error, 'strerror', None) or f'{type(error).__name__}: {error}'
    raise ConfigError(f"tokenizer file '{path}' cannot be read ({reason}); expected a tokenizer.json of a run or of "
                      f'the cache') from None
  if name not in list(CLASSES):  # the name may be of a type that has no hash
    raise ConfigError(f"tokenizer file '{path}' is of kind {name!r}; expected one of {', '.join(CLASSES)}"
                      f'{nearest(str(name), CLASSES)}')
  try:
    tokenizer = CLASSES[name](**fields)
    tokenizer.size  # builds the table, and with it whatever the file describes
  except Exception as error:  # the BPE library raises plain Exception
    raise ConfigError(f"tokenizer file '{path}' does not describe a '{name}' tokenizer ({error}); expected a "
                      f'tokenizer.json of a run or of the cache') from None
  return tokenizer
