"""One corpus in every form gives the same tokens and the same batches; what is damaged or odd is one line."""

import bz2
import dataclasses
import gzip
import json
import lzma
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from framework.config import Config, ConfigError, Data, resolve
from framework.data import arrays, corpus, remote, sources, texts, windows

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [f'Document {i} — naïve 漢字.\n' * (i % 5 + 1) for i in range(60)]
LINES = ''.join(json.dumps({'text': text, 'n': i}) + '\n' for i, text in enumerate(DOCUMENTS)).encode()
END = 256  # of the tokenizer `bytes`


def ids(leading=False):
  parts = [[END]] * leading + [[*text.encode(), END] for text in DOCUMENTS]
  return np.array([token for part in parts for token in part])


def write_zst(path, content):
  zstandard = pytest.importorskip('zstandard')
  half = len(content) // 2  # two frames, one of them cut at an arbitrary byte
  path.write_bytes(b''.join(zstandard.ZstdCompressor().compress(part) for part in (content[:half], content[half:])))


def table(**columns):
  pa = pytest.importorskip('pyarrow')
  return pa, pa.table({'id': list(range(60)), 'text': DOCUMENTS} | columns)


def write_parquet(path, field='text'):
  pa, rows = table()
  import pyarrow.parquet
  pa.parquet.write_table(rows.rename_columns(['id', field]), path, row_group_size=7)


def write_feather(path):
  table()
  import pyarrow.feather
  pyarrow.feather.write_feather(table()[1], path, compression='zstd')


def write_stream(path):
  """As the library datasets writes it, with one column in a dictionary."""
  pa, rows = table()
  rows = rows.set_column(1, 'text', rows['text'].dictionary_encode())
  with pa.ipc.new_stream(path, rows.schema) as file:
    file.write_table(rows, max_chunksize=9)


def write_megatron(path, documents=None):
  documents = documents or [[*text.encode(), END] for text in DOCUMENTS]
  lengths = np.array([len(d) for d in documents], np.int32)
  places = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64) * 2
  path.write_bytes(np.concatenate(documents).astype('<u2').tobytes())
  path.with_suffix('.idx').write_bytes(
      b'MMIDIDX\x00\x00' + struct.pack('<QBQQ', 1, 8, len(lengths), len(lengths) + 1) + lengths.tobytes() +
      places.tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes())


FORMS = {
    'a.jsonl.bz2': lambda path: path.write_bytes(bz2.compress(LINES[:900]) + bz2.compress(LINES[900:])),
    'a.jsonl.xz': lambda path: path.write_bytes(lzma.compress(LINES)),
    'a.jsonl.zst': lambda path: write_zst(path, LINES),
    'a.parquet': write_parquet, 'a.feather': write_feather, 'a.arrow': write_stream,
    'a.bin': lambda path: path.write_bytes(ids().astype('<u2').tobytes()),
    'a.npy': lambda path: np.save(path, ids(leading=True).astype(np.int32)),
    'a.bin megatron': write_megatron}


def data(tmp_path, path, **more):
  return resolve(Config(data=Data(path=str(path), cache=str(tmp_path / 'cache'), window=16, **more))).data


def prepared(tmp_path, name, **more):
  folder = tmp_path / name.replace(' ', '_')
  folder.mkdir()
  path = folder / name.split()[0]
  FORMS[name](path)
  kind = {'.bin': 'file' if 'megatron' in name else 'uint16', '.npy': 'file'}.get(path.suffix, '')
  return corpus.prepare(data(tmp_path, path, ids=kind, **more))


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plain')
  (folder / 'a.jsonl').write_bytes(LINES)
  return corpus.prepare(data(folder, folder / 'a.jsonl'))


def same(one, other):
  for split in ('train', 'validation'):
    a, b = getattr(one, split), getattr(other, split)
    np.testing.assert_array_equal(a.read(0, a.tokens), b.read(0, b.tokens))
    np.testing.assert_array_equal(a.starts, b.starts)
    assert (a.bytes, a.documents) == (b.bytes, b.documents) and a.documents > 3
  pairs = [next(windows.Windows(c.train, END, 16, 16).batches(8, 3, start_step=5, prefetch=0)) for c in (one, other)]
  for name in pairs[0]:
    np.testing.assert_array_equal(pairs[0][name], pairs[1][name])


@pytest.mark.parametrize('name', FORMS)
def test_every_form_gives_the_same_tokens_and_batches(tmp_path, plain, name):
  found = prepared(tmp_path, name)
  same(found, plain)
  assert found.digest != plain.digest


