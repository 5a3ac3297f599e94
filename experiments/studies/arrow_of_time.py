"""Is text as easy to predict from its end to its beginning?

By the chain rule a text has the same entropy in both directions, so that the best predictor has the same loss. A
learner need not: what is easy to compute one way may be hard the other way ("TCS for LLMs"; Papadopoulos et al. 2024).
The same decoder is trained on documents as they are and on the same documents turned round, byte by byte, with all else
equal.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.shared import text_training as text
from framework import config as config_lib
from framework.data import corpus as corpus_lib

CLAIM = 'A decoder predicts text better forwards than backwards.'
SOURCE = ('Papadopoulos, Wenger and Hongler 2024, "Arrows of Time for Large Language Models", arXiv:2401.17505; Foster '
          'and Madeka 2023, "TCS for LLMs"')
RULE = ('Held-out bits a byte of the same decoder, same steps: in every seed backwards above forwards. Otherwise not '
        'supported.')

DEVICES = 0  # one a core
SCALES = {
    'cpu': dict(layers=2, width=128, heads=4, window=128, batch=16, steps=1000, learning_rate=3e-3, evaluated=2048,
                tokenizer='bytes'),
    'gpu': dict(layers=8, width=512, heads=8, window=512, batch=64, steps=20000, learning_rate=1e-3, evaluated=0,
                tokenizer='bpe'),
    'paper': dict(layers=12, width=768, heads=12, window=1024, batch=128, steps=100000, learning_rate=6e-4, evaluated=0,
                  tokenizer='bpe'),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Backwards:
  """A split read from its last token to its first: `end d_n .. d_1 end`, each document turned round."""
  split: Any  # of a corpus

  @property
  def tokens(self) -> int:
    return self.split.tokens

  @property
  def bytes(self) -> int:
    return self.split.bytes

  @property
  def documents(self) -> int:
    return self.split.documents

  @property
  def starts(self) -> np.ndarray:
    """What closed a document now opens it."""
    return self.tokens - 1 - np.append(self.split.starts[1:], self.tokens - 1)[::-1]

  def rows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
    return self.split.rows(self.tokens - length - np.asarray(starts_B), length)[:, ::-1]


def turned(corpus: corpus_lib.Corpus) -> corpus_lib.Corpus:
  train, validation = (Backwards(split) for split in (corpus.train, corpus.validation))
  return dataclasses.replace(corpus, train=train, validation=validation,  # type: ignore[arg-type]  # stand for splits
                             digest=f'{corpus.digest} backwards')


def settings(s: dict[str, Any], seed: int) -> config_lib.Config:
  return config_lib.resolve(config_lib.Config(
      model=config_lib.Model(layers=s['layers'], width=s['width'], heads=s['heads']),
      data=config_lib.Data(window=s['window'], tokenizer=s['tokenizer']),
      optimizer=config_lib.Optimizer(learning_rate=s['learning_rate'], final_learning_rate=s['learning_rate'] / 10,
                                     warmup_steps=s['steps'] // 10),
      training=config_lib.Training(steps=s['steps'], batch=s['batch'], seed=seed),
      evaluation=config_lib.Evaluation(windows=s['evaluated'])))


def parts(s: dict[str, Any]) -> list[str]:
  return ['forwards', 'backwards']


def run(part: str, seed: int, s: dict[str, Any], show, folder: pathlib.Path) -> dict[str, Any]:
  c = settings(s, seed)
  corpus = corpus_lib.prepare(c.data)
  result = text.train(c, folder, corpus if part == 'forwards' else turned(corpus))
  return {key: result[key] for key in ('bits_per_byte', 'loss_by_position', 'tokens', 'params_total')}


def verdict(results: dict[str, dict[int, Any]]) -> dict[str, Any]:
  bits = {part: [seeds[seed]['bits_per_byte'] for seed in sorted(seeds)] for part, seeds in results.items()}
  more = [b / f - 1 for f, b in zip(bits['forwards'], bits['backwards'])]
  numbers = {f'bits a byte {part}': values for part, values in bits.items()} | {'more backwards, per cent': [
      100 * x for x in more]}
  return {'numbers': numbers, 'verdict': 'supported' if min(more) > 0 else 'not supported'}


def figure(results: dict[str, dict[int, Any]], axes) -> None:
  """Held-out nats a token by the number of tokens read, the mean of the seeds."""
  for part, seeds in results.items():
    curves = np.array([run['loss_by_position'] for run in seeds.values()], float)
    axes.plot(np.arange(1, curves.shape[1] + 1), curves.mean(0), label=part, linewidth=1)
  axes.set_xscale('log')
  axes.set_xlabel('position in the window')
  axes.set_ylabel('nats a token')
  axes.legend(fontsize=8)
