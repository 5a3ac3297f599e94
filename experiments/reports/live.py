"""Running and finished runs at a glance: as text for a terminal, and as a local page that is always fresh."""

import html
import http.server
import pathlib
import secrets
import threading
import urllib.parse
from typing import Any

from experiments.reports import runs as folders
from experiments.reports import sections
from foundation.errors import one_line
from framework import config as config_lib
from framework.training import clock

BARS = '▁▂▃▄▅▆▇█'
HOSTS = ('127.0.0.1', 'localhost', '[::1]')  # names of this machine; a tunnel may lead to any port of it
TIMEOUT = 10.0  # seconds that a browser may keep us waiting for its words
SILENT = 120.0  # seconds without a new row after which an unfinished run counts as stopped


def sparkline(values: list[float], width: int = 24) -> str:
  """Losses as a line of bars, the oldest left; each bar is the last value of its part."""
  if not values:
    return ''
  picked = [values[(i + 1) * len(values) // width - 1] for i in range(width)] if len(values) > width else values
  low, high = min(picked), max(picked)
  scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
  return ''.join(BARS[round((v - low) * scale)] for v in picked)


def line(run: dict[str, Any], now: float) -> list[str]:
  """One run as cells: name, sparkline, loss, held-out bits/byte, progress, time left, status."""
  rows, result = run['rows'], run['result']
  losses = [row['loss'] for row in rows if row.get('loss') is not None]
  held_out = result.get('bits_per_byte') or next(
      (row['validation_bits_per_byte'] for row in reversed(rows) if row.get('validation_bits_per_byte')), None)
  steps, last = run['settings'].get('training.steps') or 0, rows[-1]['step'] if rows else 0
  timing = run['timing']
  left = timing[-1].get('eta_seconds') if timing else None
  status = folders.state(run)
  if not result:
    newest = max((p.stat().st_mtime for p in (run['folder'] / 'metrics.jsonl', run['folder'] / 'config.json')
                  if p.exists()), default=0.0)
    # A log step may itself take long; then a run is silent only after several of them.
    pace = (timing[-1].get('seconds') or 0.0) / len(timing) if timing else 0.0
    status = 'running' if now - newest < max(SILENT, 5 * pace) else 'stopped'
  return [run['name'], sparkline(losses), f'{losses[-1]:.4f}' if losses else '',
          f'{held_out:.3f}' if held_out else '', f'{100 * last / steps:.0f} %' if steps else '',
          clock.duration(left) if left and status == 'running' else '', status]


def table(roots: list[pathlib.Path], now: float) -> str:
  """The table of all runs below `roots` as text, and a line for each that cannot be read.

  Raises:
    ConfigError: there is none that can be.
  """
  runs, wrong = folders.gather(roots)
  if wrong and not runs:
    raise config_lib.ConfigError(wrong[0])
  heads = ['run', 'loss', '', 'bits/byte', 'done', 'left', 'status']
  cells = [heads] + [line(run, now) for run in runs]
  widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
  return '\n'.join(['  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in cells] +
                   [f'left out: {words}' for words in wrong])


class Server(http.server.ThreadingHTTPServer):
  """A page for who knows its address: `url`, which holds a secret."""
  daemon_threads = True

  def __init__(self, port: int, handler: type[http.server.BaseHTTPRequestHandler]):
    super().__init__(('127.0.0.1', port), handler)
    self.secret = secrets.token_urlsafe(16)
    self.url = f'http://127.0.0.1:{self.server_port}/?token={self.secret}'

  def handle_error(self, request, client_address):
    """A browser that went away or said nothing in time is nobody's concern."""


def server(roots: list[pathlib.Path], port: int, refresh: int = 5) -> Server:
  """Serves the report of `roots` on 127.0.0.1; every look reads the files anew, and nothing is written.

  Another user of the machine lacks the secret of the address; another site, whose name was made to lead here, asks for
  that name (Host) and is refused.
  """
  drawing = threading.Lock()  # of figures, which share fonts

  class Handler(http.server.BaseHTTPRequestHandler):
    timeout = TIMEOUT
    server: Server

    def do_GET(self):
      path, _, query = self.path.partition('?')
      token = urllib.parse.parse_qs(query).get('token', [''])[0]
      if _host(self.headers.get('Host', '')) not in HOSTS:
        self.send_error(403, f'expected a request to one of {", ".join(HOSTS)}')
      elif path != '/':
        self.send_error(404)
      elif not secrets.compare_digest(token.encode('utf-8', 'replace'), self.server.secret.encode()):
        self.send_error(403, 'expected the address that was printed, with its token')
      else:
        self.send_page()

    def send_page(self):
      try:
        with drawing:
          text = sections.render(roots, roots[0], roots[0].name, refresh)
      except (config_lib.ConfigError, OSError) as error:  # a file that is being replaced, say: the next look is better
        text = f'<!doctype html><meta http-equiv="refresh" content="{refresh}"><p>{html.escape(one_line(error))}</p>'
      body = text.encode()
      self.send_response(200)
      for name, value in (('Content-Type', 'text/html; charset=utf-8'), ('Content-Length', str(len(body))),
                          ('Cache-Control', 'no-store'), ('Referrer-Policy', 'no-referrer')):
        self.send_header(name, value)
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *_):
      pass

  return Server(port, Handler)


def _host(text: str) -> str:
  """The name in a Host header, without the port."""
  name, colon, port = text.strip().lower().rpartition(':')
  return name if colon and port.isdigit() else text.strip().lower()
