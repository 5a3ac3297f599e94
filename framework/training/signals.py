"""Signals that ask a run to stop: heard at once, obeyed between steps, agreed on by all hosts."""

import os
import signal
import threading
from typing import Any

from absl import logging
import jax

from framework.training import hosts

SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2')
           if hasattr(signal, name)]


class StopSignal:
  """Remembers the signals that ask a run to stop, and says so when they come, even while a program is compiled.

  While `idle`, which is whenever everything is on disk, the first signal ends the process; so does a second one of its
  kind at any time. A signal that was ignored when we began, as under nohup, stays ignored.
  """

  def __init__(self):
    self.name = ''
    self.idle = True
    self._seen: set[int] = set()

  def __enter__(self):
    self._previous: dict[Any, Any] = {}
    self._thread: threading.Thread | None = None
    if threading.current_thread() is not threading.main_thread():
      return self  # only the main thread can be told of signals
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    # The system's handler writes the number; Python's own runs only when the main thread comes back from a long call.
    self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    for number in SIGNALS:
      if signal.getsignal(number) is not signal.SIG_IGN:
        self._previous[number] = signal.signal(number, lambda *_: None)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def _listen(self) -> None:
    while numbers := os.read(self._read, 1):
      number = numbers[0]
      if number not in self._previous:
        continue
      name = signal.Signals(number).name
      alone = jax.process_count() == 1
      if number in self._seen or self.idle and alone:
        self._leave(name, number)
      self._seen.add(number)
      self.name = self.name or name
      hosts.ask_for_stop(name)
      logging.info('%s: stopping after this step; a second one ends the process at once', name)

  def _leave(self, name: str, number: int) -> None:
    what = 'what was trained since the newest checkpoint is lost' if not self.idle else 'nothing was lost'
    logging.info('stopped by %s between checkpoints; %s, continue with --resume', name, what)
    logging.flush()
    os._exit(128 + number)

  def __exit__(self, *_):
    if not self._thread:
      return
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._wakeup)
    os.close(self._write)  # which ends the thread
    self._thread.join()
    os.close(self._read)

  def agreed(self) -> str:
    """The signal's name if any host received one; all hosts make the same calls, in one order."""
    return hosts.stopping(self.name)
