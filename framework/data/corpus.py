"""Files of text to one flat array of tokens a split, kept in a cache that is addressed by content.

A split is `end d_1 end d_2 ... end d_n end`, see framework/data/splits.py.

A cache folder `corpora/<digest>/`, whose name is that of the texts, the settings and the tokenizer's rule, holds
`train.bin` and `validation.bin` (little-endian uint16, or uint32 for more than 65536 tokens), `*.starts.npy` (int64),
`tokenizer.json` and `meta.json`, which knows the SHA-256 of the others: they are read once at every start, and a folder
that is not what it was is made again. It appears by one rename, complete.
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from foundation import reading, sealed
from foundation.files import expand, lock
from framework.config import ConfigError, Data, check_section
from framework.data import cache as cache_lib
from framework.data import overlap
from framework.data import sources as sources_lib
from framework.data import stream
from framework.data import tokenizer as tokenizers
from framework.data.splits import Held, Split

LAYOUT = 1  # part of every digest: raise it when the files of the cache, or the way texts are split, change
FEW = 20  # documents; fewer are held out by their last tenths, not whole
_SPLITS = ('train', 'validation')

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  train: Split | stream.Stream
  validation: Split | stream.Stream | Held
  tokenizer: tokenizers.Tokenizer
  digest: str  # of the texts and of how they were tokenised and split


def prepare(data: Data, progress: Progress | None = None) -> Corpus:
  """The corpus of `data`, from the cache or prepared now, or the endless text of `data.task`; `data.tokens` bounds what
  is trained on.

  Held out is `data.validation_path` if given; else, of 20 documents or more, one in ten, chosen by a hash of its name;
  else the last tenth of the characters of every document. A document is a file, or a line of a .jsonl file.

  Memory stays bounded whatever the size of the texts, except that a line of a .jsonl file is read whole.

  Raises:
    ConfigError: the texts cannot be found, read or decoded, or hold too little, or the cache cannot be written.
  """
  if data.task:
    corpus = Corpus(*stream.splits(data))
  else:
    corpus = _prepare(data, progress or (lambda done, total, what: None))
  return _bounded(corpus, data)


def cached(data: Data, digest: str) -> Corpus | None:
  """The corpus of that digest from the cache, wherever its texts are now; None if it is not there whole."""
  folder = _folder(data, digest)
  corpus = _open(folder, digest)
  return corpus and _bounded(corpus, data)


def _bounded(corpus: Corpus, data: Data) -> Corpus:
  if not 0 < data.tokens < corpus.train.tokens:
    return corpus
  return dataclasses.replace(corpus, train=first_tokens(corpus.train, data.tokens))


def first_tokens(split: Split | stream.Stream, tokens: int) -> Split | stream.Stream:
  """The beginning of a split; the bytes of a text are taken to be spread evenly."""
  if isinstance(split, stream.Stream):
    return dataclasses.replace(split, tokens=tokens)
  starts = split.starts[split.starts < tokens]
  return dataclasses.replace(split, tokens=tokens, starts=starts, documents=len(starts),
                             bytes=max(1, round(split.bytes * tokens / split.tokens)))


def in_tokens_of(split: Split, tokenizer: tokenizers.Tokenizer, other: tokenizers.Tokenizer, folder: pathlib.Path
                 ) -> Split:
  """The text of a split in the tokens of another tokenizer, written into a folder. Raises ConfigError on text that it
  cannot hold."""
  writer = _Writer(folder, 'validation', other)
  with contextlib.closing(writer.file):
    for start, stop in zip(split.starts, [*split.starts[1:], split.tokens]):
      text = tokenizer.decode(split.read(int(start), int(stop)))
      if text:
        writer.add([text])
    writer.finish()
  about = writer.meta()
  return Split(str(folder / 'validation.bin'), writer.dtype, about['tokens'], np.array(writer.starts, np.int64),
               about['bytes'], about['documents'], other.begin)


def _prepare(data: Data, progress: Progress) -> Corpus:
  check_section('data', data)
  ours = cache_folder(data) / 'corpora'
  sources = sources_lib.find('data.path', data.path, ours)
  held_out = sources_lib.find('data.validation_path', data.validation_path, ours) if data.validation_path else []
  corpus = _cached(data, sources, held_out, progress)
  overlap.warn(corpus.train, corpus.validation, sources + held_out)
  return corpus


def _cached(data: Data, sources: list[sources_lib.Source], held_out: list[sources_lib.Source], progress: Progress
            ) -> Corpus:
  """From the cache, else prepared and put there."""
  digest = _digest(data, sources, held_out, progress)
  folder = _folder(data, digest)
  root, cache = folder.parent, folder.parents[1]
  corpus = _open(folder, digest)
  if corpus:
    return corpus
  size = sum(source.size for source in sources + held_out)
  try:
    root.mkdir(parents=True, exist_ok=True)
    with lock(root / f'{folder.name}.lock') as locked:
      corpus = _open(folder, digest, warn=True)
      if corpus:  # another process was quicker
        return corpus
      if locked:
        cache_lib.clean(root, folder.name)
      _build(folder, digest, data, sources, held_out, progress)
      corpus = _open(folder, digest)
  except OSError as error:  # every reader of the sources raises ConfigError, so this is the cache
    raise ConfigError(f"data.cache is '{cache}', which cannot be written ({error.strerror or error}); expected a "
                      f'folder with about {_megabytes(4 * size)} MB free, nearest is another data.cache') from None
  if not corpus:
    raise ConfigError(f"data.cache is '{cache}', where what was written cannot be read back; expected a sound disk, "
                      f'nearest is another data.cache')
  return corpus


def _folder(data: Data, digest: str) -> pathlib.Path:
  """Where the corpus of that digest is kept."""
  name = hashlib.sha256(f'{digest} {tokenizers.behaviour(data.tokenizer)}'.encode()).hexdigest()[:32]
  return cache_folder(data) / 'corpora' / name


def cache_folder(data: Data) -> pathlib.Path:
  """`data.cache`, else $XDG_CACHE_HOME/lemma, else ~/.cache/lemma."""
  if data.cache:
    return expand('data.cache', data.cache)
  return expand('XDG_CACHE_HOME', os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'lemma'


def _megabytes(size: int) -> int:
  return -(-size // 10**6)


def _digest(data: Data, sources: list[sources_lib.Source], held_out: list[sources_lib.Source],
            progress: Progress) -> str:
  """Of all that decides the tokens: the names and contents of the files, the tokeniser, the layout and the split."""
  foreign = tokenizers.of_file(data.tokenizer)
  settings = {'layout': LAYOUT, 'tokenizer': foreign.digest if foreign else data.tokenizer}
  if data.tokenizer == 'bpe':
    settings |= {'vocabulary': data.vocabulary, 'sample_bytes': tokenizers.SAMPLE_BYTES}
  hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  total, done = sum(source.size for source in sources + held_out), 0
  for source in sources + held_out:
    hasher.update(json.dumps([source.key, source.name]).encode())
    content = hashlib.sha256()
    try:
      with open(source.path, 'rb') as file:
        while block := file.read(sources_lib.BLOCK):
          content.update(block)
          done += len(block)
          progress(done, total, 'checking')
    except OSError as error:
      raise sources_lib.unreadable(source.key, source.path, error) from None
    hasher.update(content.digest())
  return hasher.hexdigest()[:32]


# Which of it is held out


def _hash(document: str) -> int:
  return int.from_bytes(hashlib.sha256(document.encode(errors='surrogateescape')).digest()[:8], 'big')


class _Survey:
  """What one pass over the documents of `data.path` finds."""

  def __init__(self, texts: Iterable[tuple[str, str]]):
    self.documents = self.bytes = 0
    self.any_chosen = False  # by its hash
    least = None  # hash, document
    lengths = {}  # in characters, of the first few documents
    for document, parts in itertools.groupby(texts, key=lambda pair: pair[0]):
      length = 0
      for _, text in parts:
        length += len(text)
        self.bytes += len(text.encode())
      self.documents += 1
      if self.documents <= FEW:
        lengths[document] = length
      hashed = _hash(document)
      self.any_chosen |= hashed % 10 == 0
      least = min(least or (hashed, document), (hashed, document))
    self.least = least and least[1]
    self.lengths = lengths

  def cut(self, document: str) -> float:
    """The number of leading characters of `document` that are trained on."""
    if self.documents < FEW:
      return int(0.9 * self.lengths[document])
    # If the hashes spare every document, as they do one time in eight for 20, the one with the least is held out.
    held_out = _hash(document) % 10 == 0 if self.any_chosen else document == self.least
    return 0 if held_out else float('inf')


def _assigned(texts: Iterable[tuple[str, str]], cut: Callable[[str], float]) -> Iterator[tuple[str, str, str]]:
  """(split, document, text), a document's text divided after `cut(document)` characters."""
  for document, parts in itertools.groupby(texts, key=lambda pair: pair[0]):
    left = cut(document)
    for _, text in parts:
      here = int(min(left, len(text)))
      left -= here
      for split, part in zip(_SPLITS, (text[:here], text[here:])):
        if part:
          yield split, document, part


