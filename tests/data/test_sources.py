"""Which files a path names: each once, none left out in silence, none that would hang; and what both splits hold."""

import os
import pathlib

import numpy as np
import pytest

from framework.config import ConfigError, Data
from framework.data import building
from framework.data import corpus as corpora
from framework.data import overlap, sources


def fill(folder, files):
  for name, content in files.items():
    path = pathlib.Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding='utf-8')


def names(path, base=''):
  return [source.name for source in sources.find('data.path', f'{path}{base}')]


def refused(path, *words):
  with pytest.raises(ConfigError) as error:
    sources.find('data.path', str(path))
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value), error.value


@pytest.mark.parametrize('pattern,expected', [
    ('', ['a.txt', 'deep/b.txt']), ('/**', ['a.txt', 'deep/b.txt']), ('/**/*.txt', ['a.txt', 'deep/b.txt']),
    ('/**/**/b.*', ['deep/b.txt']), ('/*/**/a.txt', ['around/a.txt']), ('/*.txt', ['a.txt']), ('/*/b.txt',
                                                                                               ['deep/b.txt'])])
def test_links_that_lead_back_read_no_file_twice(tmp_path, pattern, expected):
  fill(tmp_path, {'a.txt': 'one', 'deep/b.txt': 'two'})
  (tmp_path / 'deep' / 'up').symlink_to('..')
  (tmp_path / 'around').symlink_to('.')  # with two links glob.glob would go 2^40 ways
  assert names(tmp_path, pattern) == expected


def test_a_glob_follows_links_to_folders_once(tmp_path):
  fill(tmp_path, {'texts/a.txt': 'one', 'away/x/b.txt': 'two', 'away/x/.hid/c.txt': 'no'})
  for link in ('one', 'other'):
    (tmp_path / 'texts' / link).symlink_to('../away')
  assert names(tmp_path / 'texts', '/**/*.txt') == ['a.txt', 'one/x/b.txt']


def test_a_file_with_two_names_is_read_once(tmp_path, caplog):
  fill(tmp_path, {'m.txt': 'text', 'z.txt': 'other'})
  (tmp_path / 'a.txt').symlink_to('m.txt')
  os.link(tmp_path / 'z.txt', tmp_path / 'b.txt')
  assert names(tmp_path) == ['b.txt', 'm.txt']  # what a link leads to, else the first
  assert "data.path: 2 files are read once though they have further names, such as 'a.txt'" in caplog.text


def test_what_is_left_out_is_said(tmp_path, caplog):
  fill(tmp_path, {'a.txt': 'x' * 100, 'b.rst': 'y' * 40, 'c.html': 'z' * 20, 'e.py': '', 'd/c.txt': 'text'})
  os.mkfifo(tmp_path / 'pipe.txt')
  (tmp_path / 'link').symlink_to('d')
  assert names(tmp_path) == ['a.txt', 'd/c.txt', 'e.py']
  assert len(caplog.records) == 1
  assert (f"data.path is '{tmp_path}': 2 files of 104 bytes are read, 5 of 60 bytes are not (empty: 'e.py'; "
          "links to a folder: 'link'; not .txt, .py, .md, .jsonl, .parquet, .arrow, .feather: 'b.rst', 'c.html'; pipes or "
          "devices: 'pipe.txt')") \
      in caplog.text
  caplog.clear()
  assert names(tmp_path, '/**/*.txt') == ['a.txt', 'd/c.txt'] and 'pipe.txt' in caplog.text
  caplog.clear()
  assert names(tmp_path, '/*a.txt') == ['a.txt'] and not caplog.records


def test_a_folder_whose_bytes_are_mostly_left_out_is_refused(tmp_path):
  fill(tmp_path, {f'{i}.rst': 'x' * 10 for i in range(8)} | {'a.txt': 'y' * 79})
  for pattern in ('', '/*'):
    refused(f'{tmp_path}{pattern}', 'where 1 files of 79 bytes can be read and 8 of 80 bytes cannot (',
            "'0.rst', '1.rst', '2.rst', 5 more", f"as '{tmp_path}/**/*.txt'")
  assert names(tmp_path, '/**/*.txt') == ['a.txt']


