"""Runs a list of commands one after another, each once: a walk that can be killed anywhere and goes on where it was.

What is done is kept in steps.json of the walk's folder, by the very words of the command, so that a changed command is
run again. A command that was interrupted is started anew and has to resume by itself.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from foundation import files, reading
from framework import config as config_lib
from framework.training import clock


@dataclasses.dataclass(frozen=True)
class Step:
  """What it is for, the words after `python -m`, and the seconds that it took where it was planned.

  What the command prints is kept in the file `output` as well, if one is named; it is there in full or not at all.
  """
  title: str
  words: tuple[str, ...]
  seconds: float
  output: pathlib.Path | None = None

  @property
  def command(self) -> str:
    return ' '.join(self.words)


class Failed(Exception):
  """A command ended with another exit code than 0."""

  def __init__(self, step: Step, code: int):
    super().__init__(f"'python -m {step.command}' ended with exit code {code}")
    self.code = code


def read_done(path: pathlib.Path) -> dict[str, float]:
  """Seconds by command, of those that ended well. Raises ConfigError on a damaged file."""
  try:
    return reading.value(path, {str: float})
  except FileNotFoundError:
    return {}
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{path} is damaged ({error}); expected seconds by command, nearest is the walk '
                                 'without that file') from error


def remaining(steps: Sequence[Step], done: dict[str, float]) -> float:
  """Seconds that the open steps will take: as planned, times how much slower the done ones were than planned."""
  past = [(done[step.command], step.seconds) for step in steps if step.command in done]
  pace = sum(p for p, _ in past) / sum(q for _, q in past) if past else 1.0
  return pace * sum(step.seconds for step in steps if step.command not in done)


def walk(folder: pathlib.Path, steps: Sequence[Step], say: Callable[[str], None]) -> None:
  """Runs the steps that are not done yet, in order. SIGINT and SIGTERM reach the running command first.

  Raises:
    Failed: a command did not end well; those before it stay done.
    ConfigError: the folder cannot be used.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'steps.json'
  with files.own(folder / '.lock') as lock:
    # Another may be a walk that runs, or the last command of one that was killed.
    files.hold(lock, waiting=lambda: say(f'another run in {folder} has not ended; waiting for it'))
    done = read_done(path)
    for number, step in enumerate(steps, 1):
      if step.command in done:
        continue
      say(f'{number} of {len(steps)}: {step.title}; about {clock.duration(remaining(steps, done))} left in all')
      start = time.monotonic()
      code = _run(step, lock)
      if code:
        raise Failed(step, code)
      done[step.command] = round(time.monotonic() - start, 2)
      files.write_json(path, done)


def _run(step: Step, lock) -> int:
  """The exit code of the command, which inherits the lock and so holds it even if we are killed."""
  process = subprocess.Popen([sys.executable, '-m', *step.words], pass_fds=[lock.fileno()], text=True,
                             stdout=subprocess.PIPE if step.output else None)
  forward = lambda number, _: process.send_signal(number)
  # A terminal sends SIGINT to the command as well; two of them would end it without its checkpoint.
  before = {signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN if sys.stdin.isatty() else forward)}
  try:
    printed = []
    output: Any = process.stdout
    while step.output and (text := output.read(1)):  # letter by letter: some write slowly, to be watched
      printed.append(text)
      sys.stdout.write(text)
      sys.stdout.flush()
    code = process.wait()
    if step.output and code == 0:
      step.output.parent.mkdir(parents=True, exist_ok=True)
      files.write_atomically(step.output, ''.join(printed))
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return 128 - code if code < 0 else code