# The cache


def _build(folder: pathlib.Path, digest: str, data: Data, sources: list[sources_lib.Source],
           held_out: list[sources_lib.Source], progress: Progress) -> None:
  """Writes a temporary folder beside `folder` and renames it."""
  total = sum(source.size for source in sources + held_out)

  def texts(files: list[sources_lib.Source], what: str, before: int = 0) -> Iterator[tuple[str, str]]:
    return sources_lib.texts(files, lambda done: progress(before + done, total, what))

  train_size = sum(source.size for source in sources)
  survey = _Survey(texts(sources, 'reading'))
  cut = (lambda document: float('inf')) if held_out else survey.cut

  def assigned(what: str) -> Iterator[tuple[str, str, str]]:
    yield from _assigned(texts(sources, what), cut)
    yield from _assigned(texts(held_out, what, train_size), lambda document: 0)

  tokenizer = tokenizers.of_file(data.tokenizer)
  if tokenizer is not None:
    log.info('tokens are those of %s', data.tokenizer)
  elif data.tokenizer == 'bytes':
    tokenizer = tokenizers.Bytes()
  elif data.tokenizer == 'chars':
    tokenizer = tokenizers.Chars(_alphabet(assigned('reading the alphabet')))
  else:
    tokenizer = tokenizers.train_bpe(_sample(assigned('training the tokenizer'), survey.bytes), data.vocabulary)

  temporary = cache_lib.temporary(folder)
  try:
    writers = {split: _Writer(temporary, split, tokenizer) for split in _SPLITS}
    with contextlib.ExitStack() as stack:
      for writer in writers.values():
        stack.callback(writer.file.close)
      for (split, _), parts in itertools.groupby(assigned('tokenising'), key=lambda triple: triple[:2]):
        writers[split].add(text for _, _, text in parts)
      for writer in writers.values():
        writer.finish()
    _check_content(data, sources, held_out, writers)
    tokenizer.save(temporary / 'tokenizer.json')
    meta = {
        'layout': LAYOUT, 'corpus': digest, 'tokenizer': tokenizer.name, 'vocabulary': tokenizer.size,
        'dtype': writers['train'].dtype.str, 'splits': {split: writer.meta() for split, writer in writers.items()},
        'sha256': {path.name: _sha256(path) for path in sorted(temporary.iterdir())},
        'versions': {'python': platform.python_version(), 'numpy': np.__version__,
                     'tokenizers': importlib.metadata.version('tokenizers')},
    }
    with open(temporary / 'meta.json', 'w', encoding='utf-8') as file:
      json.dump(sealed.seal(meta), file, indent=1)
      cache_lib.flush(file)
    cache_lib.publish(temporary, folder, lambda path: _open(path, digest) is not None)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _check_content(data: Data, sources: list[sources_lib.Source], held_out: list[sources_lib.Source],
                   writers: dict[str, '_Writer']) -> None:
  for source in sources + held_out:
    if source.changed():
      raise ConfigError(f"{source.key}: '{source.path}' changed while it was read; expected files at rest, nearest is "
                        f'to start again')
  for split, writer in writers.items():
    if not writer.starts:
      key, path = ('data.validation_path', data.validation_path) if split == 'validation' and held_out else (
          'data.path', data.path)
      raise ConfigError(f"{key} is '{path}', which leaves no text for the {split} split; expected at least 2 characters"
                        f" of text, nearest is another {key}")


