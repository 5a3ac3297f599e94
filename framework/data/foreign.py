"""Tokenizers of other people's files: tokenizer.json of the tokenizers library, tekken.json and .tiktoken of tiktoken, and
.model of sentencepiece; the last two where those packages are installed.

Ids are those of their own libraries, but that special tokens in a text are text. What each id stands for in bytes is
known, so that bits per byte are exact: byte-level vocabularies say it, in sentencepiece's a lower block is a space and
<0x0A> a byte. Sentencepiece puts a space before every text; of the first token of a document it is not counted.
"""

import base64
import dataclasses
import functools
import itertools
import json
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tokenizers

from foundation import reading
from foundation.errors import ConfigError, nearest
from foundation.printable import printable
from framework.data.encoding import PARALLEL, Tokenizer, pieces, utf8

LARGEST = 1 << 28  # bytes of a file
BLOCK = '\u2581'  # sentencepiece's space
NAMES = ('tokenizer.json', 'tekken.json', 'tokenizer.model')  # of a tokenizer's file in a folder
# Of the end of a document where no file beside the tokenizer names it.
ENDS = ('<|endoftext|>', '</s>', '<|end_of_text|>', '<eos>', '<|end_of_document|>')
# Python's re knows no classes of Unicode, which these patterns of tiktoken need; a .tiktoken file does not hold its own.
PATTERNS = {
    'r50k_base': r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    'cl100k_base': r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
                   r'\s*[\r\n]|\s+(?!\S)|\s'}

# A space after something else begins a word in all of them. A newline may belong to the word before.
_CUT = re.compile(r'.*\S(?= )', re.DOTALL)
_WHOLE = re.compile(r'(?!)')  # nowhere
_BYTE = re.compile(r'<0x([0-9A-F]{2})>')

log = logging.getLogger(__name__)


def byte_of_character() -> dict[str, int]:
  """GPT-2's printable stand-ins for the 256 bytes: a printable Latin-1 character is itself, the others follow on from
  U+0100 in order."""
  printable_ones = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = (byte for byte in range(256) if byte not in printable_ones)
  return {chr(byte): byte for byte in printable_ones} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


