"""When a run saves: now and then, at signals and at its end, and what it does while the disk is full."""

import time

from absl import logging
import jax

from framework.training import checkpoint
from framework.training.meter import Meter
from framework.training.signals import StopSignal
from framework.training.state import State
from framework.training.writer import Writer

RETRY = 20.0  # seconds from one try to the next at the end of a run


class Saver:
  """Saves states with the rows up to them. A full disk costs the checkpoint, not the run: the next save tries again."""

  def __init__(self, patience: float, checkpoints: checkpoint.Checkpoints, meter: Meter, out: Writer,
               stop: StopSignal):
    self.checkpoints, self._meter, self._out = checkpoints, meter, out
    self._patience, self._stop = patience, stop

  def save(self, state: State) -> None:
    """Starts to save. That this, or the save before it, fails is said, and the run goes on."""
    for _ in range(2):  # what is raised first is often the failure of the save before
      try:
        return self._save(state)
      except OSError as error:
        if jax.process_count() > 1:  # the others do not know of it
          raise
        logging.warning('%s; training goes on, and the next save tries again', _told(error))

  def finish(self, state: State) -> None:
    """Returns when `state`, the run's last, and its rows are on disk.

    Raises:
      OSError: there was no room for `patience` seconds, or a signal came meanwhile.
    """
    deadline, tries = time.monotonic() + self._patience, 0
    while True:
      try:
        self._save(state)
        return self.checkpoints.wait()
      except OSError as error:
        tries += 1
        if jax.process_count() > 1 or tries > 1 and (self._stop.name or time.monotonic() >= deadline):
          raise
        logging.warning('%s; trying again for %.0f s, a signal ends it', _told(error), deadline - time.monotonic())
      until = min(deadline, time.monotonic() + RETRY) if tries > 1 else 0.0
      while time.monotonic() < until and not self._stop.name:
        time.sleep(0.2)

  def _save(self, state: State) -> None:
    pending = {'pending': dict(self._meter.row)} if self._meter.row else {}
    self.checkpoints.save(state, {'targets': self._meter.targets, 'seconds': self._meter.seconds,
                                  'rows': self._out.sync()} | pending)


def _told(error: OSError) -> str:
  return f'{error.strerror}: {error.filename}'
