"""What every launcher shares: flags with clear errors, devices, and one line instead of a traceback.

Exit codes: 0 done; 1 the machine failed (disk full, say); 2 the request was wrong; 3 the loss or gradient was not
finite; 128 + n stopped by signal n, with a checkpoint.
"""

from collections.abc import Callable
import contextlib
import ctypes
import dataclasses
import errno
import functools
import logging as py_logging
import os
import pathlib
import re
import sys
import threading
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from framework import config as config_lib
from foundation import files

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the disk's fault, not the request's

COORDINATOR = flags.DEFINE_string('coordinator', None, 'address:port of process 0, for a run on several hosts; '
                                  '"auto" asks the cluster (Slurm, TPU pods)')
PROCESSES = flags.DEFINE_integer('processes', None, 'number of processes of the run', lower_bound=1)
PROCESS = flags.DEFINE_integer('process', None, 'index of this process, from 0', lower_bound=0)


def define_config() -> flags.FlagHolder:
  """--config=FILE.py, with --config.section.key=value for every field of the Config that the file returns."""
  return config_flags.DEFINE_config_file('config', help_string='a file of experiments/configs; '
                                         '--config.model.layers=6 and the like change single settings')


def _check_words(argv: list[str]) -> None:
  """Refuses what ml_collections would answer with a traceback: a missing file, an unknown key."""
  known = config_lib.flatten(config_lib.Config())
  sections = [f.name for f in dataclasses.fields(config_lib.Config)]
  for word in argv[1:]:
    name = word.partition('=')[0].lstrip('-')
    if name == 'config' and word.startswith('-'):
      path = _config_path(argv)
      if path is None:
        raise config_lib.ConfigError('--config is missing; see --help for an example')
      if not path.is_file():
        around = [str(p) for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
        raise config_lib.ConfigError(f'config file {path} does not exist{config_lib.nearest(str(path), around)}')
    elif name.startswith(('config.', 'noconfig.')) and word.startswith('-'):
      key = name.split('.', 1)[1]
      if key in sections:
        raise config_lib.ConfigError(f"--config.{key} is a section; give one of its keys, such as --config."
                                     f"{next(k for k in known if k.startswith(key + '.'))}")
      if key not in known:
        raise config_lib.ConfigError(f"config has no key '{key}'{config_lib.nearest(key, known)}")


def _config_path(argv: list[str]) -> pathlib.Path | None:
  """The value of the last --config."""
  path = ''
  for word, following in zip(argv[1:], argv[2:] + ['']):
    if word in ('--config', '-config'):
      path = following
    elif word.startswith(('--config=', '-config=')):
      path = word.partition('=')[2]
  return files.expand('--config', path) if path else None


def _from_config(error: BaseException, path: pathlib.Path) -> str:
  """What the config file itself raised, as one line with its place; '' if it raised nothing."""
  cause = error
  while cause is not None:
    lines = [f.lineno for f in traceback.extract_tb(cause.__traceback__) if os.path.realpath(f.filename) ==
             os.path.realpath(path)]
    if lines or isinstance(cause, SyntaxError) or not isinstance(error, (flags.Error, SystemExit)):
      words = re.findall(r"'(\w+)'", str(cause)) if isinstance(cause, (TypeError, AttributeError)) else []
      fields = [key.split('.')[1] for key in config_lib.flatten(config_lib.Config())]
      hint = config_lib.nearest(words[-1], fields) if words else ''
      kind = '' if isinstance(cause, config_lib.ConfigError) else f'{type(cause).__name__}: '
      return f"config file {path}{f':{lines[-1]}' if lines else ''}: {kind}{_one_line(cause)}{hint}"
    cause = cause.__context__
  return ''


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def _fail(message: str, code: int) -> NoReturn:
  logging.flush()
  sys.stderr.write(f'error: {message}\n')
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(code)  # threads that still wait, for a disk or another host, neither hold the process nor add a line


def _plain_log() -> None:
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
      logging.debug('%s', _one_line(error[1]))
  sys.excepthook = hook
  threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
  sys.unraisablehook = lambda args: logging.debug('%s', _one_line(args.exc_value))
  handler.setFormatter(py_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  logging.set_verbosity(logging.INFO)


def _parse(most: int, argv: list[str]) -> list[str]:
  try:
    _check_words(argv)
  except config_lib.ConfigError as error:
    _fail(_one_line(error), 2)
  py_logging.disable(py_logging.WARNING)  # ml_collections' own, before the log has its form
  try:
    rest = flags.FLAGS(argv)
  except (Exception, SystemExit) as error:  # a config file may fail in any way; --help exits
    path = _config_path(argv)
    message = _from_config(error, path) if path else ''
    if isinstance(error, SystemExit) and not message:
      raise
    _fail(message or _one_line(error), 2)
  finally:
    py_logging.disable(py_logging.NOTSET)
  if flags.FLAGS.help or flags.FLAGS.helpshort or flags.FLAGS.helpfull:
    return rest
  if len(rest) > 1 + most:
    _fail(f"unexpected argument '{rest[1 + most]}'; every setting is a --flag=value", 2)
  for name in flags.FLAGS:
    # absl's bounds let NaN pass; the config has its own.
    if '.' not in name and flags.FLAGS[name].value != flags.FLAGS[name].value:
      _fail(f'flag --{name}=nan: expected a number', 2)
  return rest


def run(main: Callable[..., int | None], words: int = 0) -> None:
  """Parses the flags and runs `main`; mistakes of the user end in one line on stderr.

  Args:
    words: most arguments without a flag, which `main` is called with.
  """

  def guarded(argv):
    _plain_log()
    # Imported here so that --help needs no JAX.
    from framework.training import loop
    try:
      code = main(*argv[1:])
    except config_lib.ConfigError as error:
      # Some say of a full disk what was being written; that is still the machine's failure.
      _fail(_one_line(error), 1 if getattr(error.__context__, 'errno', None) in FULL else 2)
    except loop.NonFinite as error:
      _fail(_one_line(error), 3)
    except KeyboardInterrupt:
      _fail('interrupted before training began; nothing was changed', 130)
    except OSError as error:
      _fail(f'{error.strerror or _one_line(error)}{f": {error.filename}" if error.filename else ""}', 1)
    except RuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      _fail(f'out of memory: {_one_line(error)[:300]}; a smaller training.batch, more training.accumulation or '
            'model.remat=full needs less', 1)
    sys.exit(code or 0)

  app.run(guarded, flags_parser=functools.partial(_parse, words))


def required(flag: flags.FlagHolder) -> str:
  """The flag's value. Raises ConfigError if it was not given."""
  if not flag.value:
    raise config_lib.ConfigError(f'--{flag.name} is missing; see --help for an example')
  return flag.value


def workdir_path(text: str) -> pathlib.Path:
  """An absolute path (orbax needs one)."""
  try:
    return files.expand('--workdir', text).resolve()
  except RuntimeError as error:  # a loop of links
    raise config_lib.ConfigError(f"--workdir is '{text}': {_one_line(error)}") from None


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


def start_jax(config: config_lib.Config) -> None:
  """Chooses CPU devices and the compilation cache, and joins the other hosts. Nothing may have used JAX before.

  On a CPU, XLA spreads one program over cores badly at research sizes: one simulated device a core, each with one
  thread, is faster. training.devices or an XLA_FLAGS of the user's own overrules that.
  """
  _check_hosts()
  _keep_freed_memory()
  t = config.training
  own = os.environ.get('XLA_FLAGS', '')
  if 'xla_force_host_platform_device_count' not in own:
    parts = t.batch // t.accumulation // (PROCESSES.value or 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    # A device count that does not divide the batch would be refused: take the largest that does.
    count = t.devices or max((n for n in range(1, cores + 1) if parts % n == 0), default=1)
    own += f' --xla_force_host_platform_device_count={count}'
    if count > 1 and 'xla_cpu_multi_thread_eigen' not in own:
      own += ' --xla_cpu_multi_thread_eigen=false'
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
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value, initialization_timeout=300)
    except (RuntimeError, ValueError) as error:
      raise config_lib.ConfigError(f'cannot join the other hosts: {_one_line(error)}') from error
  try:
    jax.devices()
  except RuntimeError as error:
    raise config_lib.ConfigError(f"JAX_PLATFORMS is '{jax.config.jax_platforms or ''}', which gives no device "
                                 f'({_one_line(error)[:200]}); nearest is cpu') from error
