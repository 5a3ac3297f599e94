"""The files of a cached corpus, made from its sources: what is held out, the tokenizer, the tokens.

Memory stays bounded whatever the size of the texts, except that a line of a .jsonl file is read whole.
"""

import array
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import pathlib
import platform
import shutil
from typing import Any

import numpy as np

from foundation import sealed
from foundation.errors import ConfigError
from framework.config import Data
from framework.data import cache as cache_lib
from framework.data import sources as sources_lib
from framework.data import texts
from framework.data import tokenizer as tokenizers

LAYOUT = 1  # part of every digest: raise it when the files of the cache, or the way texts are split, change
FEW = 20  # documents; fewer are held out by their last tenths, not whole
SPLITS = ('train', 'validation')
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done
log = logging.getLogger(__name__)
Assigned = Iterator[tuple[str, str, Any]]  # split, document, content


@dataclasses.dataclass(frozen=True)
class Plan:
  """A corpus to be made: settings, its files, those of the text that is held out (none: a tenth of the files is)."""
  data: Data
  sources: Sequence[sources_lib.Source]
  held_out: Sequence[sources_lib.Source] = ()

  @property
  def size(self) -> int:
    """Bytes of all files."""
    return sum(source.size for source in self.files)

  @property
  def files(self) -> list[sources_lib.Source]:
    return [*self.sources, *self.held_out]

  def texts(self, held_out: bool, what: str, progress: Progress, tokenizer: tokenizers.Tokenizer | None = None,
            left_out: texts.LeftOut | None = None) -> Iterator[tuple[str, Any]]:
    """(document, content) pairs of the files, or of those held out. left_out: where bad rows are counted."""
    before = sum(source.size for source in self.sources) if held_out else 0
    skips = self.data.bad_rows == 'skip'
    how = texts.Reading(self.data.field, (left_out or texts.LeftOut()) if skips else None, self.data.ids,
                        *((tokenizer.end, tokenizer.size, tokenizer.begin) if tokenizer else ()))
    return texts.read(self.held_out if held_out else self.sources,
                      lambda done: progress(before + done, self.size, what), how)


# Which of it is held out


def hash_of(document: str) -> int:
  """64 bits by which a document is held out or not."""
  return int.from_bytes(hashlib.sha256(document.encode(errors='surrogateescape')).digest()[:8], 'big')


class Survey:
  """What one pass over the documents of a plan finds."""

  def __init__(self, contents: Iterable[tuple[str, Any]]):
    self.documents = self.bytes = 0
    self.any_chosen = False  # by its hash
    least = None  # hash, document
    lengths = {}  # in characters or tokens, of the first few documents
    for document, parts in itertools.groupby(contents, key=lambda pair: pair[0]):
      length = 0
      for _, content in parts:
        length += len(content)
        self.bytes += len(content.encode()) if isinstance(content, str) else content.nbytes
      self.documents += 1
      if self.documents <= FEW:
        lengths[document] = length
      hashed = hash_of(document)
      self.any_chosen |= hashed % 10 == 0
      least = min(least or (hashed, document), (hashed, document))
    self.least = least and least[1]
    self.lengths = lengths

  def cut(self, document: str) -> float:
    """The number of leading characters, or tokens, of `document` that are trained on."""
    if self.documents < FEW:
      return int(0.9 * self.lengths[document])
    # If the hashes spare every document, as they do one time in eight for 20, the one with the least is held out.
    held_out = hash_of(document) % 10 == 0 if self.any_chosen else document == self.least
    return 0 if held_out else float('inf')


def _divided(contents: Iterable[tuple[str, Any]], cut: Callable[[str], float]) -> Assigned:
  """(split, document, content), a document's content divided after its first `cut(document)` characters or tokens."""
  for document, parts in itertools.groupby(contents, key=lambda pair: pair[0]):
    left = cut(document)
    for _, content in parts:
      here = int(min(left, len(content)))
      left -= here
      for split, part in zip(SPLITS, (content[:here], content[here:])):
        if len(part):
          yield split, document, part


def assigned(plan: Plan, survey: Survey, what: str, progress: Progress,
             tokenizer: tokenizers.Tokenizer | None = None) -> Assigned:
  """All contents of a plan with the split that each belongs to."""
  cut = (lambda document: float('inf')) if plan.held_out else survey.cut
  yield from _divided(plan.texts(False, what, progress, tokenizer), cut)
  yield from _divided(plan.texts(True, what, progress, tokenizer), lambda document: 0)


# The tokenizer


def make_tokenizer(plans: Sequence[Plan], shares: Sequence[float], surveys: Sequence[Survey], progress: Progress
                   ) -> tokenizers.Tokenizer:
  """The tokenizer that the settings of the plans describe, of all their texts; each gives its share of a sample."""
  data = plans[0].data
  if (foreign := tokenizers.of_file(data.tokenizer)) is not None:
    log.info('tokens are those of %s', data.tokenizer)
    return foreign
  if data.tokenizer == 'bytes':
    return tokenizers.Bytes()
  pairs = list(zip(plans, surveys))
  if data.tokenizer == 'chars':
    return tokenizers.Chars(_alphabet(itertools.chain.from_iterable(
        assigned(plan, survey, 'reading the alphabet', progress) for plan, survey in pairs)))
  return tokenizers.train_bpe(itertools.chain.from_iterable(
      _sample(assigned(plan, survey, 'training the tokenizer', progress), survey.bytes,
              round(tokenizers.SAMPLE_BYTES * share))
      for (plan, survey), share in zip(pairs, shares)), data.vocabulary)