def _alphabet(assigned: Iterable[tuple[str, str, str]]) -> str:
  """Every character of the corpus, in order: the held-out ones too, because an alphabet says nothing of counts."""
  occurs = np.zeros(0x110000, bool)
  for _, _, text in assigned:
    occurs[np.frombuffer(text.encode('utf-32-le'), '<u4')] = True
  return ''.join(map(chr, np.flatnonzero(occurs)))


def _sample(assigned: Iterable[tuple[str, str, str]], total: int) -> Iterator[str]:
  """The training text, or if `total` bytes are more than `SAMPLE_BYTES`, pieces of it that are evenly spread."""
  credit = 0
  for (split, _), parts in itertools.groupby(assigned, key=lambda triple: triple[:2]):
    if split != 'train':
      continue
    for piece in tokenizers.pieces(text for _, _, text in parts):
      size = len(piece.encode())
      credit += size * min(tokenizers.SAMPLE_BYTES, total)
      if credit >= size * total:
        credit -= size * total
        yield piece


class _Writer:
  """One split on its way to disk."""

  def __init__(self, folder: pathlib.Path, split: str, tokenizer: tokenizers.Tokenizer):
    self.dtype = np.dtype('<u2' if tokenizer.size <= 1 << 16 else '<u4')
    self.file = open(folder / f'{split}.bin', 'wb')
    self.starts = array.array('q')
    self.starts_path = folder / f'{split}.starts.npy'
    self.tokenizer = tokenizer
    self.tokens = self.bytes = 0

  def add(self, blocks: Iterable[str]) -> None:
    """One document, which has text."""
    self.starts.append(self.tokens)
    self._put(np.array([self.tokenizer.end]))
    for ids, size in self.tokenizer.document(blocks):
      self._put(ids)
      self.bytes += size

  def _put(self, ids: np.ndarray) -> None:
    content = ids.astype(self.dtype).tobytes()
    self.file.write(content)
    self.tokens += len(ids)

  def finish(self) -> None:
    self._put(np.array([self.tokenizer.end]))
    cache_lib.flush(self.file)
    with open(self.starts_path, 'wb') as file:
      np.save(file, np.array(self.starts, np.int64))
      cache_lib.flush(file)

  def meta(self) -> dict[str, int]:
    return {'documents': len(self.starts), 'tokens': self.tokens, 'bytes': self.bytes}


