"""A run is a folder: config.json when it starts, result.json when it ends.

config.json is sealed (foundation/sealed.py) and holds the digests of the corpus and of the tokenizer: with it, all that
a run is made of can be told from anything else.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from absl import logging
import jax

from foundation import files, reading
from foundation.errors import one_line
from framework import config as config_lib
from framework.data import corpus as corpus_lib
from framework.data import tokenizer as tokenizers
from framework.data import windows
from framework.training import hosts
from framework.training import resume as resume_lib

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain', 'tokenizers')
CONFIG, TOKENIZER = 'config.json', 'tokenizer.json'


@functools.cache
def _git_commit() -> str:
  """The commit of the code, with '+' if the tree differs from it; '' outside a checkout."""
  here = pathlib.Path(__file__).parent
  def git(*words):
    try:
      return subprocess.run(['git', *words], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
      return ''
  commit = git('rev-parse', 'HEAD').strip()
  return commit + ('+' if commit and git('status', '--porcelain', '--untracked-files=no').strip() else '')


@contextlib.contextmanager
def opened(workdir: pathlib.Path, config: config_lib.Config, corpus: corpus_lib.Corpus, resume: bool, start: str = ''
           ) -> Iterator[None]:
  """`open_folder`, and the folder held against other processes of this and other machines that share it.

  Raises:
    ConfigError: as `open_folder`, or another process holds the folder.
  """
  hosts.agree({'version of Python or a library': versions(), 'code': code()})
  hosts.agree(config_lib.flatten(config) | {'corpus': corpus.digest, 'tokenizer': corpus.tokenizer.digest})
  first = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    def begin():
      refuse_strangers(workdir)
      try:
        stack.enter_context(files.claimed(workdir))
      except OSError as error:
        raise config_lib.ConfigError(f'workdir {workdir} cannot be written: {error.strerror or error}') from error
      open_folder(workdir, config, corpus, resume, start)
    hosts.together(begin if first else lambda: None)
    # The others find what the first has made, if they share its disk.
    hosts.together((lambda: None) if first else lambda: open_folder(workdir, config, corpus, resume=True))
    yield
    hosts.finish()


def refuse_strangers(workdir: pathlib.Path) -> None:
  """Raises ConfigError if `workdir` is a file, or a folder that holds something else than a run."""
  if workdir.exists() and not workdir.is_dir():
    raise config_lib.ConfigError(f'workdir {workdir} is a file; expected a folder')
  if (workdir / CONFIG).exists():
    return
  # A kill between the first two files of a run leaves a tokenizer alone: still an empty run.
  strangers = [p.name for p in workdir.iterdir() if not p.name.startswith('.') and p.name != TOKENIZER] \
      if workdir.exists() else []
  if strangers:
    raise config_lib.ConfigError(f'workdir {workdir} is not empty and holds no run (found {sorted(strangers)[0]}); '
                                 'give an empty or a new folder')


def open_folder(workdir: pathlib.Path, config: config_lib.Config, corpus: corpus_lib.Corpus, resume: bool, start: str = ''
                ) -> None:
  """Creates the run's folder, or checks that the run in it is the one that `config` describes.

  Args:
    start: the run whose weights a new one begins with.

  Raises:
    ConfigError: the folder holds something else, another config, or a run that was not asked to be resumed.
  """
  path = workdir / CONFIG
  if path.exists():
    if not resume:
      raise config_lib.ConfigError(f'workdir {workdir} already holds a run; give --resume to continue it, '
                                   'or another --workdir')
    differ = _check_config(workdir, config)
    check_corpus(workdir, corpus)
    _keep_tokenizer(workdir, corpus)
    if jax.process_index() == 0:
      resume_lib.lengthen(workdir, read_config_file(path), config, differ)
    return
  refuse_strangers(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      corpus.tokenizer.save(workdir / TOKENIZER)
      write_config(workdir, config, corpus.digest, corpus.tokenizer.digest, start)
  except OSError as error:
    raise config_lib.ConfigError(f'workdir {workdir} cannot be written: {error.strerror or error}') from error


def write_config(workdir: pathlib.Path, config: config_lib.Config, corpus: str, tokenizer: str, start: str = '') -> None:
  """Writes config.json of a run that begins.

  Args:
    corpus, tokenizer: digests; '' of a corpus is a run that was trained on none of ours.
    start: the run whose weights it begins with.
  """
  files.write_sealed(workdir / CONFIG, {
      'config': config_lib.flatten(config), 'order': windows.ORDER, 'corpus': corpus, 'tokenizer': tokenizer,
      'git_commit': _git_commit(), 'code': code(), 'command': sys.argv, 'versions': versions(),
      'xla_flags': os.environ.get('XLA_FLAGS', ''), **({'start': start} if start else {}),
  })


def begin(workdir: pathlib.Path, config: config_lib.Config) -> dict[str, Any]:
  """Notes that a start of the run was accepted: writes its settings into config.json.

  Returns what is to be known of the start: the code that it runs, and the settings that are not those of the first.
  """
  changed = resume_lib.rewrite(workdir, read_config_file(workdir / CONFIG), config)
  return {'git_commit': _git_commit(), 'code': code(), 'versions': versions(), 'changed': changed}


@functools.cache
def code() -> str:
  """A digest of the code that trains."""
  root, sha = pathlib.Path(__file__).parents[2], hashlib.sha256()
  for package in ('foundation', 'framework', 'pallas_kernels'):
    for path in sorted((root / package).rglob('*.py')):
      sha.update(f'{path.relative_to(root)}\n'.encode() + path.read_bytes())
  return sha.hexdigest()[:32]


def versions() -> dict[str, str]:
  """Of Python and of the libraries that the numbers depend on."""
  return {'python': platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES}


def _check_config(workdir: pathlib.Path, config: config_lib.Config) -> dict[str, tuple[Any, Any]]:
  """The settings that differ, see resume.changes. Raises ConfigError if the run in `workdir` is another one."""
  saved = read_config_file(workdir / CONFIG)
  if saved.get('order', 1) != windows.ORDER:
    logging.warning('%s began under another order of batches: from its second epoch on, what comes is not what would '
                    'have come under the code that began it', workdir)
  return resume_lib.changes(workdir, saved, config)


def check_corpus(workdir: pathlib.Path, corpus: corpus_lib.Corpus) -> None:
  """Raises ConfigError if the run in `workdir` was on other text, or on tokens of another tokenizer."""
  saved = read_config_file(workdir / CONFIG)
  if saved['corpus'] and saved['corpus'] != corpus.digest:  # none is that of an adopted run
    raise config_lib.ConfigError(f"workdir {workdir} holds a run on corpus {saved['corpus'][:12]}; the text at "
                                 f'data.path is now {corpus.digest[:12]}: give that text back, or train in another '
                                 '--workdir')
  own = saved.get('tokenizer') or _tokenizer_digest(workdir)  # a run that is older than the entry
  if own and own != corpus.tokenizer.digest:
    raise config_lib.ConfigError(
        f"workdir {workdir} holds a run on tokens of {corpus.tokenizer.name} tokenizer {own[:12]}; the text's is now "
        f'{corpus.tokenizer.digest[:12]}: expected the code and the tokenizers library that made it '
        f"({saved.get('versions', {}).get('tokenizers')}), or another --workdir")


def corpus_of(workdir: pathlib.Path, config: config_lib.Config, progress: corpus_lib.Progress | None = None
              ) -> corpus_lib.Corpus:
  """The corpus of the run in `workdir`; where its texts are gone or others by now, from the cache by its digest.

  Raises:
    ConfigError: it is neither at its path nor in the cache.
  """
  digest, why = read_config_file(workdir / CONFIG)['corpus'], None
  try:
    found = corpus_lib.prepare(config.data, progress)
    if found.digest != digest:
      check_corpus(workdir, found)
  except config_lib.ConfigError as error:
    held = None if config.data.task else corpus_lib.cached(config.data, digest)
    if held is None:
      raise
    found, why = held, one_line(error)
  if why:
    logging.warning('%s; its tokens are taken from data.cache, where they are those of corpus %s', why, digest[:12])
  check_corpus(workdir, found)
  return found


def _tokenizer_digest(workdir: pathlib.Path) -> str:
  """Of the run's tokenizer.json; '' if it cannot be read."""
  try:
    return tokenizers.load(workdir / TOKENIZER).digest
  except config_lib.ConfigError:
    return ''


