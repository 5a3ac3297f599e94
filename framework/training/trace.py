"""A profiler's trace of some steps of a run: what each operation takes, for TensorBoard's profile page or Perfetto.

Steps are named before the run starts, or asked for while it runs: `kill -PROF` of its process traces the next few.
"""

from collections.abc import Callable, Iterator
import contextlib
import pathlib
import signal
import threading

from absl import logging
import jax

from framework.config import ConfigError

FOLDER = 'profile'
NEXT = 5  # steps that a signal asks for


def steps_of(text: str) -> range:
  """The steps of '20:25', which are 20 to 25; none of ''. Raises ConfigError."""
  if not text:
    return range(0)
  first, colon, last = text.partition(':')
  if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
    raise ConfigError(f"--profile is '{text}'; expected the first and the last step, as 20:25")
  return range(int(first), int(last) + 1)


@contextlib.contextmanager
def of(folder: pathlib.Path, steps: range) -> Iterator[Callable[[int], None]]:
  """`at(number)`, to be called before each step: it begins a trace, written to folder/profile, and ends it.

  Args:
    steps: that are traced; after SIGPROF, which every process of a run hears for itself, the next NEXT are too.
  """
  asked, running = False, range(0)
  def hear(*_) -> None:
    nonlocal asked
    asked = True
  def at(number: int) -> None:
    nonlocal asked, running
    if running and number not in running:
      jax.profiler.stop_trace()
      logging.info('steps %d to %d are traced in %s', running[0], running[-1], folder / FOLDER)
      running = range(0)
    if not running and number >= 0 and (asked or number in steps):
      running = range(number, number + NEXT) if asked else steps
      asked = False
      jax.profiler.start_trace(str(folder / FOLDER))
  with _on_signal(hear):
    try:
      yield at
    finally:
      at(-1)


@contextlib.contextmanager
def _on_signal(hear: Callable) -> Iterator[None]:
  if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'SIGPROF'):
    yield  # only the main thread can be told of signals
    return
  before = signal.signal(signal.SIGPROF, hear)
  try:
    yield
  finally:
    signal.signal(signal.SIGPROF, before)