def _alphabet(contents: Iterable[tuple[str, str, str]]) -> str:
  """Every character of the corpus, in order: the held-out ones too, because an alphabet says nothing of counts."""
  occurs = np.zeros(0x110000, bool)
  for _, _, text in contents:
    occurs[np.frombuffer(text.encode('utf-32-le'), '<u4')] = True
  return ''.join(map(chr, np.flatnonzero(occurs)))


def _sample(contents: Iterable[tuple[str, str, str]], total: int, most: int) -> Iterator[str]:
  """The training text, or if `total` bytes are more than `most`, pieces of it that are evenly spread."""
  credit = 0
  for (split, _), parts in itertools.groupby(contents, key=lambda triple: triple[:2]):
    if split != 'train':
      continue
    for piece in tokenizers.pieces(text for _, _, text in parts):
      size = len(piece.encode())
      credit += size * min(most, total)
      if credit >= size * total:
        credit -= size * total
        yield piece


# The files


def build(folder: pathlib.Path, digest: str, plan: Plan, given: tokenizers.Tokenizer | None, progress: Progress,
          sound: Callable[[pathlib.Path], bool]) -> None:
  """Writes a temporary folder beside `folder` and renames it.

  Args:
    given: the tokenizer; None: it is made from the plan's own texts.
    sound: whether a folder holds a corpus already.
  """
  left_out = texts.LeftOut()
  if given is None and plan.data.ids:
    given = make_tokenizer([plan], [1.0], [], progress)
  survey = Survey(plan.texts(False, 'reading', progress, given, left_out))
  tokenizer = given or make_tokenizer([plan], [1.0], [survey], progress)
  temporary = cache_lib.temporary(folder)
  try:
    writers = {split: Writer(temporary, split, tokenizer) for split in SPLITS}
    with contextlib.ExitStack() as stack:
      for writer in writers.values():
        stack.callback(writer.file.close)
      for (split, _), parts in itertools.groupby(assigned(plan, survey, 'tokenising', progress, tokenizer),
                                                 key=lambda triple: triple[:2]):
        writers[split].add(content for _, _, content in parts)
      for writer in writers.values():
        writer.finish()
    _check_content(plan, writers)
    tokenizer.save(temporary / 'tokenizer.json')
    meta = {
        'layout': LAYOUT, 'corpus': digest, 'tokenizer': tokenizer.name, 'vocabulary': tokenizer.size,
        'dtype': writers['train'].dtype.str, 'splits': {split: writer.meta() for split, writer in writers.items()},
        'left_out': dataclasses.asdict(left_out),
        'sha256': {path.name: cache_lib.sha256(path) for path in sorted(temporary.iterdir())},
        'versions': {'python': platform.python_version(), 'numpy': np.__version__,
                     'tokenizers': importlib.metadata.version('tokenizers')},
    }
    with open(temporary / 'meta.json', 'w', encoding='utf-8') as file:
      json.dump(sealed.seal(meta), file, indent=1)
      cache_lib.flush(file)
    cache_lib.publish(temporary, folder, sound)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _check_content(plan: Plan, writers: dict[str, 'Writer']) -> None:
  for source in plan.files:
    if source.changed():
      raise ConfigError(f"{source.key}: '{source.path}' changed while it was read; expected files at rest, nearest is "
                        f'to start again')
  for split, writer in writers.items():
    if not writer.starts:
      key, path = ('data.validation_path', plan.data.validation_path) if split == 'validation' and plan.held_out else (
          plan.sources[0].key, plan.data.path)
      raise ConfigError(f"{key} is '{path}', which leaves no text for the {split} split; expected at least 2 characters"
                        f" of text, nearest is another {key}")


class Writer:
  """One split on its way to disk."""

  def __init__(self, folder: pathlib.Path, split: str, tokenizer: tokenizers.Tokenizer):
    self.dtype = np.dtype('<u2' if tokenizer.size <= 1 << 16 else '<u4')
    self.file = open(folder / f'{split}.bin', 'wb')
    self.starts = array.array('q')
    self.starts_path = folder / f'{split}.starts.npy'
    self.tokenizer = tokenizer
    self.tokens = self.bytes = 0

  def add(self, contents: Iterable[Any]) -> None:
    """One document, which is not empty, as text or as ids."""
    self.starts.append(self.tokens)
    self._put(np.array([self.tokenizer.end]))
    first = next(contents := iter(contents))
    contents = itertools.chain([first], contents)
    if isinstance(first, str):
      for ids, size in self.tokenizer.document(contents):
        self._put(ids)
        self.bytes += size
    else:
      before = self.tokenizer.begin
      for ids in contents:
        self._put(ids)
        self.bytes += int(self.tokenizer.bytes_of(np.append(before, ids[:-1]), ids).sum())
        before = ids[-1]

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
