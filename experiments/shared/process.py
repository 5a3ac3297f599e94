"""What acts on the whole process: the log, exception hooks, memory, JAX's devices and cache, and the other hosts."""

import contextlib
import ctypes
import logging as py_logging
import math
import os
import pathlib
import sys
import threading
from typing import Any, NoReturn

from absl import flags, logging

from experiments.shared import guard
from foundation.errors import one_line
from framework import config as config_lib

COORDINATOR = flags.DEFINE_string('coordinator', None, 'address:port of process 0, for a run on several hosts; '
                                  '"auto" asks the cluster (Slurm, Open MPI, Kubernetes, TPU pods)')
PROCESSES = flags.DEFINE_integer('processes', None, 'number of processes of the run', lower_bound=1)
PROCESS = flags.DEFINE_integer('process', None, 'index of this process, from 0', lower_bound=0)
JOIN_TIMEOUT = flags.DEFINE_integer('join_timeout', 300, 'seconds that a process waits for the others to come',
                                    lower_bound=1, upper_bound=10**6)
STALL_TIMEOUT = flags.DEFINE_integer('stall_timeout', 3600, 'seconds without a step after which a run on several hosts '
                                     'is ended; 0: never', lower_bound=0, upper_bound=10**6)
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'  # which also has XLA tune nothing


def fail(message: str, code: int) -> NoReturn:
  if 'framework.training.hosts' in sys.modules:
    sys.modules['framework.training.hosts'].tell(message)
  logging.flush()
  sys.stderr.write(f'error: {message}\n')
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(code)  # threads that still wait, for a disk or another host, neither hold the process nor add a line


def leave(code: int) -> NoReturn:
  """Ends the process as usual, but not waiting for threads of a save that was given up, nor for the runtime of several
  hosts, whose own end aborts whoever comes last."""
  checkpoint = sys.modules.get('framework.training.checkpoint')
  if not COORDINATOR.value and (checkpoint is None or not checkpoint.given_up):
    sys.exit(code)
  logging.flush()
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  if 'framework.training.hosts' in sys.modules:
    sys.modules['framework.training.hosts'].leave()
  os._exit(code)


