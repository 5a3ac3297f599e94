"""Runs launchers in forked children of one process, which has paid for the imports once.

Reads one JSON object a line from stdin: {'module', 'argv', 'env', 'full', 'timeout'}; answers with one line on stdout:
{'code', 'out', 'err', 'seconds', 'touched'}. `env` is laid over the server's own; null unsets. `full` is
['module:Class.method', bytes, call] or ['', bytes, 0]: from that call of the function on (0 is the first), or from the
start, no regular file can grow beyond so many bytes, in Python and in C++, as on a full disk. `fault` is
['kill', 'fail' or 'full', number, folder], see `break_writing`. `touched` says whether JAX made a backend and how often it compiled, so
that a test can tell that a refusal came early.
"""

import errno
import functools
import importlib
import itertools
import json
import logging
import os
import resource
import runpy
import select
import signal
import sys
import time

# The heavy imports of all launchers; none of them may start a JAX backend, which would not survive a fork.
import grain  # noqa: F401
import jax
from jax._src import xla_bridge
import ml_collections.config_flags  # noqa: F401

import framework.data.corpus  # noqa: F401
import framework.generation  # noqa: F401
import framework.models  # noqa: F401
import framework.training.loop  # noqa: F401
import framework.training.optimizers.muon  # noqa: F401
from foundation import entries

for name in entries.names(framework.models, 'build'):
  importlib.import_module(f'framework.models.{name}')


def limit_files(size: int) -> None:
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill_disk(where: str, size: int, call: int) -> None:
  if not where:
    return limit_files(size)
  module, _, names = where.partition(':')
  owner = importlib.import_module(module)
  *path, last = names.split('.')
  for name in path:
    owner = getattr(owner, name)
  original, calls = getattr(owner, last), itertools.count()

  @functools.wraps(original)
  def limited(*args, **kwargs):
    if next(calls) == call:
      if last == 'save':
        args[0].wait()  # the checkpoint before it, which is still being written, had room
      limit_files(size)
    return original(*args, **kwargs)
  setattr(owner, last, limited)


WRITES = ('os.rename', 'os.link', 'os.symlink', 'os.truncate', 'os.mkdir', 'os.remove', 'os.rmdir')
events = []


def break_writing(mode: str, number: int, folder: str) -> None:
  """Lets operation `number` that changes a file below `folder` fail, or end the process, or find a full disk from then
  on; -1: only counts them. Python tells of all of them, whatever module they are in."""
  def hook(event, args):
    if event == 'open':
      changes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
      changes = event in WRITES
    if not changes or not any(str(a).startswith(folder) for a in args if isinstance(a, (str, os.PathLike))):
      return
    events.append(f'{event} {args[0]}')
    if len(events) - 1 == number:
      if mode == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
      elif mode == 'full':
        limit_files(64)
      else:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
  sys.addaudithook(hook)


def child(job: dict, out: int, err: int, report: int) -> None:
  """Becomes `python -m module argv`; never returns."""
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(out, 1)
  os.dup2(err, 2)
  sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)
  sys.stderr = open(2, 'w', encoding='utf-8', errors='backslashreplace', buffering=1, closefd=False)
  for name, value in job.get('env', {}).items():
    if value is None:
      os.environ.pop(name, None)
    else:
      os.environ[name] = value
  if 'JAX_PLATFORMS' in job.get('env', {}):
    jax.config.update('jax_platforms', job['env']['JAX_PLATFORMS'])  # read when jax was imported
  logging.getLogger().handlers.clear()  # put there by an import; a launcher has its own before it imports these
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, _, **kwargs: compiled.append(name) if 'backend_compile' in name else None)
  if job.get('full'):
    fill_disk(*job['full'])
  if job.get('fault'):
    break_writing(*job['fault'])
  def tell():
    os.write(report, json.dumps({'backend': bool(xla_bridge._backends), 'compiled': len(compiled),
                                 'events': events}).encode())
    os.close(report)

  def leave(code, leave=os._exit):
    tell()
    leave(code)
  os._exit = leave
  sys.argv = [job['module'], *job['argv']]
  code = 1
  try:
    runpy.run_module(job['module'], run_name='__main__', alter_sys=True)
    code = 0
  except SystemExit as end:
    if end.code is not None and not isinstance(end.code, int):
      sys.stderr.write(f'{end.code}\n')
    code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
  except BaseException:
    sys.excepthook(*sys.exc_info())
  tell()
  sys.exit(code)  # the ordinary end, with its exit handlers and threads, which may have their own complaints


def serve(job: dict) -> dict:
  pipes = {name: os.pipe() for name in ('out', 'err', 'report')}
  start = time.monotonic()
  pid = os.fork()
  if pid == 0:
    for read, _ in pipes.values():
      os.close(read)
    child(job, *(write for _, write in pipes.values()))
  for _, write in pipes.values():
    os.close(write)
  texts = {read: b'' for read, _ in pipes.values()}
  live = set(texts)
  while live:
    left = start + job.get('timeout', 60) - time.monotonic()
    ready = select.select(list(live), [], [], max(0, left))[0]
    if not ready:
      os.kill(pid, signal.SIGKILL)
      break
    for read in ready:
      block = os.read(read, 1 << 16)
      texts[read] += block
      if not block:
        live.discard(read)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  for read in texts:
    os.close(read)
  out, err, report = (texts[read].decode(errors='replace') for read, _ in pipes.values())
  return {'code': code, 'out': out, 'err': err, 'seconds': time.monotonic() - start,
          'touched': json.loads(report or 'null')}


if __name__ == '__main__':
  assert not xla_bridge._backends, 'an import started JAX'
  replies = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for line in sys.stdin:
    answer = serve(json.loads(line))
    replies.write(json.dumps(answer) + '\n')
    replies.flush()
