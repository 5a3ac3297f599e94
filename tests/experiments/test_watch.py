"""The terminal view of runs, and the local page."""

import json
import os
import socket
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


def answer(serving, words):
  """The first line that the server answers to the words of a request."""
  with socket.create_connection(serving.server_address, timeout=30) as line:
    line.sendall(words.encode())
    return line.makefile('rb').readline().decode().strip()


def test_only_who_has_the_address_is_answered(tmp_path):
  make_run(tmp_path / 'one', 1e-3, 2.0)
  with view.server([tmp_path], 0) as serving, view.server([tmp_path], 0) as other:
    assert serving.secret != other.secret and len(serving.secret) > 20
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    port, query = serving.server_port, f'?token={serving.secret}'
    for host, target, code in (
        (f'127.0.0.1:{port}', f'/{query}', 200), ('localhost:9', f'/{query}', 200), (f'[::1]:{port}', f'/{query}', 200),
        ('LOCALHOST', f'/{query}', 200), (f'evil.example:{port}', f'/{query}', 403), ('', f'/{query}', 403),
        (f'127.0.0.1.evil.example:{port}', f'/{query}', 403), (f'127.0.0.1:{port}', '/', 403),
        (f'127.0.0.1:{port}', f'/{query}x', 403), (f'127.0.0.1:{port}', '/?token=%ff%ed%a0%80', 403),
        (f'127.0.0.1:{port}', f'/?token={other.secret}', 403), (f'127.0.0.1:{port}', f'/one/config.json{query}', 404)):
      assert answer(serving, f'GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n').split()[1] == str(code), (host, target)
    assert answer(serving, f'GET /{query} HTTP/1.0\r\n\r\n').split()[1] == '403'  # no Host at all
    serving.shutdown()


def test_a_browser_that_says_nothing_is_left(tmp_path, monkeypatch, capfd):
  make_run(tmp_path / 'one', 1e-3, 2.0)
  monkeypatch.setattr(view, 'TIMEOUT', 0.2)
  with view.server([tmp_path], 0) as serving:
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    with socket.create_connection(serving.server_address, timeout=30) as line:
      line.sendall(b'GET /?tok')
      assert line.recv(1) == b''  # the server has hung up
    with socket.create_connection(serving.server_address) as line:
      line.sendall(f'GET /?token={serving.secret} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())  # and goes away
    assert urllib.request.urlopen(serving.url, timeout=30).status == 200
    serving.shutdown()
  assert 'Traceback' not in capfd.readouterr().err
