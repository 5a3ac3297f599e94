"""The bounded reader: what is no file below its folder, too large, too deep or of another form is one line."""

from numbers import Real
import os
import unicodedata

import pytest

from foundation import files, reading
from foundation.errors import ConfigError, one_line
from foundation.printable import printable


@pytest.fixture
def folder(tmp_path):
  """A folder with what is not to be read, or to be written to."""
  below = tmp_path / 'below'
  below.mkdir()
  (tmp_path / 'outside').write_text('precious')
  (below / 'own').write_text('{"a": 1}')
  (below / 'inner').symlink_to('own')
  (below / 'link').symlink_to('../outside')
  (below / 'device').symlink_to('/dev/zero')
  (below / 'loop').symlink_to('loop')
  (below / 'latin').write_bytes(b'{"a": "\xe9"}')
  os.mkfifo(below / 'pipe')
  return below


@pytest.mark.parametrize('name, said', [
    ('link', 'leaves its folder'), ('../outside', 'leaves its folder'), ('/etc/hostname', 'leaves its folder'),
    ('device', 'leaves its folder'), ('loop', 'cannot be read'), ('pipe', 'no regular file'), ('.', 'cannot be read'),
    ('own/x', 'cannot be read: Not a directory'), ('latin', 'byte 7 is not UTF-8'), ('a\0b', 'cannot be read')])
def test_what_is_no_file_below_the_folder(folder, name, said):
  with pytest.raises(ConfigError, match=said) as error:
    reading.value(folder / name, below=folder)
  assert one_line(error.value) == str(error.value)


def test_what_is_one(folder):
  assert reading.value(folder / 'own') == reading.value(folder / 'inner') == {'a': 1}
  assert reading.text(folder / 'link', folder.parent) == 'precious'
  with pytest.raises(FileNotFoundError):
    reading.data(folder / 'none')
  with pytest.raises(ConfigError, match='more than 7 bytes'):
    reading.data(folder / 'own', most=7)
  assert len(reading.data(folder / 'own', most=8)) == 8


@pytest.mark.parametrize('content, said', [
    ('[' * 33 + ']' * 33, 'nested more than 32'), ('[' * 10**6, 'nested more than 32'), ('1' * 301, '301 digits'),
    ('1' * 10**5, '100000 digits'), ('{', 'Expecting'), ('', 'Expecting')])
def test_json_is_bounded(content, said):
  with pytest.raises(ValueError, match=said):
    reading.loads(content)
  assert reading.loads('[' * 32 + ']' * 32) and reading.loads('1' * 300) == int('1' * 300)


@pytest.mark.parametrize('value, kind, said', [
    (1, int, ''), (1, float, ''), (1.0, int, 'a is 1.0; expected a whole number'), (True, int, 'a is True'),
    (True, float, 'a is True; expected a finite number'), (float('inf'), float, 'a is inf'), (float('nan'), Real, ''),
    (10**40, int, 'a is 1000'), (10**290, float, 'a is 1000'), (None, (int, None), ''), (None, int, 'a is null'),
    ('x', (int, None), "a is 'x'; expected a whole number"), ([1, 'x'], [int], "a[1] is 'x'"), ('ab', [str], 'a list'),
    ({'b': [{}]}, {'b': [{'c': str}]}, 'a.b[0].c is null; expected a text'), ([], {'b': None}, 'a JSON object'),
    ({'x': 1, 'y': '2'}, {str: int}, "a.y is '2'"), ({'c': 5}, {'b': (str, None)}, ''),
    ({'\x1b': 1}, {str: str}, r'\x1b')])
def test_forms(value, kind, said):
  wrong = reading.misfit(value, kind, 'a')
  assert said in wrong and bool(said) == bool(wrong)
  assert len(reading.misfit({'a': 'x' * 10**6}, {'a': int})) < 120


@pytest.mark.parametrize('name', ['link', 'pipe', 'device', 'loop', '.'])
def test_a_lock_and_rows_are_files_of_our_own(folder, name):
  for write in (lambda path: files.lock(path).__enter__(), lambda path: files.append_rows(path, [{'step': 1}])):
    with pytest.raises(ConfigError, match='a file of our own'):
      write(folder / name)
  assert (folder.parent / 'outside').read_text() == 'precious'


def test_a_lock_does_not_empty_its_file(folder):
  with files.lock(folder / 'own') as held:
    assert held
    with files.lock(folder / 'own', wait=False) as again:
      assert not again
  assert (folder / 'own').read_text() == '{"a": 1}'


def test_printable():
  assert printable('a\x1b[31mb\nc\u202ed\udc80\x7f\x85\u2028') == r'a\x1b[31mb\nc\u202ed\udc80\x7f\x85\u2028'
  for plain in ('naïve $x$ 日本語 \xa0', 'می\u200cخواهم', '👩\u200d🔬', 'שלום'):
    assert printable(plain) == plain
  assert printable('a\tb\nc', keep='\n') == r'a\tb' + '\nc'
  assert printable('x' * 30, 9) == 'xxxx…xxxx' and printable('x' * 9, 9) == 'x' * 9 and printable(3) == '3'
  every = printable(''.join(map(chr, (*range(0x3000), *range(0xd700, 0x10100)))))
  acting = ('Cc', 'Cs', 'Zl', 'Zp')
  assert not [c for c in every if unicodedata.category(c) in acting or c in '\u202a\u202e\u2066\u200f']
