"""Runs from Python, as in a notebook: train, evaluate, sample, look inside.

  from framework import runs
  from framework.config import Config, Data, Model, Training

  run = runs.train(Config(data=Data(path='novels/'), training=Training(steps=300)), 'runs/novel')
  run.evaluate()['bits_per_byte']
  run.sample('It was', tokens=100)
  run.rows[-1], run.result['params_total']
  weights_NxHxLxL, tokens = run.attention('It was the best of times')

The folder is that of `python -m experiments.train`, and the same call again goes on with it, or gives it back when it
is done; `runs.open('runs/novel')` reads one. Laws are fitted by the package `scaling`, programs compiled by `rasp`.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np

from foundation import files
from foundation.errors import ConfigError
from framework import config as config_lib
from framework import generation
from framework.data import corpus as corpus_lib
from framework.data import mixtures, splits
from framework.models import contract
from framework.training import evaluation, loop, result, setup, writer
from framework.training import run as run_lib


def train(config: config_lib.Config, folder: str | os.PathLike, corpus: corpus_lib.Corpus | None = None) -> 'Run':
  """Trains a config in a folder, from where it is, to the end or to a signal (Ctrl-C, the button of a notebook).

  Args:
    corpus: in place of the text that the config names.

  Raises:
    ConfigError: the config is wrong, or the folder holds something else.
  """
  c = config_lib.resolve(config)
  workdir = files.expand('folder', os.fspath(folder)).resolve()
  text = corpus or corpus_lib.prepare(c.data)
  loop.check(c, text)
  with run_lib.opened(workdir, c, text, resume=True):
    loop.train(c, text, workdir)
  return Run(workdir, text)


def open(folder: str | os.PathLike) -> 'Run':  # pylint: disable=redefined-builtin
  """The run in a folder. Raises ConfigError if there is none."""
  run = Run(files.expand('folder', os.fspath(folder)).resolve())
  run_lib.read_config(run.folder)
  return run


@dataclasses.dataclass(frozen=True)
class Run:
  """What is in the folder of a run, read when it is asked for."""
  folder: pathlib.Path
  given: corpus_lib.Corpus | None = dataclasses.field(default=None, repr=False)

  @property
  def config(self) -> config_lib.Config:
    """Its resolved settings."""
    return run_lib.read_config(self.folder)

  @property
  def result(self) -> dict[str, Any]:
    """The content of result.json, {} before the run has ended once."""
    return result.read(self.folder) or {}

  @property
  def rows(self) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return files.read_rows(self.folder / writer.METRICS)

  @property
  def corpus(self) -> corpus_lib.Corpus:
    """Its text as tokens."""
    return self.given or run_lib.corpus_of(self.folder, self.config)

  def load(self, step: int | None = None) -> setup.Trained:
    """The model with the parameters of a checkpoint; None: the newest. Raises ConfigError if there is none."""
    return _loaded(self.folder, step, self.result.get('steps'))

  def evaluate(self, text: str = '', *, stride: int = 0, windows: int = 0, step: int | None = None) -> dict[str, Any]:
    """Losses on the held-out text or on another, see framework.training.evaluation.evaluate.

    Args:
      text: the text itself; '': what the run holds out.
      stride: tokens predicted a window; 0: that of the config. windows: evenly spread; 0: all. step: of the checkpoint.
    """
    trained, c = self.load(step), self.config
    split = splits.held([('text', text)], trained.tokenizer) if text else self.corpus.validation
    on = mixtures.evaluated_on(split, trained.tokenizer.end, c.data.window, stride or c.evaluation.stride,
                               c.data.packed)
    return evaluation.evaluate(evaluation.compile_nats(trained.setup.module, trained.setup.mesh), trained.params, on,
                               trained.tokenizer, trained.setup.mesh, batch=c.evaluation.batch, limit=windows)

  def sample(self, prompt: str = '', *, tokens: int = 200, temperature: float = 0.8, top_k: int = 0, top_p: float = 1.0,
             seed: int = 0, step: int | None = None) -> str:
    """The prompt and what the model writes after it, to the end of the document or so many tokens.

    Raises:
      ConfigError: the model writes no text, or the prompt cannot be encoded.
    """
    trained = self.load(step)
    tokenizer, module = trained.tokenizer, trained.setup.module
    settings = generation.Sampling(temperature, top_k, top_p, tokenizer.end)
    ids = np.array([tokenizer.begin, *tokenizer.encode(prompt)], np.int32)
    if contract.answers(module, 'generate'):
      written = [token for token, _ in contract.require(module, 'generate', 'sample')(
          trained.params, ids, tokens=tokens, settings=settings, seed=seed)]
    else:
      columns = generation.generate(module, trained.params, [ids], tokens=tokens, window=self.config.data.window,
                                    settings=settings, seed=seed)
      written = [int(token) for column in columns for token in column[0]]
    end = written.index(tokenizer.end) if tokenizer.end in written else len(written)
    return prompt + tokenizer.decode(np.array(written[:end], np.int32))

  def attention(self, text: str, step: int | None = None) -> tuple[np.ndarray, list[str]]:
    """(weights [layers, heads, tokens that read, tokens that are read], the tokens) of a text, cut to the window.

    Raises:
      ConfigError: the model has no attention, or the text cannot be encoded.
    """
    trained = self.load(step)
    attend = contract.require(trained.setup.module, 'attention', 'attention')
    ids = np.array([trained.tokenizer.begin, *trained.tokenizer.encode(text)], np.int32)[:self.config.data.window]
    if len(ids) < 2:
      raise ConfigError('the text is empty; expected at least a character of it')
    weights_NxBxHxLxL = np.asarray(jax.jit(attend)(trained.params, ids[None]))
    return weights_NxBxHxLxL[:, 0], [trained.tokenizer.decode(ids[i:i + 1]) or '∅' for i in range(len(ids))]


@functools.lru_cache(4)
def _loaded(folder: pathlib.Path, step: int | None, ended: int | None) -> setup.Trained:
  """Read once while the run has not got further; `ended`: its last step."""
  del ended  # tells a run that has gone on from itself
  return setup.load(folder, step)
