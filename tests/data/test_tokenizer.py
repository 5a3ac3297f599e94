"""Tokenizers: lossless, never an end by accident, the same in chunks, streamed and after a save."""

import json
import pickle
import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from framework.config import ConfigError
from framework.data import tokenizer as tokenizers

TEXT = 'The quick brown fox — naïve 漢字 🙂\n\tjumped   over\r\n  the lazy dog.\n\n' * 40
KINDS = {
    'bytes': tokenizers.Bytes(),
    'chars': tokenizers.Chars(''.join(sorted(set(TEXT)))),
    'bpe': tokenizers.train_bpe([TEXT], 300),
}
any_text = st.text(st.characters(exclude_categories=['Cs']))


@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
@hypothesis.given(text=any_text)
@hypothesis.example('<|endoftext|> </s> [UNK] \x00 \u2028\r\n  ')
@hypothesis.settings(deadline=None)
def test_any_text_round_trips(kind, text):
  tokenizer = KINDS[kind]
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32
  assert tokenizer.decode(ids) == text
  assert tokenizer.end not in ids
  assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@hypothesis.given(text=st.text(sorted(set(TEXT))))
@hypothesis.settings(deadline=None)
def test_chars_round_trip(text):
  tokenizer = KINDS['chars']
  ids = tokenizer.encode(text)
  assert len(ids) == len(text) and ids.dtype == np.int32
  assert tokenizer.decode(ids) == text
  assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@pytest.mark.parametrize('tokenizer', KINDS.values(), ids=KINDS)
def test_end_is_last_and_silent(tokenizer):
  assert tokenizer.end == tokenizer.size - 1
  assert tokenizer.token_bytes.shape == (tokenizer.size,) and tokenizer.token_bytes.dtype == np.int32
  assert tokenizer.token_bytes[tokenizer.end] == 0 and (tokenizer.token_bytes[:-1] > 0).all()
  ids = tokenizer.encode('The fox')
  assert tokenizer.decode([tokenizer.end, *ids, tokenizer.end]) == 'The fox'
  assert tokenizer.encode('').shape == (0,) and tokenizer.decode([]) == ''
  for outside in (-1, tokenizer.size):
    with pytest.raises(ValueError, match='expected 0 to'):
      tokenizer.decode([outside])


def test_sizes():
  assert KINDS['bytes'].size == 257
  assert KINDS['chars'].size == len(set(TEXT)) + 1
  assert KINDS['bpe'].size == 300
  assert tokenizers.train_bpe(['ab'], 1000).size == 257  # nothing repeats: the bytes and the end
  with pytest.raises(ConfigError, match='at least 257'):
    tokenizers.train_bpe(['ab'], 256)


@hypothesis.given(ids=st.lists(st.integers(0, 299)))
@hypothesis.settings(deadline=None)
def test_streaming_equals_decoding(ids):
  tokenizer = KINDS['bpe']
  stream = tokenizer.stream()
  assert ''.join([*(stream.push(i) for i in ids), stream.finish()]) == tokenizer.decode(ids)


def test_streaming_waits_for_whole_characters():
  stream = tokenizers.Bytes().stream()
  assert [stream.push(byte) for byte in '漢'.encode()] == ['', '', '漢']
  assert stream.push([0xE6, 0xBC]) == '' and stream.finish() == '\ufffd'


def test_invalid_bytes_are_shown():
  assert tokenizers.Bytes().decode([0x61, 0xFF, 0x62]) == 'a\ufffdb'


def test_strangers_are_named():
  with pytest.raises(ConfigError, match=r"'ß' \(U\+00DF\)"):
    KINDS['chars'].encode('The ß')
  for tokenizer in KINDS.values():
    with pytest.raises(ConfigError):
      tokenizer.encode('a\ud800')


def ragged(seed):
  """Text whose white space is of every kind, in runs, at every place."""
  rng = random.Random(seed)
  parts = [' ', '  ', '\n', '\n\n', '\t', '\r\n', '\u00a0', '\u2003', '\x1c',
           "don't", 'word', '漢字', '12', '...', '🙂', "'s"]
  return ''.join(rng.choice(parts) for _ in range(3000))