def _sha256(path: pathlib.Path) -> str:
  about = path.stat()
  return _sha256_of(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(1024)
def _sha256_of(path: pathlib.Path, *version: int) -> str:
  """Of a file's content, read once a process while its `version` (inode, size, time of change) stays."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _open(folder: pathlib.Path, digest: str, warn: bool = False) -> Corpus | None:
  """The corpus in `folder`, or None if there is none or it is not what its meta.json says."""
  if not folder.exists():
    return None
  try:
    meta = reading.value(folder / 'meta.json')
    for name, wanted in meta['sha256'].items():
      if _sha256(folder / name) != wanted:
        raise ValueError(f'{name} is not what was written')
    dtype = np.dtype(meta['dtype'])
    splits, tokenizer = {}, tokenizers.load(folder / 'tokenizer.json')
    for split in _SPLITS:
      counts = meta['splits'][split]
      starts = np.load(folder / f'{split}.starts.npy')
      path = folder / f'{split}.bin'
      if meta['corpus'] != digest or len(starts) != counts['documents'] or (
          path.stat().st_size != counts['tokens'] * dtype.itemsize):
        raise ValueError('meta.json disagrees with the other files')
      splits[split] = Split(str(path), dtype, counts['tokens'], starts, counts['bytes'], counts['documents'],
                            tokenizer.begin)
    return Corpus(**splits, tokenizer=tokenizer, digest=digest)
  except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:  # ConfigError is a ValueError
    if warn:
      log.warning('the cached corpus %s is damaged (%s); it is prepared again', folder, error)
    return None