@dataclasses.dataclass(frozen=True)
class Foreign(Tokenizer):
  """A tokenizer of another library.

  kind: tokenizers, tiktoken or sentencepiece. model: its file's content, in base64 for sentencepiece; of tiktoken a JSON
  object. end_id: closes documents. begin_id: opens them. vocabulary: ids, as many as a model has rows for them.
  """
  kind: str
  model: str
  end_id: int
  begin_id: int
  vocabulary: int
  name: ClassVar[str] = 'file'

  def __post_init__(self):
    if self.kind not in ENGINES or not all(type(x) is int for x in (self.end_id, self.begin_id, self.vocabulary)):
      raise ValueError(f'a tokenizer of the kinds {", ".join(ENGINES)}, with whole numbers')
    if not 0 <= max(self.end_id, self.begin_id) < self.vocabulary <= 1 << 24 or min(self.end_id, self.begin_id) < 0:
      raise ValueError('ids below the size of the vocabulary')

  @functools.cached_property
  def _engine(self) -> Any:
    return ENGINES[self.kind](self.model)

  @functools.cached_property
  def table(self) -> tuple[bytes, ...]:
    known = self._engine.table()
    if known and max(known) >= self.vocabulary:
      raise ValueError(f'{max(known) + 1} ids; expected at most the vocabulary of {self.vocabulary}')
    ends = {self.end_id, self.begin_id}
    return tuple(b'' if i in ends else known.get(i, b'') for i in range(self.vocabulary))

  @property
  def end(self) -> int:
    return self.end_id

  @property
  def begin(self) -> int:
    return self.begin_id

  @functools.cached_property
  def adds_space(self) -> bool:
    return super().joined(self._engine.encode(['a'])[0]) == b' a'

  @functools.cached_property
  def _always(self) -> bool:
    """Whether that space comes even before another: then the one that a later part begins with is that space."""
    return super().joined(self._engine.encode([' a'])[0]) == b'  a'

  @functools.cached_property
  def _cut(self) -> re.Pattern[str]:
    """Between words; nowhere if a token reaches over a space into the next word."""
    over = re.compile(r'\S ')
    return _WHOLE if any(over.search(token.decode(errors='replace')) for token in self.table) else _CUT

  def encode(self, text: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in self.document([text]))])

  def document(self, blocks: Iterable[str]) -> Iterator[tuple[np.ndarray, int]]:
    first, limit = True, LARGEST if self.adds_space or self._cut is _WHOLE else 0
    for piece in pieces(blocks, cut=self._cut, limit=limit):
      utf8(piece)  # a library's own complaint about a surrogate is no ConfigError
      texts = [part if first and not number or not self._always else part.removeprefix(' ')
               for number, part in enumerate(pieces([piece], PARALLEL, self._cut, limit))]
      ids = np.fromiter(itertools.chain.from_iterable(self._engine.encode(texts)), np.int32)
      size = len(piece.encode())
      self._compare(ids, size, first)
      yield ids, size
      first = False

  def _compare(self, ids: np.ndarray, size: int, first: bool) -> None:
    """Says once, of a text, that its tokens stand for another number of bytes. Raises ConfigError for unknown ones."""
    if ids.size and (ids == self._engine.unknown).any():
      raise ConfigError(f'the text has a character that the {self.kind} tokenizer cannot hold: it gives its unknown token '
                        f"{self._engine.unknown}; expected a tokenizer with bytes to fall back on")
    before = np.concatenate([[self.begin_id if first else -1], ids[:-1]])
    known = int(self.bytes_of(before, ids).sum())
    if known != size:
      _say(self.digest, known, size)

  def bytes_of(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if not self.adds_space:
      return self.token_bytes[targets]
    return self.token_bytes[targets] - ((inputs == self.begin_id) & self._with_space[targets])

  @functools.cached_property
  def _with_space(self) -> np.ndarray:
    """bool [size]: whether the first token of a document has the space that was put before it. A rule that puts none
    before a space puts none before two."""
    return np.array([token.startswith(b' ') and (self._always or not token.startswith(b'  ')) for token in self.table])

  def joined(self, ids: np.ndarray) -> bytes:
    """As of whole documents: without the space that was put before each."""
    if not self.adds_space:
      return super().joined(ids)
    cuts = np.flatnonzero(np.isin(ids, (self.end_id, self.begin_id)))
    parts = [super(Foreign, self).joined(part) for part in np.split(ids, cuts)]
    return b''.join(part if part.startswith(b'  ') and not self._always else part.removeprefix(b' ') for part in parts)


_SAID: set[str] = set()


def _say(digest: str, known: int, size: int) -> None:
  if digest not in _SAID:
    _SAID.add(digest)
    log.warning('the tokenizer changes the text: its tokens stand for %d bytes of one with %d; bits per byte are of what '
                'they stand for', known, size)


# The libraries


class Tokenizers:
  """Of the tokenizers library, whose file is a JSON object."""

  def __init__(self, model: str):
    library = tokenizers.Tokenizer.from_str(model)
    library.no_padding()  # a file may ask for 10^8 tokens a text, or for the first of each
    library.no_truncation()
    library.encode_special_tokens = True  # in a text they are text
    self.library, self.model = library, reading.loads(model)
    parts = self.model['model']
    if parts.get('type', 'BPE') not in ('BPE', 'Unigram'):
      raise ConfigError(f"the tokenizer's model is {printable(parts.get('type'), 40)}; expected BPE or Unigram, whose tokens "
                        'stand for bytes of text')
    unknown = parts.get('unk_token') if parts.get('type') != 'Unigram' else None
    self.unknown = library.token_to_id(unknown) if unknown else parts.get('unk_id', -1)
    self.unknown = -1 if self.unknown is None else self.unknown

  def encode(self, texts: list[str]) -> list[list[int]]:
    # The batch is spread over threads; 'fast' leaves out the offsets, which would take most of the memory.
    return [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]

  def table(self) -> dict[int, bytes]:
    kinds = set(_types({key: self.model.get(key) for key in ('pre_tokenizer', 'decoder')}))
    of = _of_byte_level if 'ByteLevel' in kinds else _of_sentencepiece
    added = self.library.get_added_tokens_decoder()
    text = {id_: of(token) for token, id_ in self.library.get_vocab(with_added_tokens=False).items()}
    for id_, token in added.items():
      if token.special:
        text[id_] = b''
      elif text.get(id_) is None:
        text[id_] = token.content.encode()
    if wrong := next((id_ for id_, content in text.items() if content is None), None):
      raise ConfigError(f'the token {wrong} of the tokenizer is no text in bytes; expected a byte-level vocabulary')
    return text  # type: ignore[return-value]  # None of them is None


def _types(tree: Any) -> Iterator[str]:
  """The types of everything in a part of a tokenizer.json."""
  if isinstance(tree, Mapping):
    if isinstance(tree.get('type'), str):
      yield tree['type']
    for inner in tree.values():
      yield from _types(inner)
  elif isinstance(tree, list):
    for inner in tree:
      yield from _types(inner)


_BYTES = byte_of_character()


def _of_byte_level(token: str) -> bytes | None:
  return bytes(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else None


def _of_sentencepiece(token: str) -> bytes:
  byte = _BYTE.fullmatch(token)
  return bytes([int(byte[1], 16)]) if byte else token.replace(BLOCK, ' ').encode()


class Tiktoken:
  """Of tiktoken: {'pattern': ..., 'ranks': [token in base64, ...], 'first': id of rank 0}."""
  unknown = -1

  def __init__(self, model: str):
    try:
      import tiktoken
    except ImportError as error:
      raise ConfigError("tiktoken is not installed, whose file the tokenizer is; expected the package tiktoken") from error
    about = reading.loads(model)
    self.tokens = [base64.b64decode(token) for token in about['ranks']]
    self.first = about['first']
    self.library = tiktoken.Encoding('file', pat_str=about['pattern'], special_tokens={},
                                     mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)})

  def encode(self, texts: list[str]) -> list[list[int]]:
    return [[self.first + i for i in ids] for ids in self.library.encode_ordinary_batch(texts)]

  def table(self) -> dict[int, bytes]:
    return {self.first + rank: token for rank, token in enumerate(self.tokens)}


