"""Signals that stop a run: remembered while a step runs, agreed on by all hosts."""

import signal

import jax
from jax.experimental import multihost_utils
import numpy as np


class StopSignal:
  """Remembers SIGTERM and SIGINT while a step runs; a second one of the same kind acts at once."""

  def __init__(self):
    self.name = ''

  def __enter__(self):
    self._previous = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def _remember(self, number, _):
    self.name = signal.Signals(number).name
    signal.signal(number, signal.SIG_DFL)

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def agreed(self) -> str:
    """The signal's name if any host received one; all hosts must call this at the same step."""
    if jax.process_count() == 1:
      return self.name
    return 'a signal' if multihost_utils.process_allgather(np.asarray(bool(self.name))).any() else ''
