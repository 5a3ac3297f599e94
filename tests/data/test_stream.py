"""Synthetic languages as endless texts: any token from its place alone, and the same windows, runs and samples."""

import dataclasses

import numpy as np
import pytest

from framework.config import ConfigError, Data
from framework.data import corpus as corpora
from framework.data import stream, tokenizer, windows


@dataclasses.dataclass(frozen=True)
class Counting:
  """Documents of 4: the end token, then three draws."""
  alphabet: str = 'abcdefghij'
  length: int = 4

  def block(self, rng):
    return np.concatenate([[10], rng.integers(10, size=3)])


def test_tokens_are_functions_of_their_place():
  text = stream.Stream(Counting(), 0, 4000)
  whole = text.read(0, 4000)
  assert len(whole) == 4000 and (whole[::4] == 10).all() and len(np.unique(whole)) == 11
  starts = np.array([3999, 0, 17, 2, 1000])
  for length in (0, 1, 4, 9):
    rows = text.rows(np.minimum(starts, 4000 - length), length)
    for row, start in zip(rows, np.minimum(starts, 4000 - length)):
      np.testing.assert_array_equal(row, whole[start:start + length])
  np.testing.assert_array_equal(text.read(3990, 5000), whole[3990:])  # clipped
  far = stream.Stream(Counting(), 0, stream.ENDLESS).rows(np.array([stream.ENDLESS - 8]), 8)
  assert far[0, 0] == far[0, 4] == 10  # block 2^38 costs no more than block 0


def test_splits_and_seeds_are_different_texts():
  texts = [stream.Stream(Counting(), split, 4000, seed).read(0, 4000) for split in (0, 1) for seed in (0, 1)]
  for i, one in enumerate(texts):
    for other in texts[:i]:
      assert 0.25 < (one == other).mean() < 0.45  # a quarter are end tokens, a tenth of the rest agree by chance


def test_documents_are_kept_apart_and_every_window_is_one_document():
  text = stream.Stream(Counting(), 0, 401)
  made = windows.Windows(text, 10, 4, 4, True).batch(np.arange(windows.count(401, 4)))
  assert (made['tokens'][:, 0] == 10).all() and (made['segments'] == 1).all() and made['weights'].sum() == 400
  crossing = windows.Windows(text, 10, 6, 6, True).batch(np.arange(60))
  assert crossing['segments'].max() == 2 and (crossing['positions'] <= 3).all()


def test_a_task_becomes_a_corpus():
  found = corpora.prepare(Data(task='zipf_pairs:symbols=8'))
  assert found.tokenizer.size == 25 and found.train.tokens == stream.ENDLESS
  assert found.validation.tokens == stream.HELD_OUT
  assert found.tokenizer.encode(found.tokenizer.decode([0, 8, 23])).tolist() == [0, 8, 23]
  assert (found.tokenizer.token_bytes[:-1] == 1).all()
  tasks = ('zipf_pairs', 'zipf_pairs:noise=0.3', 'zipf_pairs:symbols=8')
  digests = {corpora.prepare(Data(task=task)).digest for task in tasks}
  assert len(digests) == 3 and found.digest in digests
  assert corpora.prepare(Data(task='zipf_pairs:noise=0.2')).digest == corpora.prepare(Data(task='zipf_pairs')).digest


def test_the_alphabet_is_saved_with_the_run(tmp_path):
  found = corpora.prepare(Data(task='zipf_pairs'))
  found.tokenizer.save(tmp_path / 'tokenizer.json')
  again = tokenizer.load(tmp_path / 'tokenizer.json')
  assert again == found.tokenizer and (again.token_bytes == found.tokenizer.token_bytes).all()


def test_tokens_bound_what_is_trained_on(tmp_path):
  few = corpora.prepare(Data(task='zipf_pairs', tokens=961))
  assert few.train.tokens == 961 and windows.count(few.train.tokens, 96) == 10
  (tmp_path / 'a.txt').write_text('abcdefghij' * 100)
  whole = corpora.prepare(Data(path=str(tmp_path), cache=str(tmp_path / 'cache')))
  part = corpora.prepare(Data(path=str(tmp_path), cache=str(tmp_path / 'cache'), tokens=101))
  assert part.train.tokens == 101 and part.validation.tokens == whole.validation.tokens
  np.testing.assert_array_equal(part.train.read(0, 1000), whole.train.read(0, 101))
  assert part.train.bytes == round(whole.train.bytes * 101 / whole.train.tokens) and part.train.documents == 1


@pytest.mark.parametrize('data,words', [
    (Data(task='zipf_pair'), "did you mean 'zipf_pairs'"),
    (Data(task='zipf_pairs:nois=0.1'), "did you mean 'noise'"),
    (Data(task='zipf_pairs:noise'), 'written key=value'),
    (Data(task='zipf_pairs:noise=much'), 'expected float for noise'),
    (Data(task='zipf_pairs:noise=1.5'), 'expected 0.0 to 1.0, nearest is 1.0'),
    (Data(task='zipf_pairs:exponent=nan'), 'expected 0.0 to 10.0'),
    (Data(task='zipf_pairs', path='novels'), 'expected one of the two'),
])
def test_malformed_tasks_are_refused_in_one_line(data, words):
  with pytest.raises(ConfigError) as error:
    corpora.prepare(data)
  assert words in str(error.value) and '\n' not in str(error.value)