@pytest.mark.parametrize('name', ['a.jsonl.zst', 'a.parquet', 'a.feather'])
def test_without_its_library_a_file_is_refused(tmp_path, monkeypatch, name):
  (tmp_path / name).write_bytes(b'')
  for module in ('pyarrow', 'zstandard'):
    monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ConfigError, match=r"needs (pyarrow|zstandard); expected pip install -e '.\[data\]'"):
    corpus.prepare(data(tmp_path, tmp_path / name))


@pytest.mark.parametrize('name, content, words', [
    ('a.txt.bz2', bz2.compress(LINES)[:-9], 'is not sound bzip2'), ('a.txt.bz2', b'no', 'is not sound bzip2'),
    ('a.txt.xz', lzma.compress(LINES)[:-9], 'is not sound xz'), ('a.txt.xz', b'no', 'is not sound xz'),
    ('a.npy', b'no', 'is no array that can be read'), ('a.bin', b'abc', 'no whole number of uint16'),
    ('a.bin', np.array([1, 2, 300], '<u2').tobytes(), 'has the id 300 at token 2; expected 0 to 256'),
    ('a.md.bz2', bz2.compress(b'a\0b'), 'is not UTF-8 text at byte 1 .a zero byte')])
def test_damage_is_one_line(tmp_path, name, content, words):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ConfigError, match=words) as error:
    corpus.prepare(data(tmp_path, tmp_path / name, ids={'.npy': 'file', '.bin': 'uint16'}.get(name[1:], '')))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('cut', [1, 5, 300])
def test_a_zstandard_frame_that_is_cut_short(tmp_path, cut):
  write_zst(tmp_path / 'a.jsonl.zst', LINES)
  (tmp_path / 'a.jsonl.zst').write_bytes((tmp_path / 'a.jsonl.zst').read_bytes()[:-cut])
  with pytest.raises(ConfigError, match='is not sound zstd .it ends inside a frame'):
    corpus.prepare(data(tmp_path, tmp_path / 'a.jsonl.zst'))
  (tmp_path / 'b.txt.zst').write_bytes(b'no frame')
  with pytest.raises(ConfigError, match='is not sound zstd'):
    corpus.prepare(data(tmp_path, tmp_path / 'b.txt.zst'))


def test_tables_that_are_none(tmp_path):
  pa, rows = table(body=DOCUMENTS)
  import pyarrow.parquet
  path = tmp_path / 'a.parquet'
  pa.parquet.write_table(rows, path)
  for field, words in (('tex', "0 columns 'tex' .did you mean 'text'.*expected data.field to be one of id, text, body"),
                       ('id', "has 'id' of type int64; expected a column of text, as text, body")):
    with pytest.raises(ConfigError, match=words):
      corpus.prepare(data(tmp_path, path, field=field))
  assert corpus.prepare(data(tmp_path, path, field='body')).train.documents > 3
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ConfigError, match='cannot be read as parquet'):
    corpus.prepare(data(tmp_path, path))
  (tmp_path / 'a.arrow').write_bytes(b'ARROW1 and nothing')
  with pytest.raises(ConfigError, match='cannot be read as arrow'):
    corpus.prepare(data(tmp_path, tmp_path / 'a.arrow'))


BAD = [b'{"text": "fine"}', b'no', b'{"txt": "a"}', b'[1]', b'{"text": null}', b'{"text": "\xff"}', b'{"text": "\\ud800"}',
       b'', b'{"text": "fine too"}']


def test_bad_rows_are_counted_named_and_left_out(tmp_path, caplog):
  (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(BAD) + b'\n' + LINES)
  with pytest.raises(ConfigError, match="a.jsonl:2' is not JSON .*, or data.bad_rows=skip"):
    corpus.prepare(data(tmp_path, tmp_path / 'a.jsonl'))
  settings = data(tmp_path, tmp_path / 'a.jsonl', bad_rows='skip')
  for _ in range(2):  # from the cache too
    caplog.clear()
    found = corpus.prepare(settings)
    assert found.train.documents + found.validation.documents == 62
    assert found.left_out[0] == '6' and len(found.left_out) == 7
    assert found.left_out[1].startswith('a.jsonl:2 is not JSON') and found.left_out[6].startswith('a.jsonl:7 has half')
    assert '6 rows without a text are left out (data.bad_rows=skip): a.jsonl:2 is not JSON' in caplog.text


def test_bad_rows_of_a_table(tmp_path):
  pa, _ = table()
  import pyarrow.parquet
  values = pa.array([text.encode() for text in DOCUMENTS] + [None, b'\xff'], pa.binary()).view(pa.string())
  pa.parquet.write_table(pa.table({'text': values}), tmp_path / 'a.parquet')
  with pytest.raises(ConfigError, match="a.parquet:61' is null; expected a text in the column 'text'"):
    corpus.prepare(data(tmp_path, tmp_path / 'a.parquet'))
  found = corpus.prepare(data(tmp_path, tmp_path / 'a.parquet', bad_rows='skip'))
  assert found.left_out == ('2', 'a.parquet:61 is null', 'a.parquet:62 is not UTF-8')


