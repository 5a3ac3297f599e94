"""Launchers in forked children of one process, see forkserver.py."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


class Server:
  def __init__(self):
    env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'TF_CPP_MIN_LOG_LEVEL')}
    env |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    self.process = subprocess.Popen([sys.executable, str(HERE / 'forkserver.py')], stdin=subprocess.PIPE, env=env,
                                    stdout=subprocess.PIPE, text=True, cwd=ROOT)

  def __call__(self, launcher, *argv, env=None, full=None, fault=None, timeout=240):
    self.process.stdin.write(json.dumps({
        'module': f'experiments.{launcher}', 'argv': list(map(str, argv)), 'env': env or {}, 'full': full,
        'fault': fault, 'timeout': timeout}) + '\n')
    self.process.stdin.flush()
    return json.loads(self.process.stdout.readline())


@pytest.fixture(scope='session')
def server():
  server = Server()
  yield server
  server.process.stdin.close()
  server.process.wait(10)


@pytest.fixture(scope='session')
def quick(server):
  """A server whose launchers compile without LLVM's optimisations, for tests that compile a lot."""
  flags = {'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  return lambda launcher, *argv: server(launcher, *argv, env=flags, timeout=600)


@pytest.fixture(scope='session')
def launch(server):
  """As tests.commands.launch, `python -m experiments.name arguments` to its end, without paying for the imports."""
  def launched(name, *arguments, timeout=300):
    done = server(name, *arguments, timeout=timeout)
    return subprocess.CompletedProcess([name, *arguments], done['code'], done['out'], done['err'])
  return launched
