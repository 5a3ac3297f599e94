"""What a run writes while it trains: rows on disk, one live line on a terminal.

metrics.jsonl is a pure function of the config: an interrupted and resumed run has the same bytes as one that was
not. Whatever depends on the machine's speed goes to timing.jsonl.
"""

import hashlib
import json
import os
import pathlib
import sys
from typing import Any

from absl import logging
import tqdm

from foundation import files
from foundation.errors import ConfigError
from framework.training import clock

ROWS = METRICS, TIMING = 'metrics.jsonl', 'timing.jsonl'


def digest(path: pathlib.Path, count: int) -> str:
  """The SHA-256 of the first `count` lines of a file; '' if it has fewer."""
  lines = _lines(path)
  return hashlib.sha256(b''.join(lines[:count])).hexdigest() if len(lines) >= count else ''


def digests(path: pathlib.Path) -> dict[str, Any]:
  """The `count` of the lines of a file, and the `sha256` of all of them."""
  lines = _lines(path)
  return {'count': len(lines), 'sha256': hashlib.sha256(b''.join(lines)).hexdigest()}


def _lines(path: pathlib.Path) -> list[bytes]:
  """The lines of a file that have an end."""
  return [line + b'\n' for line in path.read_bytes().split(b'\n')[:-1]] if path.exists() else []


def check_rows(workdir: pathlib.Path, record: dict[str, Any]) -> None:
  """Raises ConfigError if the rows of metrics.jsonl are not those that there were when a checkpoint was saved.

  Args:
    record: of the checkpoint; older ones do not say.
  """
  wanted = record.get('rows')
  if wanted and digest(workdir / METRICS, wanted['count']) != wanted['sha256']:
    raise ConfigError(f"{workdir / METRICS} was changed: its first {wanted['count']} rows are not those of step "
                      f"{record['step']}")


class Rows:
  """A file of JSON lines that grows. What a full disk does not take is kept, and written when there is room."""

  def __init__(self, path: pathlib.Path, kept: list[dict[str, Any]]):
    self.path, self.count, self._sha, self._waiting = path, 0, hashlib.sha256(), b''
    text = ''.join(json.dumps(row) + '\n' for row in kept)
    files.write_atomically(path, text)
    self._sha.update(text.encode())
    self.count, self._size = len(kept), len(text.encode())
    self._file = open(path, 'r+b', buffering=0)

  def add(self, row: dict[str, Any]) -> None:
    """Writes a row, or keeps it until there is room."""
    line = (json.dumps(row) + '\n').encode()
    self._sha.update(line)
    self.count += 1
    full = bool(self._waiting)
    self._waiting += line
    try:
      self.flush()
    except OSError as error:
      if not full:
        logging.warning('%s: %s; its rows are kept until there is room', self.path, error.strerror)

  def flush(self) -> None:
    """Writes what waits. Raises OSError if there is no room; then nothing of it is in the file."""
    try:
      with files.naming(self.path):
        self._file.seek(self._size)
        left = self._waiting
        while left:
          left = left[self._file.write(left):]
    except OSError:
      self._file.truncate(self._size)
      raise
    self._size += len(self._waiting)
    self._waiting = b''

  def sync(self) -> dict[str, Any]:
    """Puts every row on the disk itself; returns their `count` and `sha256`. Raises OSError."""
    self.flush()
    with files.naming(self.path):
      os.fsync(self._file.fileno())
    return {'count': self.count, 'sha256': self._sha.hexdigest()}

  def close(self) -> None:
    try:
      self.flush()
    finally:
      self._file.close()


class Writer:
  """Appends to a run folder; only the first host writes.

  Args:
    record: of the checkpoint that the run goes on from: rows after its step are dropped, since the steps behind them
      are done again, and so is that of its step if it has yet to be evaluated.
  """

  def __init__(self, workdir: pathlib.Path, record: dict[str, Any], total_steps: int, active: bool, tensorboard: bool):
    self._active = active
    self._bar = self._board = None
    self._rows: list[Rows] = []
    if not active:
      return
    last = record['step'] - ('pending' in record)
    for name in ROWS:
      rows = [row for row in files.read_rows(workdir / name) if row['step'] <= last]
      self._rows.append(Rows(workdir / name, rows[:record['rows']['count']] if 'rows' in record else rows))
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total_steps, initial=record['step'], dynamic_ncols=True, file=sys.stderr,
                            bar_format='{n_fmt}/{total_fmt} |{bar:12}| {desc}')
    if tensorboard:
      import tensorboardX  # only runs that ask for it pay for the import
      self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=last + 1)

  def row(self, metrics: dict[str, Any], rates: dict[str, float]) -> None:
    """Writes one row of metrics and one of timing, and shows them."""
    if not self._active:
      return
    step = metrics['step']
    for rows, row in zip(self._rows, (metrics, {'step': step} | rates)):
      rows.add(row)
    if self._board:
      for name, value in (metrics | rates).items():
        if isinstance(value, (int, float)) and name != 'step':
          self._board.add_scalar(name, value, step)
    if self._bar is None:
      logging.info('step %d  %s', step, describe(metrics, rates))

  def sync(self) -> dict[str, Any]:
    """Puts the rows on the disk itself; what a checkpoint's record says of them. Raises OSError."""
    return [rows.sync() for rows in self._rows][0] if self._active else {}

  def live(self, step: int, metrics: dict[str, Any], rates: dict[str, float]) -> None:
    """Redraws the live line, at most ten times a second."""
    if self._bar is not None:
      self._bar.set_description_str(describe(metrics, rates), refresh=False)
      self._bar.update(step - self._bar.n)

  def close(self) -> None:
    """Raises OSError if rows are left for which there was no room."""
    if self._bar is not None:
      self._bar.refresh()
      self._bar.close()
    if self._board:
      self._board.close()
    for rows in self._rows:
      rows.close()


def describe(metrics: dict[str, Any], rates: dict[str, float]) -> str:
  """One line for people."""
  if metrics['loss'] is None:
    parts = [f"not finite, {metrics['skipped']} skipped"]
  else:
    parts = [f"loss {metrics['loss']:.4f}", f"{metrics['bits_per_byte']:.3f} bits/byte"]
  if 'validation_bits_per_byte' in metrics:
    parts.append(f"held out {metrics['validation_bits_per_byte']:.3f} bits/byte")
  if 'tokens_per_second' in rates:
    parts.append(f"{rates['tokens_per_second']:,.0f} tokens/s")
  if 'mfu' in rates:
    parts.append(f"MFU {100 * rates['mfu']:.1f} %")
  parts.append(f"epoch {metrics['epoch']:.2f}")
  if 'eta_seconds' in rates:
    parts.append(f"{clock.duration(rates['eta_seconds'])} left")
  return '  '.join(parts)