def test_a_document_is_held_out_by_the_same_name_in_every_form(tmp_path):
  for name in ('a.jsonl', 'a.txt', 'b.txt.xz', 'b.txt', 'c.jsonl.gz', 'c.parquet', 'd.md.bz2', 'e.feather'):
    (tmp_path / name).write_bytes(b'')
  found = {source.name: source.title for source in sources.find('data.path', str(tmp_path))}
  assert found == {'a.jsonl': 'a.jsonl', 'a.txt': 'a.txt', 'b.txt': 'b.txt', 'b.txt.xz': 'b.txt.xz', 'd.md.bz2': 'd.md',
                   'c.jsonl.gz': 'c.jsonl.gz', 'c.parquet': 'c.jsonl', 'e.feather': 'e.jsonl'}


# Arrays


def documents(path, kind='file', size=257):
  source = dataclasses.replace(sources._source('data.path', str(path), str(path.parent)), title='a')
  out = {}
  for number, part in arrays.documents(source, kind, (END, END), size):
    out.setdefault(number, []).extend(part.tolist())
  return list(out.values())


@pytest.mark.parametrize('block', [1, 2, 3, 100])
def test_documents_of_ids(tmp_path, monkeypatch, block):
  monkeypatch.setattr(arrays, 'BLOCK', block)
  for tokens, expected in (([END, 1, 2, END, END, 3, END], [[1, 2], [3]]), ([1, 2], [[1, 2]]), ([END], []), ([], []),
                           ([1, END, 2, 3, 4], [[1], [2, 3, 4]])):
    np.save(tmp_path / 'a.npy', np.array(tokens, np.int64))
    assert documents(tmp_path / 'a.npy') == expected
  write_megatron(tmp_path / 'm.bin', [[1, 2, END], [3, 4, 5, 6, 7], [END, 8, END, 9]])
  assert documents(tmp_path / 'm.bin') == [[1, 2], [3, 4, 5, 6, 7], [8], [9]]  # the second has no end of its own


def test_an_llm_c_header_is_no_text(tmp_path):
  header = np.zeros(256, '<i4')
  header[:3] = 20240520, 1, 4
  (tmp_path / 'a.bin').write_bytes(header.tobytes() + np.array([END, 7, 8, END], '<u2').tobytes())
  assert documents(tmp_path / 'a.bin') == documents(tmp_path / 'a.bin', 'uint16') == [[7, 8]]


@pytest.mark.parametrize('change, words', [
    (lambda idx: b'X' + idx[1:], 'another beginning'), (lambda idx: idx[:40], 'no index of'),
    (lambda idx: idx[:9] + struct.pack('<Q', 2) + idx[17:], 'version 2'),
    (lambda idx: idx[:18] + struct.pack('<Q', 2**60) + idx[26:], 'more sequences than it has bytes'),
    (lambda idx: idx[:-8] + struct.pack('<q', 1), 'no places of documents in order')])
def test_an_index_of_somebody_else(tmp_path, change, words):
  write_megatron(tmp_path / 'm.bin')
  index = tmp_path / 'm.idx'
  index.write_bytes(change(index.read_bytes()))
  with pytest.raises(ConfigError, match=words):
    documents(tmp_path / 'm.bin')


def test_ids_need_their_type_and_their_tokenizer(tmp_path):
  FORMS['a.bin'](tmp_path / 'a.bin')
  for more, words in (({}, "a.bin'; expected files that end in .txt.*nearest is data.ids"),
                      ({'ids': 'file'}, "does not say the type of its ids.*nearest is 'uint16'")):
    with pytest.raises(ConfigError, match=words):
      corpus.prepare(data(tmp_path, tmp_path / 'a.bin', **more))
  with pytest.raises(ConfigError, match="data.tokenizer is 'bpe', which is made from a text, with data.ids 'uint16'"):
    data(tmp_path, 'a.bin', ids='uint16', tokenizer='bpe')
  np.save(tmp_path / 'two.npy', np.zeros((2, 2), int))
  with pytest.raises(ConfigError, match=r'array of shape \(2, 2\) of int64; expected one of one axis'):
    documents(tmp_path / 'two.npy')


# URLs


