"""What every launcher shares: flags with clear errors, devices, and one line instead of a traceback.

Exit codes: 0 done; 1 the machine failed (disk full, say); 2 the request was wrong; 3 the loss or gradient was not
finite; 128 + n stopped by signal n, with a checkpoint.
"""

from collections.abc import Callable
import dataclasses
import logging as py_logging
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from framework import config as config_lib

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
  for i, word in enumerate(argv[1:], 1):
    name, _, value = word.partition('=')
    name = name.lstrip('-')
    if name == 'config' and word.startswith('-'):
      path = pathlib.Path(value or (argv + [''])[i + 1]).expanduser()
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


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def _fail(message: str, code: int) -> None:
  logging.flush()
  sys.stderr.write(f'error: {message}\n')
  sys.stderr.flush()
  sys.exit(code)


def _plain_log() -> None:
  """Our own lines with the time; of the libraries', which share absl's log, only warnings."""
  root = str(pathlib.Path(__file__).parents[1]) + os.sep
  ours = tuple(root + name for name in ('experiments', 'framework', 'pallas_kernels', 'rasp', 'scaling'))
  handler = logging.get_absl_handler()
  handler.addFilter(lambda record: record.levelno >= py_logging.WARNING or record.pathname.startswith(ours))
  handler.setFormatter(py_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  logging.set_verbosity(logging.INFO)


def _parse(argv: list[str]) -> list[str]:
  try:
    _check_words(argv)
    rest = flags.FLAGS(argv)
  except (config_lib.ConfigError, flags.Error) as error:
    _fail(_one_line(error), 2)
  except Exception as error:  # a config file may fail in any way
    _fail(f'the config cannot be read: {type(error).__name__}: {_one_line(error)}', 2)
  if flags.FLAGS.help or flags.FLAGS.helpshort or flags.FLAGS.helpfull:
    return rest
  if len(rest) > 1:
    _fail(f"unexpected argument '{rest[1]}'; every setting is a --flag=value", 2)
  return rest


def run(main: Callable[[], int | None]) -> None:
  """Parses the flags and runs `main`; mistakes of the user end in one line on stderr."""

  def guarded(_):
    _plain_log()
    # Imported here so that --help needs no JAX.
    from framework.training import loop
    try:
      code = main()
    except config_lib.ConfigError as error:
      _fail(_one_line(error), 2)
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

  app.run(guarded, flags_parser=_parse)


def required(flag: flags.FlagHolder) -> str:
  """The flag's value. Raises ConfigError if it was not given."""
  if not flag.value:
    raise config_lib.ConfigError(f'--{flag.name} is missing; see --help for an example')
  return flag.value


def workdir_path(text: str) -> pathlib.Path:
  """An absolute path (orbax needs one)."""
  return pathlib.Path(text).expanduser().resolve()


def start_jax(config: config_lib.Config) -> None:
  """Chooses CPU devices and the compilation cache, and joins the other hosts. Nothing may have used JAX before.

  On a CPU, XLA spreads one program over cores badly at research sizes: one simulated device a core, each with one
  thread, is faster. training.devices or an XLA_FLAGS of the user's own overrules that.
  """
  t = config.training
  own = os.environ.get('XLA_FLAGS', '')
  if 'xla_force_host_platform_device_count' not in own:
    parts = t.batch // t.accumulation
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    # A device count that does not divide the batch would be refused: take the largest that does.
    count = t.devices or max(n for n in range(1, cores + 1) if parts % n == 0)
    own += f' --xla_force_host_platform_device_count={count}'
    if count > 1 and 'xla_cpu_multi_thread_eigen' not in own:
      own += ' --xla_cpu_multi_thread_eigen=false'
  os.environ['XLA_FLAGS'] = own.strip()
  import jax
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(
      pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'lemma' / 'xla')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  if COORDINATOR.value:
    try:
      if COORDINATOR.value == 'auto':
        logging.info('joining the hosts of the cluster')
        jax.distributed.initialize()
      else:
        if PROCESSES.value is None or PROCESS.value is None:
          raise config_lib.ConfigError('--coordinator needs --processes and --process')
        logging.info('process %d waits for %d processes at %s', PROCESS.value, PROCESSES.value, COORDINATOR.value)
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value, initialization_timeout=300)
    except RuntimeError as error:
      raise config_lib.ConfigError(f'cannot join the other hosts: {_one_line(error)}') from error
