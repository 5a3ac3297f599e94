"""What a run writes while it trains: rows on disk, one live line on a terminal.

metrics.jsonl is a pure function of the config: an interrupted and resumed run has the same bytes as one that was
not. Whatever depends on the machine's speed goes to timing.jsonl.
"""

import contextlib
import json
import pathlib
import sys
from typing import Any

from absl import logging
import tqdm

from foundation import files
from framework.training import clock


class Writer:
  """Appends to a run folder; only the first host writes.

  Args:
    resumed_step: rows after this step are dropped, since the steps behind them are done again.
  """

  def __init__(self, workdir: pathlib.Path, resumed_step: int, total_steps: int, active: bool, tensorboard: bool):
    self._active = active
    self._bar = self._board = None
    self._files = {}
    if not active:
      return
    for name in ('metrics.jsonl', 'timing.jsonl'):
      path = workdir / name
      kept = [row for row in files.read_rows(path) if row['step'] <= resumed_step]
      files.write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))
      self._files[path] = open(path, 'a', encoding='utf-8')
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total_steps, initial=resumed_step, dynamic_ncols=True, file=sys.stderr,
                            bar_format='{n_fmt}/{total_fmt} |{bar:12}| {desc}')
    if tensorboard:
      import tensorboardX  # only runs that ask for it pay for the import
      self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=resumed_step + 1)

  def row(self, metrics: dict[str, Any], rates: dict[str, float]) -> None:
    """Writes one row of metrics and one of timing, and shows them."""
    if not self._active:
      return
    step = metrics['step']
    for (path, file), row in zip(self._files.items(), (metrics, {'step': step} | rates)):
      with files.naming(path):
        file.write(json.dumps(row) + '\n')
        file.flush()
    if self._board:
      for name, value in (metrics | rates).items():
        if isinstance(value, (int, float)) and name != 'step':
          self._board.add_scalar(name, value, step)
    if self._bar is None:
      logging.info('step %d  %s', step, describe(metrics, rates))

  def live(self, step: int, metrics: dict[str, Any], rates: dict[str, float]) -> None:
    """Redraws the live line, at most ten times a second."""
    if self._bar is not None:
      self._bar.set_description_str(describe(metrics, rates), refresh=False)
      self._bar.update(step - self._bar.n)

  def close(self) -> None:
    for file in self._files.values():
      with contextlib.suppress(OSError):  # every row was flushed: only one whose flush has failed would fail again
        file.close()
    if self._bar is not None:
      self._bar.refresh()
      self._bar.close()
    if self._board:
      self._board.close()


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
