"""Rows of several processes, of killed ones and on a full disk."""

import resource
import signal
import subprocess
import sys

import pytest

from foundation import files

APPEND = '''
import pathlib, sys
from foundation import files
sys.stdin.read()
for n in range(200):
  files.append_rows(pathlib.Path(sys.argv[1]), [{'step': n, 'process': int(sys.argv[2])}])
'''


def test_processes_append_at_once(tmp_path):
  """Without the lock rows are lost: each process cuts off what another has half written."""
  path = tmp_path / 'rows.jsonl'
  writers = [subprocess.Popen([sys.executable, '-c', APPEND, path, str(p)], stdin=subprocess.PIPE) for p in range(4)]
  for writer in writers:
    writer.stdin.close()
  assert not any([writer.wait(60) for writer in writers])
  rows = [(row['process'], row['step']) for row in files.read_rows(path)]
  assert sorted(rows) == [(p, n) for p in range(4) for n in range(200)]


def test_a_torn_line_is_replaced(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"step": 1}\n{"st')
  files.append_rows(path, [{'step': 2}, {'step': 3}])
  assert path.read_text().count('\n') == 3 and files.read_rows(path) == [{'step': 1}, {'step': 2}, {'step': 3}]
  path.write_text(path.read_text().replace('"step": 2', '"step": 4'))
  with pytest.raises(files.ConfigError, match='rows.jsonl:2 was changed after it was written'):
    files.read_rows(path)


def test_a_full_disk_leaves_the_rows_that_were_there(tmp_path):
  path = tmp_path / 'rows.jsonl'
  files.append_rows(path, [{'step': 1}])
  before = path.read_bytes()
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, old[1]))
  try:
    with pytest.raises(OSError) as error:
      files.append_rows(path, [{'step': 2}])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)
  assert path.read_bytes() == before and error.value.filename == str(path)
