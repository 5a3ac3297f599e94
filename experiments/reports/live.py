"""Running and finished runs at a glance: as text for a terminal, and as a local page that is always fresh."""

import html
import http.server
import pathlib
from typing import Any

from experiments.reports import runs as folders
from experiments.reports import sections
from foundation import files
from framework import config as config_lib
from framework.training import clock

BARS = '▁▂▃▄▅▆▇█'
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
  timing = files.read_rows(run['folder'] / 'timing.jsonl')
  left = timing[-1].get('eta_seconds') if timing else None
  status = folders.state(run)
  if not result:
    newest = max((p.stat().st_mtime for p in (run['folder'] / 'metrics.jsonl', run['folder'] / 'config.json')
                  if p.exists()), default=0.0)
    # A log step may itself take long; then a run is silent only after several of them.
    pace = timing[-1].get('seconds', 0.0) / len(timing) if timing else 0.0
    status = 'running' if now - newest < max(SILENT, 5 * pace) else 'stopped'
  return [run['name'], sparkline(losses), f'{losses[-1]:.4f}' if losses else '',
          f'{held_out:.3f}' if held_out else '', f'{100 * last / steps:.0f} %' if steps else '',
          clock.duration(left) if left and status == 'running' else '', status]


def table(roots: list[pathlib.Path], now: float) -> str:
  """The table of all runs below `roots` as text."""
  heads = ['run', 'loss', '', 'bits/byte', 'done', 'left', 'status']
  cells = [heads] + [line(run, now) for run in folders.collect(roots)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
  return '\n'.join('  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in cells)


def server(roots: list[pathlib.Path], port: int, refresh: int = 5) -> http.server.ThreadingHTTPServer:
  """Serves the report of `roots` at / on 127.0.0.1; every look reads the files anew, and nothing is written."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      if self.path.split('?')[0] != '/':
        self.send_error(404)
        return
      try:
        text = sections.render(roots, roots[0], roots[0].name, refresh)
      except (config_lib.ConfigError, OSError) as error:  # a file that is being replaced, say: the next look is better
        text = f'<!doctype html><meta http-equiv="refresh" content="{refresh}"><p>{html.escape(str(error))}</p>'
      body = text.encode()
      self.send_response(200)
      self.send_header('Content-Type', 'text/html; charset=utf-8')
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *_):
      pass

  return http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