class Sentencepiece:
  """Of sentencepiece: its model in base64."""

  def __init__(self, model: str):
    try:
      import sentencepiece
    except ImportError as error:
      raise ConfigError('sentencepiece is not installed, whose file the tokenizer is; expected the package sentencepiece'
                        ) from error
    self.library = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(model))
    self.unknown = self.library.unk_id()

  def encode(self, texts: list[str]) -> list[list[int]]:
    return self.library.encode(texts, out_type=int)

  def table(self) -> dict[int, bytes]:
    s = self.library
    return {i: b'' if s.is_control(i) or s.is_unknown(i) else _of_sentencepiece(s.id_to_piece(i))
            for i in range(s.get_piece_size())}


ENGINES: dict[str, Any] = {'tokenizers': Tokenizers, 'tiktoken': Tiktoken, 'sentencepiece': Sentencepiece}


# Their files


def read(path: pathlib.Path, vocabulary: int = 0, end: str = '', begin: str = '') -> Foreign:
  """The tokenizer of a file, or of a folder with one.

  Args:
    vocabulary: ids in all, if more than the file has. end, begin: special tokens; '': those that the files beside it
      name, or the end of some known name; without any a new id is the end.

  Raises:
    ConfigError: there is none, or it cannot be read, or has no such special token.
  """
  folder = path if path.is_dir() else path.parent
  if path.is_dir():
    path = next((path / name for name in NAMES if (path / name).exists()), path / NAMES[0])
  try:
    kind, model, special = content(path)
    engine = ENGINES[kind](model)
    known = engine.table()
  except ConfigError:
    raise
  except FileNotFoundError as error:
    raise ConfigError(f"tokenizer file '{path}' does not exist; expected one of {', '.join(NAMES)}") from error
  except Exception as error:  # the libraries raise plain Exception
    raise ConfigError(f"tokenizer file '{path}' cannot be read ({printable(error, 200)}); expected a tokenizer.json, "
                      'tekken.json, .tiktoken or sentencepiece model') from error
  own = max([*known, *special.values()], default=-1) + 1
  end_id, begin_id = special_ids(folder, special, end, begin)
  if begin_id is None:
    begin_id = opening(kind, model, special)
  if end_id is None:
    end_id, own = own, own + 1
  return Foreign(kind, model, end_id, end_id if begin_id is None else begin_id, max(own, vocabulary))


