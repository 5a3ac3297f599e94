"""Files of text to one flat array of tokens a split, kept in a cache that is addressed by content.

A split is `end d_1 end d_2 ... end d_n end`, see framework/data/splits.py.

A cache folder `corpora/<digest>/`, whose name is that of the texts, the settings and the tokenizer's rule, holds
`train.bin` and `validation.bin` (little-endian uint16, or uint32 for more than 65536 tokens), `*.starts.npy` (int64),
`tokenizer.json` and `meta.json`, which knows the SHA-256 of the others: they are read once at every start, and a folder
that is not what it was is made again. It appears by one rename, complete. A mixture is a corpus of each of its texts, all
of one tokenizer, and `mixtures/<digest>.json`, which names them.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from foundation import files, reading
from foundation.files import expand, lock
from framework import expressions
from framework.config import ConfigError, Data, check_section
from framework.data import building
from framework.data import cache as cache_lib
from framework.data import mixtures, overlap, remote, stream
from framework.data import sources as sources_lib
from framework.data import tokenizer as tokenizers
from framework.data.building import LAYOUT, SPLITS, Plan, Progress
from framework.data.splits import Held, Split

log = logging.getLogger(__name__)
Part = Split | stream.Stream | Held | mixtures.Mixture


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  train: Part
  validation: Part
  tokenizer: tokenizers.Tokenizer
  digest: str  # of the texts and of how they were tokenised and split
  left_out: tuple[str, ...] = ()  # of bad rows: how many, and the first of them


def prepare(data: Data, progress: Progress | None = None) -> Corpus:
  """The corpus of `data`, from the cache or prepared now, or the endless text of `data.task`; `data.tokens` bounds what
  is trained on.

  Held out is `data.validation_path` if given; else, of 20 documents or more, one in ten, chosen by a hash of its name;
  else the last tenth of the characters of every document. A document is a file, a line of a .jsonl file, a row of a
  table, or what stands between two ends in an array of ids. Of a mixture a part of each text is held out, and bpe and
  chars are made from all of them.

  Memory stays bounded whatever the size of the texts, except that a line of a .jsonl file is read whole.

  Raises:
    ConfigError: the texts cannot be found, read or decoded, or hold too little, or the cache cannot be written.
  """
  if data.task:
    corpus = Corpus(*stream.splits(data))
  else:
    corpus = _prepare(data, progress or (lambda done, total, what: None))
    if corpus.left_out:
      log.warning('%s rows without a text are left out (data.bad_rows=skip): %s', corpus.left_out[0],
                  '; '.join(corpus.left_out[1:]))
  return _bounded(corpus, data)


def cached(data: Data, digest: str) -> Corpus | None:
  """The corpus of that digest from the cache, wherever its texts are now; None if it is not there whole."""
  corpus = _open_mixture(data, digest) if data.mixture else _open(_folder(data, digest), digest)
  return corpus and _bounded(corpus, data)


def _bounded(corpus: Corpus, data: Data) -> Corpus:
  if not 0 < data.tokens < corpus.train.tokens:
    return corpus
  return dataclasses.replace(corpus, train=first_tokens(corpus.train, data.tokens))  # type: ignore[arg-type]


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
  writer = building.Writer(folder, 'validation', other)
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
  if data.mixture:
    return _mixed(data, progress)
  plan = Plan(data, _found('data.path', data.path, data),
              _found('data.validation_path', data.validation_path, data) if data.validation_path else [])
  corpus = _cached(plan, _digest(plan, '', progress), None, progress)
  overlap.warn(corpus.train, corpus.validation, plan.files)
  return corpus


def _found(key: str, path: str, data: Data) -> list[sources_lib.Source]:
  cache = cache_folder(data)
  if remote.is_remote(path):
    return sources_lib.find(key, remote.fetched(key, path, cache / 'remote'), ids=bool(data.ids))
  return sources_lib.find(key, path, cache / 'corpora', bool(data.ids))


def _mixed(data: Data, progress: Progress) -> Corpus:
  """A mixture: a corpus of each text, all of one tokenizer."""
  parts = expressions.mixture(data.mixture)
  plans = [Plan(dataclasses.replace(data, mixture='', path=path), _found('data.mixture', path, data))
           for _, path, _ in parts]
  names, weights = tuple(name for name, _, _ in parts), tuple(weight for _, _, weight in parts)
  texts = [_digest(plan, '', progress) for plan in plans]
  tokenizer = _shared_tokenizer(plans, weights, texts, progress)
  digests = [_digest(plan, tokenizer.digest, progress, text) for plan, text in zip(plans, texts)]
  corpora = [_cached(plan, digest, tokenizer, progress) for plan, digest in zip(plans, digests)]
  for corpus in corpora:
    for other in corpora:
      overlap.warn(corpus.train, other.validation, [])
  about = {'names': names, 'weights': weights, 'corpora': digests}
  mixture = _as_mixture(about, corpora)
  with _writing(data, sum(plan.size for plan in plans)):
    path = cache_folder(data) / 'mixtures' / f'{mixture.digest}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      files.write_sealed(path, about)
  return mixture


def _as_mixture(about: dict, corpora: list[Corpus]) -> Corpus:
  digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
  rows = sum(int(corpus.left_out[0]) for corpus in corpora if corpus.left_out)
  named = [line for corpus in corpora for line in corpus.left_out[1:]]
  names, weights = tuple(about['names']), tuple(about['weights'])
  return Corpus(mixtures.Mixture(names, weights, tuple(c.train for c in corpora)),
                mixtures.Mixture(names, weights, tuple(c.validation for c in corpora)),
                corpora[0].tokenizer, digest, (str(rows), *named) if rows else ())


def _open_mixture(data: Data, digest: str) -> Corpus | None:
  try:
    about = reading.value(cache_folder(data) / 'mixtures' / f'{digest}.json',
                          {'names': [str], 'weights': [float], 'corpora': [str]})
  except (OSError, ConfigError):
    return None
  corpora = [_open(_folder(data, part), part) for part in about['corpora']]
  whole = [corpus for corpus in corpora if corpus]
  return _as_mixture(about, whole) if whole and len(whole) == len(corpora) else None


def _shared_tokenizer(plans: list[Plan], weights: tuple[float, ...], texts: list[str], progress: Progress
                      ) -> tokenizers.Tokenizer:
  """The tokenizer of a mixture: made once for the same texts and weights, and kept."""
  data = plans[0].data
  if data.tokenizer not in ('chars', 'bpe'):
    return building.make_tokenizer(plans, weights, [], progress)
  key = json.dumps([texts, list(weights), tokenizers.behaviour(data.tokenizer)])
  path = cache_folder(data) / 'tokenizers' / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.json'
  if path.exists():
    with contextlib.suppress(ConfigError):  # damaged: made again
      return tokenizers.load(path)
  surveys = [building.Survey(plan.texts(False, 'reading', progress)) for plan in plans]
  tokenizer = building.make_tokenizer(plans, weights, surveys, progress)
  with _writing(data, sum(plan.size for plan in plans)):
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
  return tokenizer


def _cached(plan: Plan, digest: str, given: tokenizers.Tokenizer | None, progress: Progress) -> Corpus:
  """From the cache, else prepared and put there."""
  folder = _folder(plan.data, digest)
  root, cache = folder.parent, folder.parents[1]
  corpus = _open(folder, digest)
  if corpus:
    return corpus
  with _writing(plan.data, plan.size):
    root.mkdir(parents=True, exist_ok=True)
    with lock(root / f'{folder.name}.lock') as locked:
      corpus = _open(folder, digest, warn=True)
      if corpus:  # another process was quicker
        return corpus
      if locked:
        cache_lib.clean(root, folder.name)
      building.build(folder, digest, plan, given, progress, lambda path: _open(path, digest) is not None)
      corpus = _open(folder, digest)
  if not corpus:
    raise ConfigError(f"data.cache is '{cache}', where what was written cannot be read back; expected a sound disk, "
                      f'nearest is another data.cache')
  return corpus


@contextlib.contextmanager
def _writing(data: Data, size: int) -> Iterator[None]:
  """An OSError inside is one of the cache: every reader of the sources raises ConfigError."""
  try:
    yield
  except OSError as error:
    raise ConfigError(f"data.cache is '{cache_folder(data)}', which cannot be written ({error.strerror or error}); "
                      f'expected a folder with about {_megabytes(4 * size)} MB free, nearest is another data.cache'
                      ) from None


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


def _digest(plan: Plan, tokenizer: str, progress: Progress, texts: str = '') -> str:
  """Of all that decides the tokens: the names and contents of the files, the tokeniser, the layout and the split.

  Args:
    tokenizer: the digest of a given one, with `texts`, the digest without it; '': what the settings make of the texts.
  """
  if texts:
    return hashlib.sha256(f'{texts} {tokenizer}'.encode()).hexdigest()[:32]
  data = plan.data
  foreign = tokenizers.of_file(data.tokenizer)
  settings: dict = {'layout': LAYOUT, 'tokenizer': foreign.digest if foreign else data.tokenizer}
  if data.tokenizer == 'bpe':
    settings |= {'vocabulary': data.vocabulary, 'sample_bytes': tokenizers.SAMPLE_BYTES}
  settings |= {key: getattr(data, key) for key, usual in (('field', 'text'), ('bad_rows', 'refuse'), ('ids', ''))
               if getattr(data, key) != usual}
  hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  done = 0
  for source in plan.files:
    hasher.update(json.dumps([source.key, source.name]).encode())
    for path in sources_lib.read_with(source):
      content = hashlib.sha256()
      try:
        with open(path, 'rb') as file:
          while block := file.read(sources_lib.BLOCK):
            content.update(block)
            done += len(block)
            progress(min(done, plan.size), plan.size, 'checking')
      except OSError as error:
        raise sources_lib.unreadable(source.key, path, error) from None
      hasher.update(content.digest())
  return hasher.hexdigest()[:32]


def _open(folder: pathlib.Path, digest: str, warn: bool = False) -> Corpus | None:
  """The corpus in `folder`, or None if there is none or it is not what its meta.json says."""
  if not folder.exists():
    return None
  try:
    meta = reading.value(folder / 'meta.json')
    for name, wanted in meta['sha256'].items():
      if cache_lib.sha256(folder / name) != wanted:
        raise ValueError(f'{name} is not what was written')
    dtype = np.dtype(meta['dtype'])
    splits, tokenizer = {}, tokenizers.load(folder / 'tokenizer.json')
    for split in SPLITS:
      counts = meta['splits'][split]
      starts = np.load(folder / f'{split}.starts.npy')
      path = folder / f'{split}.bin'
      if meta['corpus'] != digest or len(starts) != counts['documents'] or (
          path.stat().st_size != counts['tokens'] * dtype.itemsize):
        raise ValueError('meta.json disagrees with the other files')
      splits[split] = Split(str(path), dtype, counts['tokens'], starts, counts['bytes'], counts['documents'],
                            tokenizer.begin)
    left_out = meta.get('left_out') or {'rows': 0}  # absent from caches that are older than data.bad_rows
    return Corpus(**splits, tokenizer=tokenizer, digest=digest,
                  left_out=(str(left_out['rows']), *left_out['named']) if left_out['rows'] else ())
  except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:  # ConfigError is a ValueError
    if warn:
      log.warning('the cached corpus %s is damaged (%s); it is prepared again', folder, error)
    return None