def plain_log() -> None:
  """Our own lines with the time; of the libraries', which share absl's log, only errors, each cut to one line.

  What fails in a thread of a library is raised in ours as well, so its traceback and those of its fellows are dropped.
  """
  root = str(pathlib.Path(__file__).parents[2]) + os.sep
  ours = tuple(root + name for name in ('experiments', 'foundation', 'framework', 'pallas_kernels', 'rasp', 'scaling'))
  handler = logging.get_absl_handler()
  def keep(record: py_logging.LogRecord) -> bool:
    if record.pathname.startswith(ours):
      return True
    record.msg, record.args = ' '.join(record.getMessage().split())[:200], ()
    return record.levelno >= py_logging.ERROR and not record.exc_info
  handler.addFilter(keep)

  main_thread = sys.excepthook
  def hook(*error) -> None:
    if threading.current_thread() is threading.main_thread():
      main_thread(*error)
    else:
      logging.debug('%s', one_line(error[1]))
  sys.excepthook = hook
  threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
  unraisable: Any = lambda args: logging.debug('%s', one_line(args.exc_value))
  sys.unraisablehook = unraisable
  handler.setFormatter(py_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  logging.set_verbosity(logging.INFO)


def _check_hosts() -> None:
  """Refuses what would make a process wait for minutes, or train alone."""
  address, processes, process = COORDINATOR.value, PROCESSES.value, PROCESS.value
  if address in (None, '', 'auto'):
    for flag in (PROCESSES, PROCESS):
      if flag.value is not None:
        raise config_lib.ConfigError(f'--{flag.name} needs --coordinator=address:port'
                                     + (', not auto, which asks the cluster' if address else ''))
    return
  if processes is None or process is None:
    raise config_lib.ConfigError('--coordinator needs --processes and --process')
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise config_lib.ConfigError(f"--coordinator is '{address}'; expected address:port or auto, nearest is "
                                 f"'{host or port or 'localhost'}:8476'")
  if process >= processes:
    raise config_lib.ConfigError(f'--process is {process}; expected 0 to {processes - 1}, one less than --processes')


def _keep_freed_memory() -> None:
  """Has glibc keep what is freed, unless the user has settings of their own for it (MALLOC_...).

  XLA on a CPU asks for a program's temporaries anew at every step. Beyond 32 MB they would be given back to the system
  each time, and their pages cost a sixth of a step when they come again.
  """
  if any(name.startswith('MALLOC_') for name in os.environ):
    return
  with contextlib.suppress(OSError, AttributeError):  # another C library
    mallopt = ctypes.CDLL('libc.so.6').mallopt
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
      mallopt(option, 2**31 - 1)


def _keep_stdout() -> None:
  """Leaves stdout to what Python prints: of several hosts Gloo says there that it is connected, which is no result."""
  sys.stdout.flush()
  sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
  os.dup2(2, 1)


def simulated_devices(t: config_lib.Training, processes: int) -> int:
  """The devices that a CPU is divided into for each process: as many as the mesh has, else one a core."""
  from framework import sharding
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  named = sharding.named(t.mesh)
  product, parts = math.prod(size for size in named.values() if size > 0), t.batch // t.accumulation // processes
  own = max(1, min(product // processes, 4096))
  if named and -1 not in named.values():
    return own
  # A device count that does not divide the batch would be refused: take the largest that does.
  divisors = [n for n in range(1, cores + 1) if parts % n == 0 and n * processes % product == 0]
  return max(divisors, default=own)


def start_jax(config: config_lib.Config, devices: int | None = None) -> None:
  """Chooses CPU devices and the compilation cache, and joins the other hosts. Nothing may have used JAX before.

  On a CPU, XLA spreads one program over cores badly at research sizes: one simulated device a core, each with one
  thread, is faster. training.devices, `devices` in its place or an XLA_FLAGS of the user's own overrules that.
  """
  _check_hosts()
  if COORDINATOR.value not in (None, '', 'auto'):
    guard.guard(COORDINATOR.value, PROCESSES.value or 1, PROCESS.value or 0, JOIN_TIMEOUT.value)
  if COORDINATOR.value:
    _keep_stdout()
  _keep_freed_memory()
  t = config.training
  own = os.environ.get('XLA_FLAGS', '')
  if 'xla_force_host_platform_device_count' not in own:
    count = (t.devices if devices is None else devices) or simulated_devices(t, PROCESSES.value or 1)
    own += f' --xla_force_host_platform_device_count={count}'
    if count > 1 and 'xla_cpu_multi_thread_eigen' not in own:
      own += ' --xla_cpu_multi_thread_eigen=false'
  if t.deterministic:
    own += f' {DETERMINISTIC}'
    os.environ.setdefault('NCCL_ALGO', 'Ring')  # sums in one order on every start
    logging.info('deterministic: XLA_FLAGS %s, NCCL_ALGO %s', DETERMINISTIC, os.environ['NCCL_ALGO'])
  os.environ['XLA_FLAGS'] = own.strip()
  import jax
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(
      pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'lemma' / 'xla')
  jax.config.update('jax_compilation_cache_dir', cache)
  if COORDINATOR.value:
    try:
      if COORDINATOR.value == 'auto':
        logging.info('joining the hosts of the cluster')
        jax.distributed.initialize()
      else:
        logging.info('process %d waits for %d processes at %s', PROCESS.value, PROCESSES.value, COORDINATOR.value)
        # A lost process is then no reason for the runtime to abort the others: framework/training/hosts.py tells them.
        jax.config.update('jax_enable_recoverability', True)
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value,
                                   initialization_timeout=JOIN_TIMEOUT.value,
                                   coordinator_bind_address=COORDINATOR.value)
    except (RuntimeError, ValueError) as error:
      raise config_lib.ConfigError(f'cannot join the other hosts: {one_line(error)}') from error
  try:
    jax.devices()
    if COORDINATOR.value:
      from framework.training import hosts
      hosts.watch(STALL_TIMEOUT.value)
  except RuntimeError as error:
    settings: Any = jax.config  # which makes its attributes itself
    raise config_lib.ConfigError(f"JAX_PLATFORMS is '{settings.jax_platforms or ''}', which gives no device "
                                 f'({one_line(error)[:200]}); nearest is cpu') from error
