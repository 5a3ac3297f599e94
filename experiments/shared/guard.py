"""A parent for each process of a run on several hosts, which turns the runtime's abort into one line.

JAX's distributed runtime ends a process by abort() and a stack of C++, which no Python code can catch, when process 0
is gone, when a process never comes, or when two have one index.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
from typing import NoReturn

from experiments.shared import roll_call

_FROM_C = re.compile(rb'^[IWEF]\d{4} [\d:.]+ +\d+ \S+\.(cc|h):\d+\]|^\[Gloo\]|^Fatal Python error: Aborted')
_OURS = re.compile(rb'^\d\d:\d\d:\d\d |^error: |^Traceback ')
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of sys/prctl.h


def guard(address: str, processes: int, process: int, timeout: int) -> None:
  """Forks. The child returns, to do the work; the parent passes its words and signals on, and ends as it ends."""
  from framework.training.signals import SIGNALS  # which imports JAX: not where only help is asked for
  read, write = os.pipe()
  sys.stderr.flush()
  pid = os.fork()
  if pid == 0:
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux: the child outlives a killed parent
      ctypes.CDLL('libc.so.6').prctl(_DEATH_SIGNAL, signal.SIGKILL)
    os.close(read)
    os.dup2(write, 2)
    os.close(write)
    return
  os.close(write)
  for number in (*SIGNALS, signal.SIGPROF):  # the last asks for a trace
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, lambda number, _: os.kill(pid, number))
  roll = roll_call.attend(address, processes, process, timeout)
  dropped = _pass_on(read)
  status = os.waitpid(pid, 0)[1]
  _end(os.waitstatus_to_exitcode(status), dropped, address, roll, process, timeout)


def _pass_on(read: int) -> str:
  """Writes the lines of the child to stderr, but not those of C++, with what hangs below them, which are returned."""
  dropped, foreign = [], False
  with open(read, 'rb') as lines:
    for line in lines:
      foreign = bool(_FROM_C.match(line)) or foreign and not _OURS.match(line)
      if foreign:
        dropped.append(line.decode(errors='replace'))
      else:
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
  return ' '.join(dropped)


def _end(code: int, dropped: str, address: str, roll: roll_call.Roll, process: int, timeout: int) -> NoReturn:
  from framework.training.hosts import RESUME
  if code == -signal.SIGABRT:
    if 'RegisterTask' in dropped or 'Barrier' in dropped and 'timed out' in dropped:
      what = f'{roll.name} did not come to {address} within {timeout} s' if roll.name else (
          f'not all of the {roll.processes} processes came to {address} within {timeout} s, or two were given one --process')
    elif 'already' in dropped.lower() or 'incarnation' in dropped:
      what = f'another process {process} has come to {address}: each --process is given once'
    else:
      what = f'process 0 at {address} is gone'
    sys.stderr.write(f'error: process {process}: {what}; {RESUME}\n')
    sys.stderr.flush()
    os._exit(1)
  if code == -signal.SIGKILL:
    sys.stderr.write(f'error: process {process} was killed by SIGKILL; {RESUME}\n')
    sys.stderr.flush()
  os._exit(128 - code if code < 0 else code)