def _keep_tokenizer(workdir: pathlib.Path, corpus: corpus_lib.Corpus) -> None:
  """Writes tokenizer.json again if it is not that of the run, whose corpus this is."""
  if jax.process_index() == 0 and _tokenizer_digest(workdir) != corpus.tokenizer.digest:
    logging.warning('%s is damaged; it is written again', workdir / TOKENIZER)
    corpus.tokenizer.save(workdir / TOKENIZER)


def read_tokenizer(workdir: pathlib.Path) -> tokenizers.Tokenizer:
  """The tokenizer of the run in `workdir`. Raises ConfigError if there is none, or another than it began with."""
  tokenizer = tokenizers.load(workdir / TOKENIZER)
  wanted = read_config_file(workdir / CONFIG).get('tokenizer', tokenizer.digest)
  if tokenizer.digest != wanted:
    raise config_lib.ConfigError(f'{workdir / TOKENIZER} is not the tokenizer that the run began with: it is '
                                 f"{tokenizer.digest[:12]}, expected {wanted[:12]}; training with --resume mends it")
  return tokenizer


def read_config_file(path: pathlib.Path) -> dict[str, Any]:
  """The content of a run's config.json. Raises ConfigError if it cannot be read, or is not as it was written."""
  try:
    return reading.value(path, {'config': dict, 'corpus': str, 'tokenizer': (str, None),
                                'versions': ({str: str}, None)})
  except (FileNotFoundError, config_lib.ConfigError) as error:
    raise config_lib.ConfigError(f"{path} cannot be read as a run's config: {one_line(error)}") from error


def read_config(workdir: pathlib.Path) -> config_lib.Config:
  """The config of the run in `workdir`. Raises ConfigError if there is none."""
  path = workdir / CONFIG
  if not path.exists():
    beside = workdir.parent.iterdir() if workdir.parent.is_dir() else []
    around = [p.name for p in beside if (p / CONFIG).exists()]
    raise config_lib.ConfigError(f'workdir {workdir} holds no run; expected a folder with config.json'
                                 f'{config_lib.nearest(workdir.name, around)}')
  config = resume_lib.settings(read_config_file(path), path)
  if config.data.tokenizer not in config_lib.TOKENIZERS:
    config.data.tokenizer = str(workdir / TOKENIZER)  # what was read from elsewhere is kept in the run
  return config_lib.resolve(config)
