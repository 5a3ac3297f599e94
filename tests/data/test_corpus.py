"""Corpora: what is read, what is held out, how it lies on disk, and that a cache is whole or absent."""

import dataclasses
import errno
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from foundation import files as files_lib
from framework.config import ConfigError, Data
from framework.data import cache as caches
from framework.data import building
from framework.data import corpus as corpora
from framework.data import sources
from framework.data import tokenizer as tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAKESPEARE = ROOT / '../shared/data/text/tinyshakespeare.txt'


@pytest.fixture
def data(tmp_path):
  """Settings for a folder of texts, to be filled, and a cache of its own."""
  (tmp_path / 'texts').mkdir()
  return Data(path=str(tmp_path / 'texts'), cache=str(tmp_path / 'cache'))


def fill(data, files):
  for name, content in files.items():
    path = pathlib.Path(data.path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def documents(corpus, split):
  """The texts of a split, read back from its tokens; checks the layout on the way."""
  part = getattr(corpus, split)
  tokens = part.read(0, part.tokens)
  end = corpus.tokenizer.end
  assert tokens[0] == tokens[-1] == end
  np.testing.assert_array_equal(part.starts, np.flatnonzero(tokens[:-1] == end))
  stops = [*part.starts[1:], part.tokens - 1]
  out = [corpus.tokenizer.decode(part.read(start + 1, stop)) for start, stop in zip(part.starts, stops)]
  assert len(out) == part.documents
  assert sum(len(text.encode()) for text in out) == part.bytes == corpus.tokenizer.token_bytes[tokens].sum()
  return out


def refused(data, *words):
  with pytest.raises(ConfigError) as error:
    corpora.prepare(data)
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message
  cache = pathlib.Path(data.cache) / 'corpora'
  assert not cache.is_dir() or all(path.suffix == '.lock' for path in cache.iterdir())


NOVEL = ''.join(f'Line {i} of a novel — naïve 漢字.\n' for i in range(400))


@pytest.mark.parametrize('tokenizer', ['bytes', 'chars', 'bpe'])
def test_few_documents_lose_their_last_tenths(data, tokenizer):
  data.tokenizer, data.vocabulary = tokenizer, 400
  fill(data, {'a.txt': NOVEL, 'b/c.py': 'x = 1\r\n', 'd.txt': '', 'z.txt': 'é'})
  corpus = corpora.prepare(data)
  cut = int(0.9 * len(NOVEL))
  assert documents(corpus, 'train') == [NOVEL[:cut], 'x = 1\r']
  assert documents(corpus, 'validation') == [NOVEL[cut:], '\n', 'é']
  assert corpus.tokenizer.name == tokenizer


def test_nanogpts_division_of_tiny_shakespeare(data):
  if not SHAKESPEARE.exists():
    pytest.skip('needs ../shared/data/text/tinyshakespeare.txt beside the checkout')
  data.path, data.tokenizer = str(SHAKESPEARE), 'chars'
  corpus = corpora.prepare(data)
  text = SHAKESPEARE.read_text()
  assert corpus.tokenizer.size == 66
  assert corpus.train.bytes == 1003854 and corpus.validation.bytes == 111540
  assert documents(corpus, 'train') == [text[:1003854]]
  assert documents(corpus, 'validation') == [text[1003854:]]


def test_many_documents_are_held_out_whole_by_their_names(data):
  files = {f'{i}.txt': f'text {i}' for i in range(200)}
  fill(data, files)
  first = corpora.prepare(data)
  held_out = set(documents(first, 'validation'))
  assert 8 <= len(held_out) <= 35
  assert held_out | set(documents(first, 'train')) == set(files.values())
  assert first.validation.documents == len(held_out)
  # Pinned, so that another machine or release holds out the same.
  assert sorted(held_out, key=lambda text: int(text[5:]))[:5] == ['text 4', 'text 13', 'text 15', 'text 36', 'text 38']
  fill(data, {f'new/{i}.txt': f'new text {i}' for i in range(100)})
  more = corpora.prepare(data)
  assert {text for text in documents(more, 'validation') if not text.startswith('new')} == held_out


@pytest.mark.parametrize('prefix', range(12))
def test_twenty_documents_always_hold_out_one(data, prefix):
  fill(data, {f'{prefix}-{i}.txt': 'text' for i in range(20)})
  corpus = corpora.prepare(data)
  assert corpus.validation.documents >= 1 and corpus.train.documents >= 1
  chosen = sum(building.hash_of(f'{prefix}-{i}.txt') % 10 == 0 for i in range(20))
  assert corpus.validation.documents == max(1, chosen)


def test_a_validation_path_leaves_all_of_path_to_training(data, tmp_path):
  fill(data, {'a.txt': NOVEL})
  (tmp_path / 'held.txt').write_text('ß held out', encoding='utf-8')
  data.validation_path = str(tmp_path / 'held.txt')
  data.tokenizer = 'chars'
  corpus = corpora.prepare(data)
  assert documents(corpus, 'train') == [NOVEL]
  assert documents(corpus, 'validation') == ['ß held out']


def test_jsonl_and_gzip(data):
  rows = [{'text': f'document {i}\nline two 漢', 'other': i} for i in range(30)] + [{'text': ''}]
  lines = '\n'.join(json.dumps(row) for row in rows) + '\n\n'
  fill(data, {'a.jsonl.gz': gzip.compress(lines.encode()), 'b.txt.gz': gzip.compress(b'zipped')})
  corpus = corpora.prepare(data)
  texts = documents(corpus, 'train') + documents(corpus, 'validation')
  assert sorted(texts) == sorted([*(row['text'] for row in rows[:30]), 'zipped'])
  held_out = [rows[i - 1]['text'] for i in range(1, 31) if building.hash_of(f'a.jsonl.gz#{i}') % 10 == 0]
  assert [text for text in documents(corpus, 'validation') if text != 'zipped'] == held_out


def test_globs_and_order(data):
  fill(data, {'b/2.txt': 'two', 'a/1.txt': 'one', 'a/3.py': 'three', '.hidden/x.txt': 'no', 'a/.y.txt': 'no',
              'notes.rst': 'no'})
  folder = data.path
  for path, expected in (('', 'one three two'), ('/*/*.txt', 'one two'), ('/**/[13].*', 'one three'),
                         ('/a/?.py', 'three')):
    corpus = corpora.prepare(dataclasses.replace(data, path=folder + path))
    together = [a + b for a, b in zip(documents(corpus, 'train'), documents(corpus, 'validation'))]
    assert ' '.join(together) == expected, path


def test_the_digest_is_of_names_and_contents(data, tmp_path):
  fill(data, {'a.txt': 'some text', 'b.txt': 'more text'})
  first = corpora.prepare(data).digest
  shutil.copytree(data.path, tmp_path / 'copy')
  moved = dataclasses.replace(data, path=str(tmp_path / 'copy'))
  assert corpora.prepare(moved).digest == first
  assert corpora.prepare(dataclasses.replace(data, vocabulary=300)).digest == first  # which bytes do not use
  others = [dataclasses.replace(data, tokenizer='chars'), dataclasses.replace(data, tokenizer='bpe'),
            dataclasses.replace(data, tokenizer='bpe', vocabulary=300),
            dataclasses.replace(data, validation_path=moved.path)]
  digests = {first, *(corpora.prepare(other).digest for other in others)}
  os.rename(tmp_path / 'copy' / 'a.txt', tmp_path / 'copy' / 'c.txt')
  digests.add(corpora.prepare(moved).digest)
  stat = os.stat(pathlib.Path(data.path) / 'b.txt')
  fill(data, {'b.txt': 'MORE TEXT'})
  os.utime(pathlib.Path(data.path) / 'b.txt', ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time
  digests.add(corpora.prepare(data).digest)
  assert len(digests) == 7


def test_the_embedded_corpus(tmp_path):
  data = Data(cache=str(tmp_path))
  corpus = corpora.prepare(data)
  assert corpus.train.bytes > 5e6 and corpus.validation.documents > 20
  again = corpora.prepare(data)
  assert again.digest == corpus.digest
  assert len(list((tmp_path / 'corpora').glob('*/'))) >= 1


def test_big_vocabularies_take_four_bytes(data):
  data.tokenizer = 'chars'
  text = ''.join(chr(i) for i in [*range(1, 0xD800), *range(0xE000, 0xE000 + 12000)])
  fill(data, {'a.txt': text})
  corpus = corpora.prepare(data)
  assert corpus.tokenizer.size > 1 << 16 and corpus.train.dtype == np.dtype('<u4')
  assert documents(corpus, 'train') == [text[:int(0.9 * len(text))]]


def test_blocks_do_not_show(data, monkeypatch):
  fill(data, {'a.txt': NOVEL})
  data.tokenizer, data.vocabulary = 'bpe', 300
  whole = documents(corpora.prepare(data), 'train')
  monkeypatch.setattr(sources, 'BLOCK', 5)  # inside characters
  cut = documents(corpora.prepare(dataclasses.replace(data, cache=data.cache + '2')), 'train')
  assert whole == cut == [NOVEL[:int(0.9 * len(NOVEL))]]


def test_the_bpe_sample_is_bounded_and_spread():
  texts = [('train', f'{i}', f'{i:09d} ') for i in range(1000)] + [('validation', 'v', 'never')]
  sample = list(building._sample(texts, 10_000, 1000))
  assert 900 <= sum(map(len, sample)) <= 1000
  places = np.array([int(text) for text in sample])
  assert (np.diff(places) == 10).all() and places[0] < 10
  assert len(list(building._sample(texts, 3333, 1000))) == pytest.approx(300, abs=1)  # nothing is lost to rounding
  assert list(building._sample(texts, 900, 1000)) == [text for split, _, text in texts if split == 'train']


def test_progress_reaches_the_total(data):
  fill(data, {'a.txt': NOVEL, 'b.txt': NOVEL})
  data.tokenizer = 'bpe'
  seen = {}

  def progress(done, total, what):
    assert 0 <= done <= total == 2 * len(NOVEL.encode())
    seen[what] = done

  corpora.prepare(data, progress)
  assert set(seen) == {'checking', 'reading', 'training the tokenizer', 'tokenising'}
  assert set(seen.values()) == {2 * len(NOVEL.encode())}


# Refusals


def test_missing_paths(data):
  fill(data, {'speech.txt': 'text'})
  folder = data.path
  for path, near in ((folder + '/speeches.txt', 'speech.txt'), (folder + 's', "'texts'"), ('/nowhere/at/all', '')):
    refused(dataclasses.replace(data, path=path), path, 'does not exist', near)
  refused(dataclasses.replace(data, validation_path='nowhere.txt'), 'data.validation_path', 'nowhere.txt')


def test_nothing_readable(data):
  refused(data, 'no file')
  fill(data, {'a.rst': 'text'})
  refused(data, 'a.rst', '.txt')
  refused(dataclasses.replace(data, path=data.path + '/*.csv'), '*.csv')
  refused(dataclasses.replace(data, path=data.path + '/a.rst'), "a.rst'", '.txt', "'a.txt'")


@pytest.mark.parametrize('files', [
    {'a.txt': ''}, {'a.txt': 'x'}, {'a.jsonl': '{"text": ""}\n\n'}, {'a.py': '', 'b.py': ''}])
def test_too_little_text(data, files):
  fill(data, files)
  refused(data, data.path, 'expected at least 2 characters')


@pytest.mark.parametrize('content,place', [
    (b'abc\xff', 'byte 3'), (b'a' * 7 + b'\xe6\xbc', 'byte 7'), (b'abcdefgh\x00z', 'byte 8'),
    ('漢字'.encode() + b'\x00', 'byte 6'), (b'\xe6\xbca', 'byte 0')])
@pytest.mark.parametrize('block', [1, 4, 1 << 20])
def test_what_is_not_text_is_located(data, content, place, block, monkeypatch):
  monkeypatch.setattr(sources, 'BLOCK', block)
  fill(data, {'a.txt': 'fine', 'bad.txt': content})
  refused(data, 'bad.txt', place, 'UTF-8')


def test_bad_gzip(data):
  whole = gzip.compress(NOVEL.encode())
  for content in (b'not gzip', whole[:-20], whole[:50] + b'\xff' * 20 + whole[70:], whole[:-8] + b'\0' * 8):
    fill(data, {'a.txt.gz': content})
    refused(data, 'a.txt.gz', 'gzip')


@pytest.mark.parametrize('line,words', [
    ('{', 'JSON'), ('[1]', 'list'), ('{"txt": "a"}', "did you mean 'txt'"), ('{}', "no field 'text'"),
    ('{"text": 3}', 'int'), ('{"text": "\\ud800"}', 'surrogate'), ('[' * 100_000, 'JSON')])
def test_bad_rows_are_located(data, line, words):
  fill(data, {'a.jsonl': '{"text": "fine"}\n\n' + line + '\n'})
  refused(data, 'a.jsonl:3', words, "expected an object with a string 'text'")


def test_rows_that_are_not_utf8(data):
  fill(data, {'a.jsonl': b'{"text": "fine"}\n{"text": "\xff"}\n'})
  refused(data, "a.jsonl:2' is not UTF-8 at byte 10 of the line")


def test_an_unknown_tokenizer(data):
  fill(data, {'a.txt': 'text'})
  data.tokenizer = 'byte'
  refused(data, "'byte'", "did you mean 'bytes'")


def test_files_that_change_under_way(data):
  fill(data, {'a.txt': NOVEL})

  def meddle(done, total, what):
    if what == 'tokenising':
      fill(data, {'a.txt': 'other'})

  with pytest.raises(ConfigError, match='changed while it was read'):
    corpora.prepare(data, meddle)
  assert not list(pathlib.Path(data.cache).glob('corpora/*/'))


# The cache


@pytest.mark.parametrize('when', [1, 2, 3])
def test_a_full_disk_leaves_nothing(data, monkeypatch, when):
  fill(data, {'a.txt': NOVEL})
  flush, calls = caches.flush, []

  def full(file):
    calls.append(file)
    if len(calls) == when:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    flush(file)

  monkeypatch.setattr(caches, 'flush', full)
  refused(data, data.cache, 'No space left on device', 'MB free')
  monkeypatch.setattr(caches, 'flush', flush)
  assert documents(corpora.prepare(data), 'train')


def test_a_cache_that_cannot_be_made(data, tmp_path):
  fill(data, {'a.txt': NOVEL})
  (tmp_path / 'file').write_text('in the way')
  refused(dataclasses.replace(data, cache=str(tmp_path / 'file')), 'data.cache', 'Not a directory')


def test_the_default_cache(data, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert corpora.cache_folder(Data()) == tmp_path / 'xdg' / 'lemma'
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert corpora.cache_folder(Data()) == pathlib.Path.home() / '.cache' / 'lemma'
  assert corpora.cache_folder(data) == pathlib.Path(data.cache)


def test_a_cached_corpus_is_not_made_again(data, monkeypatch):
  fill(data, {'a.txt': NOVEL})
  first = corpora.prepare(data)
  monkeypatch.setattr(building, 'build', None)
  again = corpora.prepare(data)
  assert again.digest == first.digest and documents(again, 'train') == documents(first, 'train')


def damage(folder, name, how):
  path = folder / name
  if how == 'gone':
    path.unlink()
  else:
    with open(path, 'r+b') as file:
      file.truncate({'empty': 0, 'short': path.stat().st_size // 2}[how])


@pytest.mark.parametrize('how', ['gone', 'empty', 'short'])
@pytest.mark.parametrize('name', ['train.bin', 'validation.starts.npy', 'meta.json', 'tokenizer.json'])
def test_a_damaged_cache_is_made_again(data, name, how, caplog):
  fill(data, {'a.txt': NOVEL})
  first = corpora.prepare(data)
  texts = documents(first, 'train')
  folder = pathlib.Path(first.train.path).parent
  damage(folder, name, how)
  assert documents(corpora.prepare(data), 'train') == texts
  assert [record.levelname for record in caplog.records] == ['WARNING'] and 'damaged' in caplog.text
  assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, folder.name + '.lock']


SCRIPT = textwrap.dedent('''
    import os, sys, time
    from framework.config import Data
    from framework.data import corpus
    path, cache, what = sys.argv[1:]
    def progress(done, total, now):
      if now == 'tokenising' and what == 'die' and list(os.scandir(f'{cache}/corpora')):
        os.kill(os.getpid(), 9)
      if now == 'tokenising' and what == 'dawdle':
        time.sleep(0.3)
    print(corpus.prepare(Data(path=path, cache=cache), progress).train.tokens)
''')


def start(data, what):
  return subprocess.Popen([sys.executable, '-c', SCRIPT, data.path, data.cache, what], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_preparation_leaves_nothing_that_is_trusted(data):
  fill(data, {'a.txt': NOVEL})
  child = start(data, 'die')
  child.communicate(timeout=50)
  assert child.returncode == -signal.SIGKILL
  root = pathlib.Path(data.cache) / 'corpora'
  left = [path for path in root.iterdir() if path.is_dir()]
  assert len(left) == 1 and left[0].suffix == '.tmp'
  # Another corpus cleans up as well, and its own temporaries are not in the way.
  other = pathlib.Path(data.path) / 'other.py'
  other.write_text(NOVEL, encoding='utf-8')
  corpora.prepare(dataclasses.replace(data, path=str(other)))
  assert not list(root.glob('*.tmp'))
  other.unlink()
  left[0].mkdir()
  corpus = corpora.prepare(data)
  assert documents(corpus, 'train') == [NOVEL[:int(0.9 * len(NOVEL))]]
  assert not list(root.glob('*.tmp'))


def test_two_processes_at_once_both_end_well(data):
  fill(data, {'a.txt': NOVEL})
  children = [start(data, 'dawdle') for _ in range(2)]
  outputs = [child.communicate(timeout=50) for child in children]
  assert [child.returncode for child in children] == [0, 0], outputs
  assert outputs[0][0] == outputs[1][0]
  root = pathlib.Path(data.cache) / 'corpora'
  assert len([path for path in root.iterdir() if path.is_dir()]) == 1


def test_without_locks_the_first_to_publish_wins(data, monkeypatch):
  monkeypatch.setattr(files_lib, 'fcntl', None)
  fill(data, {'a.txt': NOVEL})
  inner = []

  def progress(done, total, what):
    if what == 'tokenising' and not inner:
      inner.append(corpora.prepare(dataclasses.replace(data)))

  outer = corpora.prepare(data, progress)
  assert documents(outer, 'train') == documents(inner[0], 'train')
  root = pathlib.Path(data.cache) / 'corpora'
  assert len([path for path in root.iterdir() if path.is_dir()]) == 1


def test_a_live_temporary_is_left_alone(data):
  fill(data, {'a.txt': NOVEL})
  root = pathlib.Path(data.cache) / 'corpora'
  root.mkdir(parents=True)
  (root / 'feed.1234.tmp').mkdir()
  with files_lib.lock(root / 'feed.lock') as locked:
    assert locked
    corpora.prepare(data)
    assert (root / 'feed.1234.tmp').exists()
  fill(data, {'a.txt': NOVEL * 2})
  corpora.prepare(data)
  assert not (root / 'feed.1234.tmp').exists()


# Reading


def test_reads_are_clipped_and_checked(data):
  fill(data, {'a.txt': NOVEL})
  split = corpora.prepare(data).train
  whole = np.fromfile(split.path, '<u2')
  np.testing.assert_array_equal(split.read(5, 50), whole[5:50])
  np.testing.assert_array_equal(split.read(split.tokens - 3, split.tokens + 9), whole[-3:])
  assert split.read(9, 9).shape == split.read(9, 4).shape == split.read(10**9, 10**9 + 1).shape == (0,)
  starts = np.array([0, 7, 3, split.tokens - 20])
  np.testing.assert_array_equal(split.rows(starts, 20), [whole[start:start + 20] for start in starts])
  with pytest.raises(OSError, match='ends before'):
    split.rows(np.array([split.tokens - 5]), 20)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc/self/statm')
def test_long_reading_does_not_grow_memory(tmp_path):
  def resident():
    return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')

  path = tmp_path / 'sparse.bin'
  tokens = 1 << 30
  with open(path, 'wb') as file:
    file.truncate(2 * tokens)  # 2 GB that take no room on the disk
  split = corpora.Split(str(path), np.dtype('<u2'), tokens, np.zeros(1, np.int64), 1, 1)
  rng = np.random.default_rng(0)
  split.rows(np.zeros(64, np.int64), 1 << 13)
  before = resident()
  for _ in range(300):  # 300 MB in all, which a memory map would keep
    split.rows(rng.integers(0, tokens - (1 << 13), 64), 1 << 13)
  assert resident() - before < 30e6
