"""N-grams: against lmplz's own file, against counting in dictionaries, sums over the vocabulary, and real text."""

import collections
import itertools
import math
import pathlib

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from framework import config as config_lib
from framework.baselines import ngram

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
TEXTS = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'text'


def stream(documents, end):
  return np.array([end, *itertools.chain.from_iterable([*d, end] for d in documents)], np.uint32)


def random_documents(rng, V, documents=12, longest=30):
  """Tokens 0 .. V-2 whose second half repeats the first with changes, so that counts above 1 are common."""
  half = [rng.integers(0, V - 1, rng.integers(0, longest)) for _ in range(documents)]
  changed = [np.where(rng.random(len(d)) < 0.2, rng.integers(0, V - 1, len(d)), d) for d in half]
  return [list(map(int, d)) for d in half + changed]


# Against lmplz


def arpa(path):
  """{n-gram of words: (log10 p, log10 back-off)} of an ARPA file."""
  entries = {}
  for line in path.read_text().splitlines():
    parts = line.split('\t')
    if len(parts) > 1:
      entries[tuple(parts[1].split())] = float(parts[0]), float(parts[2]) if len(parts) > 2 else 0.0
  return entries


@pytest.fixture(scope='module')
def golden():
  """Text and model written by lmplz of kpu/kenlm 4cb443e: -o 3 --discount_fallback; its vocabulary is what occurs,
  </s> and <unk>."""
  documents = [line.split() for line in (GOLDEN / 'lmplz.txt').read_text().splitlines()]
  words = sorted({word for d in documents for word in d})
  ids = {word: i for i, word in enumerate(words)} | {'<unk>': len(words), '</s>': len(words) + 1, '<s>': len(words) + 1}
  return documents, ids, arpa(GOLDEN / 'lmplz.arpa')


def worst_difference(documents, ids, entries):
  """The greatest |log10| between lmplz's numbers and ours, and how many n-grams it has that ours lacks."""
  model = ngram.count(stream([[ids[w] for w in d] for d in documents], ids['</s>']), vocabulary=len(ids) - 1,
                      end=ids['</s>'], order=3)
  worst = missing = 0
  for words, (log_p, log_backoff) in entries.items():
    *context, last = [ids[w] for w in words]
    state = model.start(1)
    for token in context:
      state = model.advance(state, np.array([token]))
    number = model.numbers(state, np.array([last]))[0, len(context)]
    if number < 0:
      missing += 1
      continue
    if words != ('<s>',):  # which nobody predicts; its place is that of </s>
      worst = max(worst, abs(log_p - math.log10(model.orders[len(context)].p[number])))
    if words[-1] != '</s>':
      worst = max(worst, abs(log_backoff - math.log10(model.orders[len(context)].backoff[number])))
  return worst, missing, sum(len(order.p) for order in model.orders)


def test_every_number_of_lmplz(golden):
  worst, missing, held = worst_difference(*golden)
  assert worst < 2e-6 and missing == 0  # it prints 7 digits
  assert held == len(golden[2]) - 1  # <s> and </s> are one token


def test_the_comparison_sees_unmodified_discounts(golden, monkeypatch):
  original = ngram._discounts
  monkeypatch.setattr(ngram, '_discounts', lambda counts, modified: original(counts, False))
  assert worst_difference(*golden)[0] > 1e-2


def test_the_comparison_sees_documents_that_run_together(golden):
  documents, ids, entries = golden
  assert worst_difference([list(itertools.chain(*documents))], ids, entries)[1] > 0


# Against counting in dictionaries


