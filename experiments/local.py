"""Several processes of one run on this machine, as they would be on several hosts.

Example:
  python -m experiments.local --processes=2 train --config=experiments/configs/bytes_small.py --workdir=runs/two

What follows the command's name is its own. The words of process 0 are shown as they are, those of the others with their
number before them. The first that fails is named; Ctrl-C stops all of them at one step.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import flags

from experiments.shared import launch
from experiments.shared.process import PROCESSES
from foundation.errors import ConfigError, nearest

flags.declare_key_flag('processes')
COMMANDS = ('train', 'evaluate')
GRACE = 60.0  # seconds that the others have to end by themselves, once one has failed


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(command: str, words: list[str], address: str, count: int, number: int) -> subprocess.Popen:
  where = [f'--coordinator={address}', f'--processes={count}', f'--process={number}']
  return subprocess.Popen([sys.executable, '-m', f'experiments.{command}', *words, *where],
                          stderr=subprocess.PIPE if number else None, stdout=subprocess.DEVNULL if number else None)


def pass_on(running: subprocess.Popen, number: int) -> None:
  """Shows the lines of a process with its number."""
  for line in running.stderr or ():
    sys.stderr.write(f'[{number}] {line.decode(errors="replace")}')


def tell(running: list[subprocess.Popen], number: int) -> None:
  """Passes a signal on to those that still run."""
  for p in running:
    if p.poll() is None:
      p.send_signal(number)


def named(code: int) -> str:
  number = -code if code < 0 else code - 128
  known = number in [s.value for s in signal.Signals]
  return f'exit code {code}' + (f' ({signal.Signals(number).name})' if known else '')


def wait(running: list[subprocess.Popen]) -> int:
  """The exit code of the first that failed, which is named; 0 if all came to their end."""
  first, deadline = 0, float('inf')
  while any(p.poll() is None for p in running):
    for number, p in enumerate(running):
      if p.poll() and not first:
        first, deadline = p.poll() or 1, time.monotonic() + GRACE
        sys.stderr.write(f'process {number} ended first, with {named(first)}\n')
    if time.monotonic() > deadline:
      for p in running:
        p.kill()
    time.sleep(0.1)
  failed = [(number, p.returncode) for number, p in enumerate(running) if p.returncode]
  if failed and not first:
    first = failed[0][1]
    sys.stderr.write(f'process {failed[0][0]} ended with {named(first)}\n')
  return 128 - first if first < 0 else first


def main() -> int:
  if not REST:
    raise ConfigError(f"expected the name of a command, {' or '.join(COMMANDS)}, after --processes")
  command, words = REST[0], REST[1:]
  if command not in COMMANDS:
    raise ConfigError(f"command is '{command}'; expected {' or '.join(COMMANDS)}{nearest(command, COMMANDS)}")
  count, address = PROCESSES.value or 2, f'127.0.0.1:{free_port()}'
  running = [start(command, words, address, count, number) for number in range(count)]
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: tell(running, number))
  threads = [threading.Thread(target=pass_on, args=(p, number)) for number, p in enumerate(running) if number]
  for thread in threads:
    thread.start()
  code = wait(running)
  for thread in threads:
    thread.join()
  sys.stderr.flush()
  os._exit(code)


def split(words: list[str]) -> int:
  """Where the command stands: behind the flags of this one."""
  return next((i for i, word in enumerate(words) if i and not word.startswith('-')), len(words))


if __name__ == '__main__':
  REST = sys.argv[split(sys.argv):]
  sys.argv = sys.argv[:split(sys.argv)]
  launch.run(main)
