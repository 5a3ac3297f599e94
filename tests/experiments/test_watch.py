"""The terminal view of runs, and the local page."""

import json
import os
import threading
import time
import urllib.error
import urllib.request

import pytest

from experiments.reports import live as view
from tests.experiments.test_report import make_run


@pytest.mark.parametrize('values,shown', [
    ([], ''), ([1.0], '▁'), ([2, 2, 2], '▁▁▁'), ([8, 1], '█▁'),
    ([0, 1, 2, 3, 4, 5, 6, 7], '▁▂▃▄▅▆▇█')])
def test_sparkline(values, shown):
  assert view.sparkline(values) == shown


def test_a_long_sparkline_ends_with_the_last_value():
  values = [100.0 - i for i in range(1001)]
  line = view.sparkline(values)
  assert len(line) == 24 and line[-1] == '▁' and line[0] == '█' and list(line) == sorted(line, reverse=True)


def test_view_tells_running_stopped_and_done(tmp_path):
  for name in ('alive', 'dead'):
    make_run(tmp_path / name, 1e-3, 2.5, done=False)
    (tmp_path / name / 'timing.jsonl').write_text(json.dumps({'step': 15, 'seconds': 30.0, 'eta_seconds': 65.0}) + '\n')
  make_run(tmp_path / 'done', 1e-3, 2.0)
  old = time.time() - 3600
  for path in (tmp_path / 'dead').iterdir():
    os.utime(path, (old, old))
  lines = {words[0]: words for words in map(str.split, view.table([tmp_path], time.time()).splitlines())}
  assert lines['alive'][-4:] == ['75', '%', '1:05', 'running']
  assert lines['dead'][-1] == 'stopped' and '1:05' not in lines['dead']
  assert lines['done'][-1] == 'complete' and '2.885' in lines['done']


def test_the_local_page_is_fresh_and_only_this(tmp_path):
  make_run(tmp_path / 'one', 1e-3, 2.0)
  with view.server([tmp_path], 0) as serving:
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    base, query = f'http://127.0.0.1:{serving.server_port}', f'?token={serving.secret}'
    assert serving.server_address[0] == '127.0.0.1' and serving.url == f'{base}/{query}'
    before = sorted(p for p in tmp_path.rglob('*'))
    first = urllib.request.urlopen(serving.url, timeout=30).read().decode()
    assert 'http-equiv="refresh"' in first and 'Best of 2' not in first
    with pytest.raises(urllib.error.HTTPError, match='404'):
      urllib.request.urlopen(f'{base}/../config.json{query}', timeout=30)
    with pytest.raises(urllib.error.HTTPError, match='501'):
      urllib.request.urlopen(urllib.request.Request(serving.url, data=b'x'), timeout=30)
    assert sorted(p for p in tmp_path.rglob('*')) == before
    make_run(tmp_path / 'two', 1e-2, 1.0)
    assert 'Best of 2 runs: two' in urllib.request.urlopen(serving.url, timeout=30).read().decode()
    (tmp_path / 'two' / 'result.json').write_text('{')  # in the middle of a write by something else
    page = urllib.request.urlopen(serving.url, timeout=30).read().decode()
    assert 'cannot be read' in page and '1 folder left out' in page and 'one: 2.885 bits/byte' in page
    serving.shutdown()
