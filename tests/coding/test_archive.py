"""Compression under every kind of model: the same bytes back, at the model's cross-entropy, or a clear refusal."""

import dataclasses
import hashlib
import math
import random
import struct

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.baselines import ngram
from framework.coding import archive as compression
from framework.coding import predictors
from framework.data import corpus, tokenizer as tokenizers
from framework.data import windows
from framework.models import contract
from framework.training import evaluation, layout
from tests.networks import build

WINDOW = 16
BYTES = tokenizers.Bytes()
MODEL = b'0123456789abcdef'


def text(words=400, seed=0):
  rng = random.Random(seed)
  names = [''.join(rng.choices('abcdefé', k=rng.randint(1, 6))) for _ in range(20)]
  return ' '.join(rng.choices(names, k=words)).encode()


def network(name, vocabulary=257):
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(name=name, layers=1, width=16, heads=2)))
  module = build(config.model, vocabulary, WINDOW)
  params = contract.init(module, jax.random.key(1))
  return module, jax.tree.map(lambda x: x * 4, params)  # far from uniform


def maker(name):
  """rows -> predictor."""
  if name == 'ngram':
    tokens = np.concatenate([[256], np.frombuffer(text(seed=3), np.uint8), [256]])
    model = ngram.count(tokens, vocabulary=257, end=256, order=4)
    return lambda rows: predictors.Counted(model, rows)
  module, params = network(name)
  return lambda rows: predictors.Network(module, params, WINDOW, rows)


@pytest.fixture
def short_rows(monkeypatch):
  monkeypatch.setattr(compression, 'ROW_TOKENS', 150)


@pytest.mark.parametrize('name', ['decoder', 'rnn', 'lstm', 'markov', 'ngram'])
def test_round_trip_at_the_price_of_the_counts(name, short_rows):
  data, make = text(), maker(name)
  packed = compression.pack(data, BYTES, MODEL, make)
  assert compression.unpack(packed.data, BYTES, MODEL, make) == data
  assert packed.bits <= 8 * len(packed.data) <= 1.01 * packed.bits + 8 * 80  # header, checksum, end of the stream
  assert packed.tokens == len(data) and packed.tokens // 150 > 1


@pytest.mark.parametrize('data', [b'', b'x', b'xy', bytes(range(256)) * 2, b'\xff\x00' * 40], ids=len)
def test_any_bytes(data, short_rows):
  make = maker('markov')
  packed = compression.pack(data, BYTES, MODEL, make)
  assert compression.unpack(packed.data, BYTES, MODEL, make) == data


@pytest.mark.parametrize('tokenizer', ['chars', 'bpe'])
def test_other_tokenizers(tokenizer, short_rows):
  data = text()
  made = (tokenizers.Chars(''.join(sorted(set(data.decode())))) if tokenizer == 'chars' else
          tokenizers.train_bpe([data.decode()], 300))
  module, params = network('decoder', made.size)
  make = lambda rows: predictors.Network(module, params, WINDOW, rows)
  packed = compression.pack(data, made, MODEL, make)
  assert packed.tokens < len(data) and compression.unpack(packed.data, made, MODEL, make) == data
  with pytest.raises(config_lib.ConfigError, match='byte 2 is not UTF-8.*data.tokenizer=bytes'):
    compression.pack(b'ab\xff', made, MODEL, make)
  if tokenizer == 'chars':
    with pytest.raises(config_lib.ConfigError, match="character 'Z'"):
      compression.pack(b'abZ', made, MODEL, make)


def test_the_size_is_the_cross_entropy_that_evaluation_finds(tmp_path):
  """One row: window by window with half a window of context, as evaluation with that stride sees it."""
  data = text(words=3000)
  (tmp_path / 'train.txt').write_bytes(text(seed=4))
  (tmp_path / 'held.txt').write_bytes(data)
  prepared = corpus.prepare(config_lib.Data(path=str(tmp_path / 'train.txt'), cache=str(tmp_path / 'cache'),
                                            validation_path=str(tmp_path / 'held.txt')))
  module, params = network('decoder')
  mesh = layout.make_mesh(jax.devices()[:1])
  result = evaluation.evaluate(evaluation.compile_nats(module, mesh), params,
                               windows.Windows(prepared.validation, BYTES.end, WINDOW, WINDOW // 2), BYTES, mesh,
                               batch=64)
  packed = compression.pack(data, BYTES, MODEL, lambda rows: predictors.Network(module, params, WINDOW, rows))
  bits = result['nats_per_token'] * result['targets'] / math.log(2)
  assert packed.bits == pytest.approx(bits, rel=0.003)
  assert 8 * len(packed.data) == pytest.approx(bits, rel=0.01)


def test_counts_are_the_models_probabilities():
  module, params = network('decoder')
  predictor = predictors.Network(module, params, WINDOW, 3)
  tokens = np.random.default_rng(0).integers(0, 257, (3, 40)).astype(np.int32)
  whole = np.ones((3, WINDOW), np.int32)
  apply = jax.jit(lambda view: jax.nn.softmax(module.logits(params, module.apply(
      {'params': params}, view, np.tile(np.arange(WINDOW), (3, 1)), whole)[0])))
  for step in range(40):
    counts = predictor.advance(tokens[:, step])
    # What is in view: all since the beginning, then always between half a window and a window.
    seen = step + 1 if step < WINDOW else WINDOW // 2 + 1 + (step - WINDOW) % (WINDOW // 2)
    view = np.pad(tokens[:, step + 1 - seen:step + 1], [(0, 0), (0, WINDOW - seen)])
    p = apply(view)[:, seen - 1]
    np.testing.assert_allclose(np.diff(counts, prepend=0) / counts[:, -1:], p, atol=2e-5)
    assert (np.diff(counts, prepend=0) >= 1).all()


def test_rows_and_devices_change_nothing(monkeypatch):
  """7 rows in groups of 2 over four devices give the counts of one device, bit by bit."""
  monkeypatch.setattr(predictors, 'LANES', 2)
  module, params = network('lstm')
  tokens = np.random.default_rng(0).integers(0, 257, (7, 20)).astype(np.int32)
  def counts():
    predictor = predictors.Network(module, params, WINDOW, 7)
    return np.stack([predictor.advance(column) for column in tokens.T])
  many = counts()
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:1])
  np.testing.assert_array_equal(many, counts())


