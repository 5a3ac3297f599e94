"""The project's commands, started as users start them."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def environment() -> dict[str, str]:
  """Without what conftest.py tells XLA: the devices that there are, and programs that are optimised."""
  return {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}


def launch(name, *arguments, timeout=300):
  """`python -m experiments.name arguments`, to its end."""
  return subprocess.run([sys.executable, '-m', f'experiments.{name}', *map(str, arguments)], cwd=ROOT,
                        env=environment(), capture_output=True, text=True, timeout=timeout)
