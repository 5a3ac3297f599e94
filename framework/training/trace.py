"""A profiler's trace of some steps of a run: what each operation takes, for TensorBoard's profile page or Perfetto."""

from collections.abc import Callable, Iterator
import contextlib
import pathlib

from absl import logging
import jax

from framework.config import ConfigError

FOLDER = 'profile'


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
  """`at(number)`, to be called before each step: it begins the trace, written to folder/profile, and ends it."""
  running = False
  def at(number: int) -> None:
    nonlocal running
    if number in steps and not running:
      jax.profiler.start_trace(str(folder / FOLDER))
      running = True
    elif running and number not in steps:
      jax.profiler.stop_trace()
      running = False
      logging.info('steps %d to %d are traced in %s', steps[0], steps[-1], folder / FOLDER)
  try:
    yield at
  finally:
    at(-1)
