"""Shows running and finished runs: loss, progress, time left, status.

Example:
  python -m experiments.watch --runs=runs
  python -m experiments.watch --runs=runs --serve=8000

In a terminal the view is drawn anew every --every seconds until Ctrl-C; into a file or a pipe it is written once.
--serve shows the report of these runs as a page instead, at the address that it prints, 127.0.0.1:PORT/?token=SECRET.
It answers this machine alone, and only who has the whole address, whose token is new each time; nothing is written.
From elsewhere: ssh -L PORT:127.0.0.1:PORT MACHINE, then the same address. A run that cannot be read is named, and the
others are shown.
"""

import sys
import time

from absl import flags

from experiments.shared import launch
from foundation import files
from foundation.errors import ConfigError, one_line

RUNS = flags.DEFINE_list('runs', None, 'folders of runs, or folders of such folders')
EVERY = flags.DEFINE_float('every', 2.0, 'seconds between two looks', lower_bound=0.1)
SERVE = flags.DEFINE_integer('serve', None, 'port of a local page; 0: any that is free', lower_bound=0,
                             upper_bound=65535)


def main() -> int:
  roots = [files.expand('--runs', name).resolve() for name in launch.required(RUNS)]
  from experiments.reports import live as view  # not for --help, which needs no JAX
  text = view.table(roots, time.time())  # refuses what cannot be shown, before a screen is cleared or a port taken
  try:
    if SERVE.value is not None:
      with view.server(roots, SERVE.value) as serving:
        print(f'{serving.url} (Ctrl-C ends it)', flush=True)
        serving.serve_forever()
    while sys.stdout.isatty():
      print(f'\x1b[H\x1b[2J{text}', flush=True)  # to the corner, clear
      time.sleep(EVERY.value)
      try:
        text = view.table(roots, time.time())
      except (ConfigError, OSError) as error:  # a file that is being replaced, say: the next look is better
        text = one_line(error)
  except KeyboardInterrupt:
    return 0
  print(text)
  return 0


if __name__ == '__main__':
  launch.run(main)