@pytest.fixture(scope='module')
def packed():
  return compression.pack(text(), BYTES, MODEL, maker('ngram')).data


def refuses(data, pattern, model=MODEL, make=None):
  def never(rows):
    raise AssertionError('it was decoded')
  with pytest.raises(config_lib.ConfigError, match=pattern):
    compression.unpack(data, BYTES, model, make or never)


def test_every_flipped_bit_is_refused_before_decoding(packed):
  for place in range(len(packed)):
    for bit in range(8):
      flipped = bytearray(packed)
      flipped[place] ^= 1 << bit
      refuses(bytes(flipped), 'no file of experiments.compress' if place < 8 else 'damaged')


def test_cut_and_longer_files_are_refused(packed):
  for data in (b'', packed[:5], packed[:20], packed[:-1], packed + b'\0', b'some other file, not of ours at all'):
    refuses(data, 'no file of experiments.compress|damaged')


def test_another_model_is_refused(packed):
  refuses(packed, 'was packed under model 303132333435, this run is 666564636261', b'fedcba9876543210')


def claiming(packed, size, tokens, rows, stream=None):
  """The file with other numbers in its header, and a checksum that fits."""
  body = packed[:40] + struct.pack('>QQI', size, tokens, rows) + (packed[60:-8] if stream is None else stream)
  return body + hashlib.blake2b(body, digest_size=8).digest()


def test_a_claim_takes_neither_memory_nor_time(packed):
  """A kilobyte that claims 32 GiB, or hours of decoding."""
  size, tokens, rows = struct.unpack_from('>QQI', packed, 40)
  assert compression.unpack(claiming(packed, size, tokens, rows), BYTES, MODEL, maker('ngram')) == text()
  for claim in ((size, 2**33, 1), (2**33, 2**33, 1024), (2**63, tokens, rows), (size, tokens, 2**32 - 1), (size, 0, 1),
                (size, tokens, 0), (tokens - 1, tokens, rows), (size, size + 1, 1), (tokens + 1, tokens, rows)):
    refuses(claiming(packed, *claim), 'which its .* bytes of code cannot hold')
  steps = []
  class Slow(predictors.Counted):
    def advance(self, tokens_B):
      steps.append(len(tokens_B))
      return super().advance(tokens_B)
  tokens = np.concatenate([[256], np.frombuffer(text(seed=3), np.uint8), [256]])
  model = ngram.count(tokens, vocabulary=257, end=256, order=4)
  many = 10**8  # as the numbers allow, but for what the code is worth
  refuses(claiming(packed, many, many, 1024), 'claims 100,000,000 tokens and its code ends after some',
          make=lambda rows: Slow(model, rows))
  assert len(steps) < 200


def test_a_model_that_computes_differently_never_passes(packed):
  """As on another machine: the fingerprint is right, the numbers are not."""
  class Other(predictors.Counted):
    def advance(self, tokens_B):
      return super().advance(tokens_B) + (np.arange(257) >= 97)
  tokens = np.concatenate([[256], np.frombuffer(text(seed=3), np.uint8), [256]])
  model = ngram.count(tokens, vocabulary=257, end=256, order=4)
  refuses(packed, 'this machine computes the model differently', make=lambda rows: Other(model, rows))


def test_fingerprints_tell_models_apart():
  config = config_lib.resolve(config_lib.Config())
  module, params = network('markov')
  base = predictors.fingerprint(config, 'tokens', params)
  assert base == predictors.fingerprint(config, 'tokens', jax.tree.map(np.asarray, params)) and len(base) == 16
  changed = jax.tree.map(np.array, params)
  changed['norm']['scale'][3] += 1e-6
  wider = dataclasses.replace(config, data=dataclasses.replace(config.data, window=99))
  seeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=5))
  assert len({base, predictors.fingerprint(config, 'tokens', changed), predictors.fingerprint(wider, 'tokens', params),
              predictors.fingerprint(config, 'other', params)}) == 4
  assert base == predictors.fingerprint(seeded, 'tokens', params)
  assert hashlib.blake2b(b'', digest_size=16).digest() != base


def test_nan_is_refused():
  module, params = network('markov')
  predictor = predictors.Network(module, jax.tree.map(lambda x: x * np.nan, params), WINDOW, 1)
  with pytest.raises(config_lib.ConfigError, match='NaN for a probability'):
    predictor.advance(np.array([1]))
