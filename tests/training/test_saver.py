"""A disk that is full for a while costs a checkpoint, not a run; rows wait until there is room."""

import errno
import json
import types

import pytest

from framework.training import checkpoint, saver, writer


class Disk:
  """Stands for the checkpoints and the rows of a run; full at the given calls of save or wait."""

  def __init__(self, full):
    self.full, self.calls, self.saved = set(full), 0, []

  def _call(self):
    self.calls += 1
    if self.calls - 1 in self.full:
      raise checkpoint.NotSaved(errno.ENOSPC, 'no room', '/run/checkpoints')

  def save(self, state, record):
    self._call()
    self.saved.append((state, record))

  def wait(self):
    self._call()

  def sync(self):
    return {'count': 3, 'sha256': 'x'}


def made(disk, patience=0.0, name=''):
  meter = types.SimpleNamespace(row=None, targets=7, seconds=1.0)
  return saver.Saver(patience, disk, meter, disk, types.SimpleNamespace(name=name))


def test_a_save_that_fails_is_tried_once_more_and_then_left(caplog):
  disk = Disk([0, 1])
  one = made(disk)
  one.save('first')
  assert disk.saved == [] and disk.calls == 2
  one.save('second')
  assert disk.saved == [('second', {'targets': 7, 'seconds': 1.0, 'rows': {'count': 3, 'sha256': 'x'}})]


def test_the_end_waits_for_room(monkeypatch):
  monkeypatch.setattr(saver, 'RETRY', 0.0)
  disk = Disk(range(5))
  made(disk, patience=60.0).finish('last')
  assert disk.calls == 7 and [state for state, _ in disk.saved] == ['last']


def test_the_end_waits_no_longer_than_its_patience():
  disk = Disk(range(1000))
  with pytest.raises(checkpoint.NotSaved, match='no room'):
    made(disk).finish('last')
  assert disk.calls == 2


def test_a_signal_ends_the_wait():
  disk = Disk(range(1000))
  with pytest.raises(checkpoint.NotSaved):
    made(disk, patience=1e6, name='SIGTERM').finish('last')
  assert disk.calls == 2


def test_what_a_save_failed_to_write_before_is_no_reason_to_fail_at_the_end():
  disk = Disk([0])  # what is raised first is the failure of the save before
  made(disk, name='SIGTERM').finish('last')
  assert disk.saved[0][0] == 'last'


class File:
  """A file on a disk that takes `room` bytes in all, as many as fit of each write."""

  def __init__(self, path, room):
    self._file, self.room = open(path, 'r+b', buffering=0), room

  def write(self, data):
    place = self._file.tell()
    if place >= self.room:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return self._file.write(data[:self.room - place])

  def __getattr__(self, name):
    return getattr(self._file, name)


def test_rows_wait_for_room_and_no_torn_row_is_left(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  rows = writer.Rows(path, [{'step': 1}])
  rows._file = File(path, room=30)
  for step in range(2, 6):
    rows.add({'step': step})
  held = path.read_bytes()
  assert held == b''.join(b'{"step": %d}\n' % step for step in (1, 2)) and len(held) <= 30
  with pytest.raises(OSError, match='No space left'):
    rows.sync()
  rows._file.room = 1000
  assert rows.sync()['count'] == 5
  assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
  assert writer.digest(path, 5) == rows.sync()['sha256'] and writer.digest(path, 6) == ''
  rows.close()


def test_a_changed_row_is_seen(tmp_path):
  rows = writer.Rows(tmp_path / 'metrics.jsonl', [])
  for step in range(1, 4):
    rows.add({'step': step, 'loss': 1.5})
  record = {'step': 3, 'rows': rows.sync()}
  rows.close()
  writer.check_rows(tmp_path, record)
  writer.check_rows(tmp_path, {'step': 3})  # of a run that is older
  text = (tmp_path / 'metrics.jsonl').read_text()
  for changed in (text.replace('1.5', '1.6', 1), ''.join(text.splitlines(True)[1:]), text[:20] + text[20:].upper(),
                  text.splitlines(True)[0] + text):
    (tmp_path / 'metrics.jsonl').write_text(changed)
    with pytest.raises(writer.ConfigError, match='its first 3 rows are not those of step 3'):
      writer.check_rows(tmp_path, record)
