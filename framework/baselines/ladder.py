"""The rungs of the ladder of predictors: a row of bits per token and per byte for each, on the same held-out tokens."""

import concurrent.futures
import dataclasses
import math
import pathlib
from typing import Any

from absl import logging
import numpy as np

from framework import config as config_lib
from framework.baselines import compressors, ngram
from framework.data import corpus, mixtures

# Bits per token of English words, a vocabulary of 2^15, as they are quoted in the outline of this project: beside the
# measured ones, not measured here.
QUOTED = {'uniform': 15.0, 'unigram': 11.7, 'bigram': 8.8, 'gzip': 8.2, 'a small LLM': 7.5, 'a human': 4.0,
          'an LLM': 3.6}
GUESSED = 2**16  # targets of the guessing game at most


def check_text(text: corpus.Corpus) -> None:
  """Raises ConfigError if the corpus is an endless one or a mixture, which cannot be counted."""
  if isinstance(text.train, mixtures.Mixture):
    raise config_lib.ConfigError('data.mixture is several texts, which are counted one by one; expected a data.path')
  if not isinstance(text.train, corpus.Split):
    raise config_lib.ConfigError('data.task is an endless text, which cannot be counted; expected a data.path')


def held_out(text: corpus.Corpus, tokens: int) -> corpus.Split:
  """The first `tokens` of the validation split, as a split."""
  split: Any = text.validation
  if not tokens or tokens >= split.tokens:
    return split  # check_text has refused an endless one
  size = int(np.asarray(text.tokenizer.token_bytes)[split.read(1, tokens)].sum())
  first: Any = corpus.first_tokens(split, tokens)
  return dataclasses.replace(first, bytes=size)


def count(text: corpus.Corpus, order: int, smoothing: str) -> ngram.NGram:
  """The n-gram model of a corpus's training split."""
  split: Any = text.train  # a Split: check_text has refused an endless one
  tokens_N = np.memmap(split.path, split.dtype, 'r', shape=split.tokens)
  return ngram.count(tokens_N, vocabulary=text.tokenizer.size, end=text.tokenizer.end, order=order,
                     smoothing=smoothing)


def figures(nats: float, tokens: int, size: int) -> dict[str, Any]:
  """The columns of the table, of a sum of nats over so many tokens and bytes of text."""
  bits = nats / math.log(2)
  return {'nats_per_token': nats / tokens, 'bits_per_token': bits / tokens, 'bits_per_byte': bits / size,
          'targets': tokens, 'bytes': size}


def scored(model: ngram.NGram, split: corpus.Split) -> dict[str, Any]:
  """An n-gram model on a split."""
  nats_N = model.nats(split.read(0, split.tokens))
  return figures(float(nats_N.sum()), len(nats_N), split.bytes)


def counted_rows(text: corpus.Corpus, split: corpus.Split, orders: list[int]) -> list[dict[str, Any]]:
  """Uniform to the highest order by Kneser-Ney, and simple back-off of the order that is best so far."""
  names = {0: 'uniform', 1: 'unigram', 2: 'bigram'}
  rows: list[dict[str, Any]] = []
  for order in sorted({0, 1, 2, *orders}):
    model = count(text, order, 'kneser_ney')
    rows.append({'name': names.get(order, f'{order}-gram, Kneser-Ney'), 'kind': 'counts', 'order': order,
                 'ngrams': sum(len(level.p) for level in model.orders)} | scored(model, split))
    logging.info('%s: %.4f bits/token', rows[-1]['name'], rows[-1]['bits_per_token'])
  best = min(rows, key=lambda row: row['nats_per_token'])['order']
  if best > 1:
    rows.append({'name': f'{best}-gram, back-off', 'kind': 'counts', 'order': best}
                | scored(count(text, best, 'backoff'), split))
  return rows


