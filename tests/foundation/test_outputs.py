"""What a command has made it makes anew, anything else is left alone; with hard links or without."""

import errno
import os
import socket

import pytest

from foundation import files, outputs, page
from foundation.errors import ConfigError

NAMES = ('part.svg', 'whole.json')


@pytest.mark.parametrize('held', [
    [], ['part.svg'], ['whole.json'], ['part.svg', 'whole.json'], ['.part.svg.7.tmp'], ['whole.json', 'page.html']])
def test_a_folder_of_ours(tmp_path, held):
  for name in held:
    (tmp_path / name).write_text('x')
  outputs.check_folder('--output', tmp_path, NAMES, mark='whole.json')
  outputs.check_folder('--output', tmp_path / 'new', NAMES, mark='whole.json')


@pytest.mark.parametrize('held, mark', [
    (['notes.txt'], 'whole.json'), (['part.svg', 'notes.txt'], 'whole.json'), (['whole.json', 'notes.txt'], '')])
def test_a_folder_of_somebody_elses(tmp_path, held, mark):
  for name in held:
    (tmp_path / name).write_text('x')
  with pytest.raises(ConfigError, match=r'--output is .*, which holds something else \(notes.txt\); give a new folder'):
    outputs.check_folder('--output', tmp_path, NAMES, mark=mark)
  with pytest.raises(ConfigError, match='a file; expected a folder'):
    outputs.check_folder('--output', tmp_path / held[0], NAMES)


def test_a_page_of_ours(tmp_path):
  path = tmp_path / 'page.html'
  outputs.check_page('--output', path)
  path.write_text(page.render('x', 'y', []))
  outputs.check_page('--output', path)
  (tmp_path / 'hanging.html').symlink_to('nowhere')
  path.with_name('mine.html').write_text('<p>')
  os.mkfifo(tmp_path / 'pipe.html')
  for name in ('hanging.html', 'mine.html', 'pipe.html', '.'):
    with pytest.raises(ConfigError, match='exists and is not a report'):
      outputs.check_page('--output', tmp_path / name)


@pytest.mark.parametrize('number', [None, errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS])
def test_a_new_file_with_hard_links_or_without(tmp_path, monkeypatch, number):
  def link(*_):
    raise OSError(number, os.strerror(number))
  if number:
    monkeypatch.setattr(os, 'link', link)
  path = tmp_path / 'new'
  (tmp_path / f'.new.{socket.gethostname()}.{os.getpid()}.tmp').write_bytes(b'half, of a dead process of our number')
  for _ in range(2):
    files.write_new(path, b'whole')  # again: it is there
  assert path.read_bytes() == b'whole' and [p.name for p in tmp_path.iterdir()] == ['new']
  with pytest.raises(FileExistsError):
    files.write_new(path, b'other')
  (tmp_path / 'link').symlink_to('nowhere')
  with pytest.raises(FileExistsError):
    files.write_new(tmp_path / 'link', b'whole')
  assert path.read_bytes() == b'whole' and not (tmp_path / 'nowhere').exists()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['link', 'new']


def test_another_failure_of_a_link_is_one(tmp_path, monkeypatch):
  def link(*_):
    raise OSError(errno.ENOSPC, 'full')
  monkeypatch.setattr(os, 'link', link)
  with pytest.raises(OSError, match='full'):
    files.write_new(tmp_path / 'new', b'whole')
  assert not list(tmp_path.iterdir())