def discounts(values, smoothing):
  n = collections.Counter(values)
  if smoothing == 'backoff':
    return [0] + 3 * [n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5]
  if not all(n[k] for k in (1, 2, 3, 4)):
    return [0, 0.5, 1, 1.5]
  y = n[1] / (n[1] + 2 * n[2])
  d = [0] + [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
  return d if all(0 < d[k] <= k for k in (1, 2, 3)) else [0, 0.5, 1, 1.5]


class ByHand:
  """The definitions, one n-gram at a time; documents are padded with 'open' and 'close'."""

  def __init__(self, documents, V, order, smoothing):
    self.V, self.order, self.smoothing = V, order, smoothing
    raw = collections.Counter()
    for d in documents:
      padded = ['open', *d, 'close']
      for m in range(1, order + 1):
        raw.update(tuple(padded[i:i + m]) for i in range(len(padded) - m + 1))
    del raw['open',]
    self.counts = raw
    if smoothing == 'kneser_ney':
      before = collections.defaultdict(set)
      for g in raw:
        if len(g) > 1:
          before[g[1:]].add(g[0])
      self.counts = {g: c if len(g) == order or g[0] == 'open' else len(before[g]) for g, c in raw.items()}
    self.discount = {m: discounts([c for g, c in self.counts.items() if len(g) == m], smoothing)
                     for m in range(1, order + 1)}
    self.after = collections.defaultdict(dict)
    for g, c in self.counts.items():
      self.after[g[:-1]][g[-1]] = c

  def taken(self, context, count):
    return self.discount[len(context) + 1][min(count, 3)]

  def p(self, context, token):
    context = tuple(context)[max(0, len(context) - self.order + 1):]
    if self.order == 0:
      return 1 / self.V
    seen = self.after.get(context, {})
    total = sum(seen.values())
    lower = (lambda w: self.p(context[1:], w)) if context else (lambda w: 1 / self.V)
    if not seen:
      return lower(token)
    freed = sum(self.taken(context, c) for c in seen.values()) / total
    own = (seen.get(token, 0) - self.taken(context, seen.get(token, 0))) / total
    if self.smoothing == 'kneser_ney' or not context:
      return own + freed * lower(token)
    if len(seen) == self.V:
      return seen[token] / total
    return own if token in seen else freed * lower(token) / (1 - sum(map(lower, seen)))


@pytest.mark.parametrize('smoothing', ngram.SMOOTHINGS)
@pytest.mark.parametrize('order', [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize('V', [3, 9, 400])  # of 400, about 350 occur: 8 of them do not fit into one word
def test_by_hand(order, V, smoothing, monkeypatch):
  monkeypatch.setattr(ngram, '_BLOCK', 13)  # every seam between blocks is crossed
  rng = np.random.default_rng(order + V)
  train, test = random_documents(rng, V, 12 if V < 400 else 25), random_documents(rng, V, 2)
  test += [d[3:] for d in train[:6]]
  hand = ByHand(train, V, order, smoothing)
  expected = []
  for d in test:
    names = ['open', *d, 'close']
    expected += [-math.log(hand.p(names[:i], names[i])) for i in range(1, len(names))]
  model = ngram.count(stream(train, V - 1), vocabulary=V, end=V - 1, order=order, smoothing=smoothing)
  np.testing.assert_allclose(model.nats(stream(test, V - 1)), expected, rtol=2e-6, atol=2e-7)


# Sums, streams and files


documents_strategy = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(documents_strategy, st.integers(0, 8), st.sampled_from(ngram.SMOOTHINGS),
       st.lists(st.integers(0, 6), max_size=9))
def test_probabilities_sum_to_1_after_any_context(documents, order, smoothing, context):
  model = ngram.count(stream(documents, 6), vocabulary=7, end=6, order=order, smoothing=smoothing)
  state = model.start(2)
  for token in context:
    state = model.advance(state, np.array([token, 0]))
  p_BxV = model.distribution(state)
  np.testing.assert_allclose(p_BxV.sum(1), 1, rtol=1e-5)
  assert (p_BxV > 0).all()


@pytest.mark.parametrize('smoothing', ngram.SMOOTHINGS)
def test_step_by_step_is_the_whole_stream(smoothing):
  rng = np.random.default_rng(0)
  model = ngram.count(stream(random_documents(rng, 9), 8), vocabulary=9, end=8, order=4, smoothing=smoothing)
  tokens = stream(random_documents(rng, 9, 5), 8)
  state, nats = model.start(1), []
  for before, target in zip(tokens, tokens[1:]):
    state = model.advance(state, np.array([before]))
    nats.append(-math.log(model.distribution(state)[0, target]))
  np.testing.assert_allclose(nats, model.nats(tokens), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name, old, new', [('2.backoff.npy', None, b''), ('meta', b'"end": 8', b'"end": 7')])
def test_one_changed_byte_is_seen(tmp_path, name, old, new):
  tokens = stream(random_documents(np.random.default_rng(0), 9), 8)
  ngram.count(tokens, vocabulary=9, end=8, order=3).save(tmp_path / 'model')
  path = tmp_path / 'model' / (ngram._META if name == 'meta' else name)
  content = path.read_bytes()
  path.write_bytes(content.replace(old, new) if old else content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(config_lib.ConfigError, match='as it was written|was changed after it was written'):
    ngram.load(tmp_path / 'model')


def test_save_and_load(tmp_path):
  tokens = stream(random_documents(np.random.default_rng(0), 9), 8)
  model = ngram.count(tokens, vocabulary=9, end=8, order=4)
  model.save(tmp_path / 'model')
  again = ngram.load(tmp_path / 'model')
  assert isinstance(again.orders[3].keys, np.memmap)
  np.testing.assert_array_equal(again.nats(tokens), model.nats(tokens))
  with pytest.raises(FileExistsError):
    model.save(tmp_path / 'model')
  assert [p.name for p in tmp_path.iterdir()] == ['model']
  np.save(tmp_path / 'model' / '3.p.npy', np.ones(2, np.float32))
  with pytest.raises(config_lib.ConfigError, match='3.p.npy is not as it was written'):
    ngram.load(tmp_path / 'model')
  with pytest.raises(config_lib.ConfigError, match='cannot be read'):
    ngram.load(tmp_path / 'none')


def test_mistakes_are_named():
  count = lambda **kwargs: ngram.count(stream([[0]], 1), vocabulary=2, end=1, **kwargs)
  with pytest.raises(config_lib.ConfigError, match='order is 9; expected 0 to 8, nearest is 8'):
    count(order=9)
  with pytest.raises(config_lib.ConfigError, match="did you mean 'backoff'"):
    count(order=2, smoothing='backof')
  with pytest.raises(ValueError, match='expected 0 to 1'):
    count(order=2).nats(np.array([1, 5]))


# Real text


def shakespeare():
  text = (TEXTS / 'tinyshakespeare.txt').read_text()
  return [text[:len(text) * 9 // 10]], [text[len(text) * 9 // 10:]]


def speeches():
  documents = (TEXTS / 'us_speeches' / 'us_speeches.txt').read_text().split('\f\n')
  return documents[::10] + documents[1::10], documents[5::10]


def novel():
  text = (TEXTS / 'gutenberg' / 'pride_and_prejudice.txt').read_text()
  return [text[:len(text) * 9 // 10]], [text[len(text) * 9 // 10:]]


@pytest.mark.skipif(not TEXTS.is_dir(), reason='no texts beside the repository')
@pytest.mark.parametrize('corpus', [shakespeare, speeches, novel])
def test_the_ladder_goes_down(corpus):
  train, test = (stream([np.frombuffer(d.encode(), np.uint8) for d in split], 256) for split in corpus())
  def bits(order, smoothing='kneser_ney'):
    model = ngram.count(train, vocabulary=257, end=256, order=order, smoothing=smoothing)
    return model.nats(test).mean() / math.log(2)
  ladder = [bits(order) for order in (0, 1, 2, 3, 5)]
  assert ladder == sorted(ladder, reverse=True) and ladder[0] == pytest.approx(math.log2(257))
  assert ladder[-1] < bits(5, 'backoff')
  if corpus is shakespeare:
    # A prototype with one discount a model has 4.83, 3.58 and 2.26 bits for orders 1, 2 and 5.
    assert ladder[1] == pytest.approx(4.83, abs=0.01) and ladder[2] == pytest.approx(3.58, abs=0.01)
    assert 2.20 < ladder[-1] < 2.26