def compressor_rows(text: corpus.Corpus, split: corpus.Split) -> list[dict[str, Any]]:
  """gzip, bz2 and xz after the end of the training text."""
  table = text.tokenizer.table
  # A token is at least a byte, but for the ends of documents: so many tokens hold what is needed.
  first = max(0, text.train.tokens - compressors.PRIMING - text.train.documents - 1)
  training = compressors.text_of(text.train.read(first, text.train.tokens), table)
  held = compressors.text_of(split.read(1, split.tokens), table)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    bits = dict(zip(compressors.COMPRESSORS, pool.map(lambda name: compressors.bits(name, training, held),
                                                      compressors.COMPRESSORS)))
  return [{'name': name, 'kind': 'compressor'} | figures(b * math.log(2), split.tokens - 1, split.bytes)
          for name, b in bits.items()]


def run_row(workdir: pathlib.Path, text: corpus.Corpus, split: corpus.Split, stride: int, folder: pathlib.Path
            ) -> dict[str, Any]:
  """A trained run on the same text: its losses, and the bounds of the guessing game.

  A run on other tokens reads the text in its own, of which bits per byte compare.

  Args:
    folder: where the text's tokens are written, if they are others.
  """
  # Imported here, since they start JAX, which the other rungs do without.
  from framework.baselines import guessing
  from framework.data import windows
  from framework.models import contract
  from framework.training import evaluation, run, setup
  trained = setup.load(workdir)
  c, module, mesh = trained.setup.config, trained.setup.module, trained.setup.mesh
  own = trained.tokenizer
  if own.digest != text.tokenizer.digest:
    split = corpus.in_tokens_of(split, text.tokenizer, own, folder)
  stride = min(stride or c.evaluation.stride, c.data.window)
  held_out = windows.Windows(split, own.end, c.data.window, stride, c.data.packed)
  result = evaluation.evaluate(evaluation.compile_nats(module, mesh), trained.params, held_out, own, mesh,
                               batch=c.evaluation.batch)
  limit = max(1, GUESSED // c.data.window)
  guessed = [np.asarray(guessing.guesses(module, trained.params, batch))[batch['weights'] > 0]
             for batch in held_out.each(min(c.evaluation.batch, limit), limit)]
  lower, upper = guessing.bounds(np.concatenate(guessed))
  names = ('nats_per_token', 'bits_per_token', 'bits_per_byte', 'targets', 'bytes', 'window', 'stride',
           'loss_by_position')
  return {'name': workdir.name, 'kind': 'two-sided' if contract.answers(module, 'two_sided') else 'network',
          'model': c.model.name, 'step': trained.step, 'guessing_lower': lower, 'guessing_upper': upper,
          'same_tokens': own.digest == text.tokenizer.digest,
          'same_text': own.digest != text.tokenizer.digest or
          run.read_config_file(workdir / run.CONFIG)['corpus'] == text.digest} | {
              name: result[name] for name in names}


def table(rows: list[dict[str, Any]]) -> str:
  """The table as text, from the worst to the best; what was not measured here stands by itself."""
  lines = [f"{'predictor':<24} {'bits/token':>10} {'bits/byte':>10} {'guessing bounds':>16} {'quoted':>7}"]
  for row in rows:
    name = row['name'] + (' *' if row['kind'] == 'two-sided' else '') + (
        '' if row.get('same_tokens', True) else ' +') + ('' if row.get('same_text', True) else ' ~')
    bounds = f"{row['guessing_lower']:.3f} to {row['guessing_upper']:.3f}" if 'guessing_lower' in row else ''
    quoted = f"{QUOTED[row['name']]:7.1f}" if row['name'] in QUOTED else ''
    lines.append(f"{name:<24} {row['bits_per_token']:10.4f} {row['bits_per_byte']:10.4f} {bounds:>16} {quoted:>7}"
                 .rstrip())
  lines += [f"{name:<24} {'':>10} {'':>10} {'':>16} {value:7.1f}" for name, value in QUOTED.items()
            if name not in {row['name'] for row in rows}]
  if any(row['kind'] == 'two-sided' for row in rows):
    lines.append('* sees the text on both sides of the token: no code length, not to be compared with the others')
  if not all(row.get('same_tokens', True) for row in rows):
    lines.append('+ on tokens of its own: bits per byte compare, bits per token do not; it may have been trained on '
                 'this text')
  if not all(row.get('same_text', True) for row in rows):
    lines.append('~ was trained on other text, of which this may be a part')
  lines.append('quoted: bits per English word from a vocabulary of 2^15; on other tokens, so only the order compares')
  return '\n'.join(lines)
