"""The threads of an interpreted Mosaic GPU kernel wait for each other, so that the CPU client needs many of its own."""

import importlib.metadata
import os

if tuple(map(int, importlib.metadata.version('jax').split('.')[:2])) >= (0, 11):
  os.environ.setdefault('NPROC', '16')  # read when the client starts
