"""Perplexities of our n-grams and of kenlm: of what lmplz made, and of ours, written as an ARPA file for kenlm."""

import math
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

kenlm = pytest.importorskip('kenlm')

from framework.baselines import ngram

pytestmark = pytest.mark.peers
TESTS = pathlib.Path(__file__).parents[1]
SPEECHES = TESTS.parents[1] / 'shared' / 'data' / 'text' / 'us_speeches' / 'us_speeches.txt'
LMPLZ = shutil.which('lmplz')  # built from kpu/kenlm; the Python package only reads models


def ids(documents):
  words = sorted({w for d in documents for w in d})
  return {w: i for i, w in enumerate(words)}


def stream(documents, numbers, unknown):
  end = len(numbers) + 1
  return np.array([end] + [t for d in documents for t in [*(numbers.get(w, unknown) for w in d), end]])


def perplexity(path, documents):
  """Of words and ends of documents, by kenlm."""
  model = kenlm.Model(str(path))
  log10 = sum(model.score(' '.join(d)) for d in documents)
  return 10 ** (-log10 / sum(len(d) + 1 for d in documents))


def ours(train, test, order, smoothing='kneser_ney'):
  numbers = ids(train)
  unknown, end = len(numbers), len(numbers) + 1
  model = ngram.count(stream(train, numbers, unknown), vocabulary=end + 1, end=end, order=order, smoothing=smoothing)
  return model, numbers, math.exp(model.nats(stream(test, numbers, unknown)).mean())


def write_arpa(model, numbers, path):
  """The trie as text; our one token for both ends of a document is <s> in front and </s> behind."""
  words = {i: w for w, i in numbers.items()} | {len(numbers): '<unk>', len(numbers) + 1: '</s>'}
  with open(path, 'w') as file:
    file.write('\\data\\\n')
    for m, order in enumerate(model.orders, 1):
      file.write(f'ngram {m}={len(order.p) + (m == 1)}\n')
    names = []
    for m, order in enumerate(model.orders, 1):
      file.write(f'\n\\{m}-grams:\n')
      if m == 1:
        here = [words[i] for i in range(model.vocabulary)]
        file.write(f'-99\t<s>\t{math.log10(order.backoff[model.end])}\n')
      else:
        here = [f'{names[key // model.vocabulary]} {words[key % model.vocabulary]}' for key in order.keys.tolist()]
      for name, p, backoff in zip(here, order.p, order.backoff):
        weight = '' if m == model.order else f'\t{math.log10(backoff) if name != "</s>" else 0}'
        file.write(f'{math.log10(p)}\t{name}{weight}\n')
      names = ['<s>' if name == '</s>' else name for name in here]
    file.write('\n\\end\\\n')


def test_the_golden_model_read_by_kenlm():
  documents = [line.split() for line in (TESTS / 'golden' / 'lmplz.txt').read_text().splitlines()]
  test = [d[1:] for d in documents] + [list('zebra,_zebra!'), list('the_queen.')]
  assert ours(documents, test, 3)[2] == pytest.approx(perplexity(TESTS / 'golden' / 'lmplz.arpa', test), rel=1e-5)


@pytest.fixture(scope='module', params=['characters', 'words'])
def speeches(request):
  if not SPEECHES.exists():
    pytest.skip('no texts beside the repository')
  documents = SPEECHES.read_text().split('\f\n')
  cut = list if request.param == 'characters' else str.split
  documents = [[w if w not in ' \n\t\r' else f'<{ord(w)}>' for w in cut(d)] for d in documents]
  return documents[:60], documents[118:]


@pytest.mark.parametrize('smoothing', ngram.SMOOTHINGS)
def test_our_model_read_by_kenlm(speeches, smoothing, tmp_path):
  train, test = speeches
  model, numbers, own = ours(train, test, 4, smoothing)
  write_arpa(model, numbers, tmp_path / 'ours.arpa')
  assert own == pytest.approx(perplexity(tmp_path / 'ours.arpa', test), rel=1e-4)


@pytest.mark.skipif(not LMPLZ, reason='no lmplz on the path')
@pytest.mark.parametrize('order', [2, 3, 5, 6])
def test_lmplz_on_the_same_text(speeches, order, tmp_path):
  train, test = speeches
  (tmp_path / 'train.txt').write_text('\n'.join(' '.join(d) for d in train) + '\n')
  subprocess.run([LMPLZ, '-o', str(order), '--text', tmp_path / 'train.txt', '--arpa', tmp_path / 'lm.arpa', '-S', '1G',
                  '-T', tmp_path, '--discount_fallback'], check=True, capture_output=True)
  assert ours(train, test, order)[2] == pytest.approx(perplexity(tmp_path / 'lm.arpa', test), rel=1e-4)