def content(path: pathlib.Path) -> tuple[str, str, dict[str, int]]:
  """(kind, model as `Foreign` has it, special tokens) of a tokenizer's file. Raises ConfigError, or what its library
  raises."""
  raw = reading.data(path, below=_store(path.parent), most=LARGEST)
  if raw.lstrip().startswith(b'{'):
    about = reading.loads(raw)
    if isinstance(about.get('vocab'), list):
      return _of_tekken(about)
    added = {token['content']: token['id'] for token in about.get('added_tokens', ()) if token.get('special')}
    return 'tokenizers', raw.decode(), added
  if re.match(rb'[A-Za-z0-9+/=]+ \d+\s', raw):
    pairs = sorted((int(rank), token.decode()) for token, rank in map(bytes.split, raw.splitlines()))
    if path.stem not in PATTERNS and path.suffix != '.model':
      raise ConfigError(f"tokenizer file '{path}' holds no pattern; expected a name among {', '.join(PATTERNS)}, as tiktoken "
                        f'calls the encodings{nearest(path.stem, PATTERNS)}')
    pattern = PATTERNS.get(path.stem, PATTERNS['cl100k_base'])  # a .model of this form is Llama 3's
    return 'tiktoken', json.dumps({'pattern': pattern, 'ranks': [token for _, token in pairs], 'first': 0}), {}
  model = base64.b64encode(raw).decode()
  library = Sentencepiece(model).library
  ids = {name: id_ for name, id_ in (('</s>', library.eos_id()), ('<s>', library.bos_id())) if id_ >= 0}
  return 'sentencepiece', model, {library.id_to_piece(id_): id_ for id_ in ids.values()}


def _of_tekken(about: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
  config = about['config']
  first = config['default_num_special_tokens']
  ranks = [token['token_bytes'] for token in about['vocab'][:config['default_vocab_size'] - first]]
  special = {token['token_str']: token['rank'] for token in about.get('special_tokens') or ()}
  special = special or {'<unk>': 0, '<s>': 1, '</s>': 2}
  return 'tiktoken', json.dumps({'pattern': config['pattern'], 'ranks': ranks, 'first': first}), special


def _store(folder: pathlib.Path) -> pathlib.Path:
  """Below which a folder's files lie: itself, or, of a snapshot in the hub's cache, the model's, as links."""
  folder = folder.resolve()
  return folder.parents[1] if folder.parent.name == 'snapshots' else folder


def opening(kind: str, model: str, special: Mapping[str, int]) -> int | None:
  """The special token that a tokenizer puts before a text by itself; None if it puts none."""
  if kind != 'tokenizers':
    return special.get('<s>')
  library = tokenizers.Tokenizer.from_str(model)
  ids = library.encode('a').ids
  plain = library.encode('a', add_special_tokens=False).ids
  return ids[0] if len(ids) > len(plain) and ids[0] in special.values() else None


def special_ids(folder: pathlib.Path, special: Mapping[str, int], end: str, begin: str) -> tuple[int | None, int | None]:
  """The ids of the end and of the begin of a document, None where there is none. Raises ConfigError for unknown names."""
  beside: dict[str, Any] = {}
  for name in ('config.json', 'generation_config.json', 'special_tokens_map.json', 'tokenizer_config.json'):
    try:
      beside |= {key: value for key, value in reading.value(folder / name, below=_store(folder)).items() if value is not None}
    except (OSError, ConfigError):
      continue
  found: list[int | None] = []
  for key, given in (('eos_token', end), ('bos_token', begin)):
    word = beside.get(key)
    word = given or (word.get('content') if isinstance(word, dict) else word)
    number = beside.get(f'{key}_id')
    number = number[0] if isinstance(number, list) and number else number
    if isinstance(word, str) and word in special:
      found.append(special[word])
    elif given:
      raise ConfigError(f"the tokenizer has no special token '{printable(given, 60)}'; expected one of "
                        f"{printable(', '.join(list(special)[:20]), 400)}{nearest(given, special)}")
    else:
      found.append(number if type(number) is int and number >= 0 else None)
  if found[0] is None:
    found[0] = next((special[name] for name in ENDS if name in special), None)
  return found[0], found[1]