@pytest.mark.parametrize('seed', range(8))
def test_chunks_have_the_tokens_of_the_whole(seed):
  text = ragged(seed)
  library = tokenizers.train_bpe([ragged(99)], 600)
  whole = library._library.encode(text).ids
  rng = random.Random(seed)
  cuts = sorted(rng.randrange(len(text)) for _ in range(20))
  blocks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
  for size in (64, 100, 500):  # 4 sizes without a cut would be cut anywhere
    pieces = list(tokenizers.pieces(blocks, size))
    assert ''.join(pieces) == text and len(pieces) > 3
    assert np.concatenate([library.encode(piece) for piece in pieces]).tolist() == whole


def test_long_text_is_encoded_in_parts(monkeypatch):
  text = ragged(1)
  whole = KINDS['bpe'].encode(text)
  monkeypatch.setattr(tokenizers, 'PIECE', 300)
  monkeypatch.setattr(tokenizers, 'PARALLEL', 40)
  np.testing.assert_array_equal(KINDS['bpe'].encode(text), whole)


@pytest.mark.parametrize('text', ['x' * 10_000, '', ' ' * 10_000, 'ab ' * 3000, '\n'])
def test_pieces_are_bounded_and_lose_nothing(text):
  pieces = list(tokenizers.pieces([text], 100))
  assert ''.join(pieces) == text
  assert all(0 < len(piece) <= 400 for piece in pieces)


def test_training_is_deterministic():
  assert tokenizers.train_bpe([TEXT, ragged(3)], 400) == tokenizers.train_bpe([TEXT, ragged(3)], 400)


@pytest.mark.parametrize('kind', KINDS)
def test_save_and_load(kind, tmp_path):
  tokenizer = KINDS[kind]
  tokenizer.save(tmp_path / 'tokenizer.json')
  loaded = tokenizers.load(tmp_path / 'tokenizer.json')
  assert loaded == tokenizer and type(loaded) is type(tokenizer)
  np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
  assert [path.name for path in tmp_path.iterdir()] == ['tokenizer.json']
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokenizer)).encode(TEXT), tokenizer.encode(TEXT))


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'tokenizer.json'
  KINDS['bytes'].save(path)

  def fail(*_):
    raise OSError('no')

  monkeypatch.setattr('os.replace', fail)
  with pytest.raises(OSError):
    KINDS['chars'].save(path)
  assert tokenizers.load(path) == KINDS['bytes']
  assert [path.name for path in tmp_path.iterdir()] == ['tokenizer.json']


@pytest.mark.parametrize('content', [
    '', '{', '[]', '3', '{}', '{"lemma_tokenizer": "byte"}', '{"lemma_tokenizer": ["bytes"]}',
    '{"lemma_tokenizer": "bytes", "more": 1}', '{"lemma_tokenizer": "chars"}',
    '{"lemma_tokenizer": "chars", "alphabet": "ba"}', '{"lemma_tokenizer": "chars", "alphabet": 3}',
    '{"lemma_tokenizer": "chars", "alphabet": "\\ud800"}', '{"lemma_tokenizer": "bpe", "model": "{}"}',
    '{"lemma_tokenizer": "bpe", "model": 3}', '\x00\xff'])
def test_corrupt_files_are_refused(content, tmp_path):
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(content.encode('latin-1'))
  with pytest.raises(ConfigError) as error:
    tokenizers.load(path)
  assert '\n' not in str(error.value) and str(path) in str(error.value)


def test_truncated_and_missing_files_are_refused(tmp_path):
  path = tmp_path / 'tokenizer.json'
  with pytest.raises(ConfigError, match='No such file'):
    tokenizers.load(path)
  KINDS['bpe'].save(path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ConfigError):
    tokenizers.load(path)
  path.write_text(json.dumps({'lemma_tokenizer': 'byts'}))
  with pytest.raises(ConfigError, match="did you mean 'bytes'"):
    tokenizers.load(path)


def test_a_strangers_padding_and_truncation_change_nothing(tmp_path):
  own = tokenizers.train_bpe(['low lower lowest ' * 20], 270)
  for number, (key, value) in enumerate({
      'padding': {'strategy': {'Fixed': 1000}, 'direction': 'Right', 'pad_to_multiple_of': None, 'pad_id': 0,
                  'pad_type_id': 0, 'pad_token': 'x'},
      'truncation': {'direction': 'Right', 'max_length': 2, 'strategy': 'LongestFirst', 'stride': 0}}.items()):
    path = tmp_path / f'{number}.json'
    tokenizers.Bpe(json.dumps(json.loads(own.model) | {key: value})).save(path)
    assert json.loads(json.loads(path.read_text())['model'])[key]
    np.testing.assert_array_equal(tokenizers.load(path).encode('the lowest'), own.encode('the lowest'))
