"""Tokenizers: `bytes`, `chars`, `bpe` and the `symbols` of synthetic languages, each lossless on what it accepts, and
those of other people's files. Of ours the last id is the end-of-document token.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import tokenizers

from foundation import reading
from foundation.errors import ConfigError, nearest
from framework.config import TOKENIZERS
from framework.data import foreign
from framework.data.encoding import PARALLEL, PIECE, Stream, Tokenizer, pieces, utf8
from framework.data.foreign import Foreign

SAMPLE_BYTES = 64 << 20  # of the training text, read by the BPE trainer: bounds its memory


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


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
    byte_of = foreign.byte_of_character()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return (*(bytes(byte_of[character] for character in token) for token in tokens), b'')

  def encode(self, text: str) -> np.ndarray:
    utf8(text)  # the library's own complaint about a surrogate is no ConfigError
    parts = [np.zeros(0, np.int32)]
    for piece in pieces([text]):
      # The batch is spread over threads; 'fast' leaves out the offsets, which would take most of the memory.
      batch = self._library.encode_batch_fast(list(pieces([piece], PARALLEL)), add_special_tokens=False)
      parts.append(np.fromiter(itertools.chain.from_iterable(encoding.ids for encoding in batch), np.int32))
    return np.concatenate(parts)


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


def of_file(name: str) -> Tokenizer | None:
  """The tokenizer of the file that data.tokenizer names; None of 'bytes', 'chars' and 'bpe'. Raises ConfigError."""
  if name in TOKENIZERS:
    return None
  path = pathlib.Path(name)
  try:
    about = (path / 'tokenizer.json' if path.is_dir() else path).stat()
  except OSError as error:
    raise ConfigError(f"data.tokenizer is '{name}', which cannot be read ({error.strerror}); expected one of "
                      f"{', '.join(TOKENIZERS)}, or the path of a tokenizer's file{nearest(name, TOKENIZERS)}") from None
  return _of_file(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(4)
def _of_file(path: pathlib.Path, *version: int) -> Tokenizer:  # pylint: disable=unused-argument
  """Read once while its version stays."""
  return load(path) if path.is_file() and is_ours(path) else foreign.read(path)


def is_ours(path: pathlib.Path) -> bool:
  """Whether `Tokenizer.save` wrote a file, which says so at its beginning."""
  with reading.opened(path) as file:
    return file.read(32).startswith(b'{"lemma_tokenizer"')


def behaviour(name: str) -> str:
  """A digest of what a kind of tokenizer makes of a short text, so that tokens of another rule, or of another version
  of a library, are not taken for its own."""
  tokenizer = of_file(name)
  return _probed(tokenizer) if tokenizer else _behaviour(name)


@functools.cache
def _behaviour(name: str) -> str:
  made = {'bytes': Bytes, 'chars': lambda: Chars(''.join(sorted(set(PROBE)))), 'bpe': lambda: train_bpe([PROBE], 300)}
  return _probed(made[name]())


def _probed(tokenizer: Tokenizer) -> str:
  return hashlib.sha256(f'{tokenizer.digest} {tokenizer.encode(PROBE).tolist()}'.encode()).hexdigest()


CLASSES = {cls.name: cls for cls in (Bytes, Chars, Symbols, Bpe, Foreign)}


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
