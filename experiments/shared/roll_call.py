"""Who has come to a run on several hosts, asked one port above the coordinator's while they gather.

JAX's own service says that not all came, and not which. Where that port is taken or closed nobody is named; nothing else
depends on it.
"""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterable

SAID = 10.0  # seconds after which process 0 says who is waited for, and again after each
PAUSE = 1.0  # seconds from one look of the other processes to the next
SHORT = 2.0  # seconds that an answer may take
LONGEST = 1 << 16  # bytes of an answer


class Roll:
  """The processes that are known to have come. `name` tells them in the words of a message; '' if nothing is known."""

  def __init__(self, processes: int, own: int):
    self.processes, self.came, self.known = processes, {own}, False

  @property
  def missing(self) -> list[int]:
    return [number for number in range(self.processes) if number not in self.came] if self.known else []

  @property
  def name(self) -> str:
    return f"process {listed(self.missing)} of {self.processes}" if self.missing else ''


def listed(numbers: Iterable[int]) -> str:
  """'1, 4 to 7, 9' of 1, 4, 5, 6, 7, 9."""
  runs: list[list[int]] = []
  for number in numbers:
    if runs and number == runs[-1][1] + 1:
      runs[-1][1] = number
    else:
      runs.append([number, number])
  return ', '.join(str(a) if a == b else f'{a}, {b}' if b == a + 1 else f'{a} to {b}' for a, b in runs)


def attend(address: str, processes: int, process: int, timeout: float) -> Roll:
  """Begins the call, in a thread that ends when all have come or after `timeout` seconds."""
  host, _, port = address.rpartition(':')
  roll, until = Roll(processes, process), time.monotonic() + timeout
  keep = _ask if process else _listen
  threading.Thread(target=keep, args=(roll, host.strip('[]'), int(port) + 1, process, until), daemon=True).start()
  return roll


def _listen(roll: Roll, host: str, port: int, _: int, until: float) -> None:
  """Of process 0: writes down who calls, and answers with all that came."""
  with contextlib.suppress(OSError, OverflowError), socket.create_server((host, port), backlog=roll.processes) as server:
    roll.known, said = True, time.monotonic()
    server.settimeout(PAUSE)
    while time.monotonic() < until:
      with contextlib.suppress(OSError, ValueError):
        caller, _ = server.accept()
        with caller:
          caller.settimeout(SHORT)
          number = int(caller.recv(16))
          if 0 < number < roll.processes:
            roll.came.add(number)
          caller.sendall(json.dumps(sorted(roll.came)).encode())
      if roll.missing and time.monotonic() > said + SAID:
        sys.stderr.write(f'waiting for {roll.name}\n')
        said = time.monotonic()


def _ask(roll: Roll, host: str, port: int, process: int, until: float) -> None:
  """Of the others: says that this one is here, and keeps the newest answer."""
  while time.monotonic() < until and not (roll.known and not roll.missing):
    with contextlib.suppress(OSError, ValueError, OverflowError):
      with socket.create_connection((host, port), timeout=SHORT) as caller:
        caller.sendall(str(process).encode())
        answer = b''
        while len(answer) < LONGEST and (part := caller.recv(4096)):
          answer += part
        roll.came, roll.known = {process} | {int(number) for number in json.loads(answer)}, True
    time.sleep(PAUSE)
