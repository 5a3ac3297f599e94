"""What the processes of one run agree on, and how each notices that another is gone.

Every process publishes a beat and the step that it has entered in the key-value store of JAX's coordination service.
A thread in each reads them: a process whose beat stands still, or all of them at one step for too long, ends the run in
one line that names who is missing. Collectives alone would wait for ever, or end in the runtime's own abort.
"""

from collections.abc import Callable, Mapping
import hashlib
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from foundation.errors import ConfigError, one_line

LOST = 20.0  # seconds without a beat after which a process is gone
LAST = 4.0  # seconds that process 0, which keeps the store, outlives what it has told the others
WORDS = 800  # bytes of a message that one process sends to all
RESUME = '--resume goes on from the newest checkpoint'


class Disagreement(RuntimeError):
  """Processes or devices that ought to hold the same values do not; the message is one line."""


def agree(entries: Mapping[str, Any], error: type[Exception] = ConfigError) -> None:
  """Raises `error` on every process if an entry differs between them, naming it and the process.

  Args:
    entries: what is compared, by what it is called; the same names on all processes.
  """
  if jax.process_count() == 1:
    return
  digests = [np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8) for value in entries.values()]
  all_PxEx32 = np.asarray(multihost_utils.process_allgather(np.stack(digests)))
  for name, of_P in zip(entries, all_PxEx32.swapaxes(0, 1)):
    others = [process for process, digest in enumerate(of_P) if (digest != of_P[0]).any()]
    if others:
      own = f' (here {entries[name]!r:.200})' if isinstance(entries[name], (str, int, float)) else ''
      raise error(f"process {', '.join(map(str, others))} has another {name} than process 0{own}; expected the same on "
                  'all')


def together(call: Callable[[], None]) -> None:
  """Makes the call on every process; what one raises is raised on all, after all have come back.

  Raises:
    ConfigError: what the first of those that failed said.
  """
  if jax.process_count() == 1:
    return call()
  said = ''
  try:
    call()
  except (ConfigError, OSError) as error:
    said = one_line(error)
  words = np.zeros(WORDS, np.uint8)
  text = said.encode()[:WORDS]
  words[:len(text)] = np.frombuffer(text, np.uint8)
  for process, row in enumerate(np.asarray(multihost_utils.process_allgather(words))):
    message = bytes(row).rstrip(b'\0').decode(errors='replace')
    if message:
      raise ConfigError(message if process == jax.process_index() else f'process {process}: {message}')