def test_a_cache_among_the_texts_is_not_left_out_text(tmp_path, caplog):
  fill(tmp_path, {'a.txt': 'some text'})
  data = Data(path=str(tmp_path), cache=str(tmp_path / 'cache'))
  first = corpora.prepare(data)
  assert sum(path.stat().st_size for path in (tmp_path / 'cache').rglob('*.json')) > 9
  assert corpora.prepare(data).digest == first.digest and not caplog.records


def test_pipes_and_devices_are_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe.txt')
  refused(tmp_path / 'pipe.txt', 'pipe.txt', 'a pipe or a device')
  refused('/dev/zero', 'a pipe or a device')
  refused(tmp_path, 'no file can be read')


def test_what_should_be_read_and_cannot_be_is_refused(tmp_path):
  fill(tmp_path, {'a.txt': 'text'})
  (tmp_path / 'b.txt').symlink_to('nothing')
  refused(tmp_path, 'b.txt', 'cannot be read', 'expected a readable file')


# Both splits


@pytest.fixture
def data(tmp_path):
  return Data(path=str(tmp_path / 'texts'), cache=str(tmp_path / 'cache'))


def test_equal_documents_across_the_split_are_named(data, caplog):
  held = next(f'{i}.txt' for i in range(100) if building.hash_of(f'{i}.txt') % 10 == 0)
  texts = {f'{i}.txt': f'text number {i} and more of it' for i in range(40)}
  fill(data.path, texts)
  corpora.prepare(data)
  assert not caplog.records
  fill(data.path, {'copies/b.txt': texts[held]})  # which the hash leaves to training
  for _ in range(2):  # also from the cache
    caplog.clear()
    corpus = corpora.prepare(data)
    share = 100 * len(texts[held]) / corpus.validation.bytes
    assert caplog.messages == [
        f'1 of {corpus.validation.documents} held-out documents, {share:.3g} % of the held-out tokens, are also '
        f"trained on; equal files: '{data.path}/{held}' and '{data.path}/copies/b.txt'"]


def test_a_validation_path_that_is_trained_on_is_named(data, caplog):
  fill(data.path, {'a.txt': 'some text', 'b.txt': 'other text'})
  corpora.prepare(Data(path=data.path, validation_path=data.path + '/a.txt', cache=data.cache))
  assert '1 of 1 held-out documents, 100 % of the held-out tokens, are also trained on' in caplog.text


def test_tails_of_equal_files_are_not_trained_on(data, caplog):
  fill(data.path, {'a.txt': 'the same text', 'b.txt': 'the same text'})
  corpora.prepare(data)
  assert not caplog.records


def test_shared_documents_are_those_with_the_same_tokens(data):
  ends, rng = 'the same beginning and the same ending', np.random.default_rng(0)
  lines = [ends[:20] + str(rng.integers(10)) + ends[20:] if i % 2 else 'ab'[i % 3 == 0] * (1 + i % 7)
           for i in range(300)]
  rows = ''.join(f'{{"text": "{line}"}}\n' for line in lines)
  fill(data.path, {'a.jsonl': rows})
  corpus = corpora.prepare(data)
  held = [building.hash_of(f'a.jsonl#{i}') % 10 == 0 for i in range(1, 301)]
  trained = {line for line, out in zip(lines, held) if not out}
  expected = [line in trained for line, out in zip(lines, held) if out]
  np.testing.assert_array_equal(overlap.shared(corpus.train, corpus.validation), expected)
  first = corpora.first_tokens(corpus.train, 30)
  assert overlap.shared(first, corpus.validation).sum() < sum(expected)