def test_a_url_is_copied_once_and_again_where_it_changed(tmp_path, plain, caplog, monkeypatch):
  fsspec = pytest.importorskip('fsspec')
  system = fsspec.filesystem('memory')
  system.pipe('/shop/x/a.jsonl', LINES)
  try:
    found = corpus.prepare(data(tmp_path, 'memory://shop/x/a.jsonl'))
    same(found, plain)
    folder = corpus.prepare(data(tmp_path, 'memory://shop'))
    assert folder.train.tokens > 100
    same(corpus.prepare(data(tmp_path, 'memory://shop/*/a.jsonl')), folder)
    copies = []
    original = remote._copy
    monkeypatch.setattr(remote, '_copy', lambda *words: copies.append(words) or original(*words))
    same(corpus.prepare(data(tmp_path, 'memory://shop/x/a.jsonl')), plain)
    assert not copies
    system.pipe('/shop/x/a.jsonl', LINES + LINES)
    assert corpus.prepare(data(tmp_path, 'memory://shop/x/a.jsonl')).digest != found.digest and len(copies) == 1
    monkeypatch.setattr(remote, '_list', lambda *words: 1 / 0)  # the network is gone
    assert corpus.prepare(data(tmp_path, 'memory://shop/x/a.jsonl')).train.tokens > found.train.tokens
    assert 'cannot be asked (division by zero); the copy of it in data.cache is read' in caplog.text
    with pytest.raises(ConfigError, match="data.path is 'memory://other/a.jsonl', which cannot be read"):
      corpus.prepare(data(tmp_path, 'memory://other/a.jsonl'))
  finally:
    system.rm('/shop', recursive=True)


@pytest.mark.parametrize('url, words', [('memory://none/a.jsonl', 'cannot be read'), ('nonesuch://x/a.jsonl', 'nonesuch')])
def test_urls_that_lead_nowhere(tmp_path, url, words):
  pytest.importorskip('fsspec')
  with pytest.raises(ConfigError, match=words):
    corpus.prepare(data(tmp_path, url))


@pytest.mark.slow
def test_two_gigabytes_of_parquet_stay_below_one_of_memory(tmp_path):
  pa, _ = table()
  import pyarrow.parquet
  rng = np.random.default_rng(0)
  path = tmp_path / 'big.parquet'
  schema = pa.schema([('text', pa.string())])
  with pa.parquet.ParquetWriter(path, schema, compression='none', use_dictionary=False) as writer:
    for _ in range(4):  # row groups of half a gigabyte
      letters = rng.integers(97, 123, (1 << 15, 1 << 14), dtype=np.uint8)
      writer.write_table(pa.table({'text': [row.tobytes().decode() for row in letters]}), row_group_size=1 << 15)
  assert path.stat().st_size > 2e9
  code = ('import re, sys\nfrom framework.config import Data\nfrom framework.data import corpus\n'
          'c = corpus.prepare(Data(path=sys.argv[1], cache=sys.argv[2]))\n'
          # of this program alone: ru_maxrss would be that of the one that started it
          "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]\n"
          'print(c.train.tokens + c.validation.tokens, peak)')
  done = subprocess.run([sys.executable, '-c', code, str(path), str(tmp_path / 'cache')], cwd=ROOT, capture_output=True,
                        text=True, check=True, timeout=3000)
  tokens, kilobytes = map(int, done.stdout.split())
  assert tokens == (1 << 31) + (1 << 17) + 2 and kilobytes < 1 << 20


def test_ids_of_a_foreign_tokenizer_and_texts_in_its_tokens(tmp_path):
  """Arrays of ids that a tokenizer.json of another library made give the tokens and the bytes of the text itself."""
  import tokenizers as library
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.train_from_iterator(DOCUMENTS, library.trainers.BpeTrainer(
      vocab_size=300, special_tokens=['<s>', '<|endoftext|>'], show_progress=False,
      initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet())))
  made.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'a.jsonl').write_bytes(LINES)
  settings = dict(tokenizer=str(tmp_path / 'tokenizer.json'))
  plain = corpus.prepare(data(tmp_path, tmp_path / 'a.jsonl', **settings))
  end = plain.tokenizer.end
  assert end == made.token_to_id('<|endoftext|>')
  flat = [token for text in DOCUMENTS for token in [*made.encode(text).ids, end]]
  (tmp_path / 'ids').mkdir()
  (tmp_path / 'ids' / 'a.bin').write_bytes(np.array(flat, '<u2').tobytes())
  found = corpus.prepare(data(tmp_path, tmp_path / 'ids' / 'a.bin', ids='uint16', **settings))
  for split in ('train', 'validation'):
    one, other = getattr(plain, split), getattr(found, split)
    np.testing.assert_array_equal(one.read(0, one.tokens), other.read(0, other.tokens))
    assert one.bytes == other.bytes
  mixed = corpus.prepare(data(tmp_path, '', mixture=f'one={tmp_path}/a.jsonl:1', **settings))
  assert mixed.train.parts[0].tokens == plain.train.tokens and mixed.tokenizer.digest == plain.tokenizer.digest
