"""Trains on text for studies: every model is a run folder, which a signal interrupts and the same command resumes."""

import pathlib
from typing import Any

from framework import config as config_lib
from framework.data import corpus as corpus_lib
from framework.training import loop, run


class Stopped(Exception):
  """A signal stopped a run, whose checkpoint is saved; the message is its name."""


def train(config: config_lib.Config, folder: pathlib.Path, corpus: corpus_lib.Corpus | None = None) -> dict[str, Any]:
  """The content of the run's result.json when it is complete.

  Args:
    corpus: in place of the text that the config names.

  Raises:
    Stopped: a signal came first.
  """
  c = config_lib.resolve(config)
  corpus = corpus or corpus_lib.prepare(c.data)
  loop.check(c, corpus)
  with run.opened(folder, c, corpus, resume=True):
    result = loop.train(c, corpus, folder)
  if result['status'] != 'complete':
    raise Stopped(result['status'].removeprefix('stopped by '))
  return result