class Watch(threading.Thread):
  """Ends this process, with one line, when another is gone or none has made a step for `stall` seconds (0: never)."""

  def __init__(self, stall: float):
    super().__init__(daemon=True)
    from jax._src import distributed  # jax has no public way to the coordination service
    store: Any = distributed.global_state.client
    self._store = store
    self._rank, self._stall = jax.process_index(), stall
    self._seen: dict[int, list[Any]] = {}
    self.step, self.over = '0.0', False
    self._turn, self._asked, self._calls, self._stop_at, self._stop = threading.Lock(), False, 0, 0, ''
    self._store.key_value_set(f'lemma/who/{self._rank}', f'{socket.gethostname()}, process id {os.getpid()}')

  def run(self) -> None:
    beat, silent = 0, 0.0
    while not self.over:
      beat += 1
      try:
        self._store.key_value_set(f'lemma/beat/{self._rank}', f'{beat} {self.step}', allow_overwrite=True)
        self._look({int(key.rpartition('/')[2]): value.split() for key, value in
                    self._store.key_value_dir_get('lemma/beat/')})
        self._agree_on_stop()
        silent = 0.0
      except Exception as error:  # the store goes with process 0, and tells it in several ways
        silent += 1.0
        if silent > LOST:
          self._end(f'process 0 does not answer ({one_line(error)[:100]})')
      time.sleep(1.0)

  def _look(self, beats: dict[int, list[str]]) -> None:
    now = time.monotonic()
    for rank, (beat, step) in beats.items():
      seen = self._seen.setdefault(rank, [beat, now, step, now])
      if seen[0] != beat:
        seen[:2] = beat, now
      if seen[2] != step:
        seen[2:] = step, now
    for key, message in self._store.key_value_dir_get('lemma/end/'):
      rank = int(key.rpartition('/')[2])
      if rank != self._rank and not self.over:
        time.sleep(1.0)  # we may be about to say the same
        self._end(f'process {rank} ({self._who(rank)}) ended: {message}')
    for rank, (_, since, step, _) in sorted(self._seen.items()):
      if now - since > LOST:
        self._end(f'process {rank} ({self._who(rank)}) is gone: last heard of {now - since:.0f} s ago at step '
                  f'{step.partition(".")[0]}')
    if self._stall and self._seen and all(now - seen[3] > self._stall for seen in self._seen.values()):
      rank = min(self._seen, key=lambda r: [int(part) for part in self._seen[r][2].split('.')])
      self._end(f'no process has made a step for {self._stall:.0f} s; last is process {rank} ({self._who(rank)}) at '
                f"step {self._seen[rank][2].partition('.')[0]}")

  def ask_for_stop(self, signal: str) -> None:
    """Lets all processes know that this one has been told to stop."""
    self._store.key_value_set(f'lemma/stop/{self._rank}', signal, allow_overwrite=True)

  def _agree_on_stop(self) -> None:
    """Once one has been told to stop: each says how often it has asked `stopping`, and none asks until all have said so.

    The first call that none has made yet is where all stop. Nothing of this is in the way of a step before.
    """
    told = sorted(self._store.key_value_dir_get('lemma/stop/'))
    if not told or self._stop_at:
      return
    if not self._asked:
      self._turn.acquire()  # pylint: disable=consider-using-with  # until all have answered, in a later look
      self._asked = True
      self._store.key_value_set(f'lemma/calls/{self._rank}', str(self._calls))
    calls = self._store.key_value_dir_get('lemma/calls/')
    if len(calls) == jax.process_count():
      self._stop, self._stop_at = told[0][1], 1 + max(int(count) for _, count in calls)
      self._turn.release()

  def stopping(self) -> str:
    """The signal that all processes stop for, from this call on, or ''. All make the same calls, in one order."""
    with self._turn:
      self._calls += 1
      return self._stop if self._stop_at and self._calls >= self._stop_at else ''

  def _who(self, rank: int) -> str:
    return self._store.key_value_try_get(f'lemma/who/{rank}')

  def _end(self, message: str) -> NoReturn:
    if self.over:
      sys.exit()  # of this thread
    logging.flush()
    sys.stderr.write(f'error: {message}; {RESUME}\n')
    sys.stderr.flush()
    os._exit(1)

  def tell(self, message: str) -> None:
    """Lets the others know that this process ends, and why."""
    self.over = True
    try:
      self._store.key_value_set(f'lemma/end/{self._rank}', message[:WORDS], allow_overwrite=True)
      if self._rank == 0:  # when it goes, so does the store, and with that the others at once
        time.sleep(LAST)
    except Exception as error:
      logging.debug('%s', one_line(error))


_watch: Watch | None = None


def watch(stall: float) -> None:
  """Starts to watch the other processes, if there are any."""
  global _watch
  if jax.process_count() > 1:
    _watch = Watch(stall)
    _watch.start()


def entered(step: int, part: int = 0) -> None:
  """Says that this process has begun a step, or a part of what comes after it, such as a batch of an evaluation."""
  if _watch:
    _watch.step = f'{step}.{part}'


def ask_for_stop(signal: str) -> None:
  """Called by a process of several that was told to stop."""
  if _watch:
    _watch.ask_for_stop(signal)


def stopping(signal: str) -> str:
  """The signal that all processes stop for, from this call on, or ''.

  Args:
    signal: that this process was told of, or ''.
  """
  if jax.process_count() == 1:
    return signal
  if _watch:
    return _watch.stopping()
  told = np.asarray(multihost_utils.process_allgather(np.asarray(bool(signal))))  # no launcher has begun to watch
  return 'a signal' if told.any() else ''


def tell(message: str) -> None:
  """Lets the other processes know that this one ends with an error."""
  if _watch:
    _watch.tell(message)


def verdict() -> None:
  """Called when a collective failed: waits until the watch has found out why, which ends the process."""
  if _watch:
    time.sleep(LOST + 5.0)


def leave() -> None:
  """Called by a process that has nothing more to do and ends at once: process 0, which keeps the store, ends last."""
  if not _watch:
    return
  store = _watch._store
  store.key_value_set(f'lemma/left/{jax.process_index()}', '')
  deadline = time.monotonic() + LOST
  while jax.process_index() == 0 and time.monotonic() < deadline and (
      len(store.key_value_dir_get('lemma/left/')) < jax.process_count()):
    time.sleep(0.1)
  if jax.process_index() == 0:
    time.sleep(1.0)  # what the last of them has still to say


def finish() -> None:
  """Called by all processes at the end of their work: from here on nobody is missed."""
  if _watch:
    multihost_utils.sync_global_devices('finish')
    _watch.over = True
