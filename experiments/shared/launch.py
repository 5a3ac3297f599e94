"""What every launcher shares: flags with clear errors, devices, and one line instead of a traceback.

Exit codes: 0 done; 1 the machine failed (disk full, say); 2 the request was wrong; 3 the loss or gradient was not
finite; 128 + n stopped by signal n, with a checkpoint.
"""

from collections.abc import Callable
import contextlib
import errno
import functools
import logging as py_logging
import os
import pathlib
import re
import sys
import traceback

from absl import app, flags
from ml_collections import config_flags

from experiments.shared import process
from experiments.shared.process import start_jax
from foundation import entries, files
from foundation.errors import one_line
from framework import config as config_lib

LOST = re.compile(r'Gloo|NCCL|UNAVAILABLE|Connection (reset|closed)|coordination service', re.I)  # of a collective
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the disk's fault, not the request's


def define_config() -> flags.FlagHolder:
  """--config=FILE.py, with --config.section.key=value for every field of the Config that the file returns."""
  return config_flags.DEFINE_config_file('config', help_string='a file of experiments/configs; '
                                         '--config.model.layers=6 and the like change single settings')


def _check_words(argv: list[str]) -> None:
  """Refuses what ml_collections would answer with a traceback: a missing file, an unknown key."""
  known = config_lib.flatten(config_lib.Config())
  sections = config_lib.sections(config_lib.Config())
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


def shipped(text: str) -> str:
  """The path of a file of these packages, as experiments/configs/quickstart.py, wherever a command is started: they may
  have been installed; any other path as it is, and so is one that is there."""
  own = pathlib.Path(__file__).parents[2] / text
  return str(own) if text.startswith('experiments/') and not os.path.exists(text) and own.is_file() else text


def _shipped_words(argv: list[str]) -> list[str]:
  """The words with the value of --config as `shipped`."""
  words = list(argv)
  for i, word in enumerate(words):
    name, equals, value = word.partition('=')
    if name in ('--config', '-config') and equals:
      words[i] = f'{name}={shipped(value)}'
    elif name in ('--config', '-config') and i + 1 < len(words):
      words[i + 1] = shipped(words[i + 1])
  return words


def _from_config(error: BaseException, path: pathlib.Path) -> str:
  """What the config file itself raised, as one line with its place; '' if it raised nothing."""
  cause: BaseException | None = error
  while cause is not None:
    lines = [f.lineno for f in traceback.extract_tb(cause.__traceback__) if os.path.realpath(f.filename) ==
             os.path.realpath(path)]
    if lines or isinstance(cause, SyntaxError) or not isinstance(error, (flags.Error, SystemExit)):
      words = re.findall(r"'(\w+)'", str(cause)) if isinstance(cause, (TypeError, AttributeError)) else []
      fields = [key.split('.')[1] for key in config_lib.flatten(config_lib.Config())]
      hint = config_lib.nearest(words[-1], fields) if words else ''
      kind = '' if isinstance(cause, config_lib.ConfigError) else f'{type(cause).__name__}: '
      return f"config file {path}{f':{lines[-1]}' if lines else ''}: {kind}{one_line(cause)}{hint}"
    cause = cause.__context__
  return ''


def _parse(most: int, argv: list[str]) -> list[str]:
  argv = _shipped_words(argv)
  try:
    _check_words(argv)
  except config_lib.ConfigError as error:
    process.fail(one_line(error), 2)
  py_logging.disable(py_logging.WARNING)  # ml_collections' own, before the log has its form
  try:
    rest = flags.FLAGS(argv)
  except (Exception, SystemExit) as error:  # a config file may fail in any way; --help exits
    path = _config_path(argv)
    message = _from_config(error, path) if path else ''
    if isinstance(error, SystemExit) and not message:
      sys.exit(0)  # help was asked for and shown, for which absl exits with 1
    process.fail(message or one_line(error), 2)
  finally:
    py_logging.disable(py_logging.NOTSET)
  if flags.FLAGS.help or flags.FLAGS.helpshort or flags.FLAGS.helpfull:
    return rest
  if len(rest) > 1 + most:
    process.fail(f"unexpected argument '{rest[1 + most]}'; every setting is a --flag=value", 2)
  for name in flags.FLAGS:
    # absl's bounds let NaN pass; the config has its own.
    if '.' not in name and flags.FLAGS[name].value != flags.FLAGS[name].value:
      process.fail(f'flag --{name}=nan: expected a number', 2)
  return rest


def _fail_of_fork(error: Exception) -> None:
  """Ends the process with one line if a file of the user's outside the packages raised the error."""
  if said := entries.blame(error):
    process.fail(said, 2)


def run(main: Callable[..., int | None], words: int = 0) -> None:
  """Parses the flags and runs `main`; mistakes of the user end in one line on stderr.

  Args:
    words: most arguments without a flag, which `main` is called with.
  """

  def guarded(argv):
    process.plain_log()
    # Imported here so that --help needs no JAX.
    from framework.training import hosts, meter
    try:
      code = main(*argv[1:])
    except config_lib.ConfigError as error:
      # Some say of a full disk what was being written; that is still the machine's failure.
      process.fail(one_line(error), 1 if getattr(error.__context__, 'errno', None) in FULL else 2)
    except meter.NonFinite as error:
      process.fail(one_line(error), 3)
    except KeyboardInterrupt:
      process.fail('interrupted before training began; nothing was changed', 130)
    except hosts.Disagreement as error:
      process.fail(one_line(error), 1)
    except OSError as error:
      process.fail(f'{error.strerror or one_line(error)}{f": {error.filename}" if error.filename else ""}', 1)
    except (RuntimeError, ValueError) as error:
      if LOST.search(str(error)):
        hosts.verdict()  # which ends the process, if it can say who is gone
        process.fail(f'the other processes cannot be reached ({one_line(error)[:200]}); {hosts.RESUME}', 1)
      if 'RESOURCE_EXHAUSTED' not in str(error):
        _fail_of_fork(error)
        raise
      process.fail(f'out of memory: {one_line(error)[:300]}; a smaller training.batch, more training.accumulation or '
            'model.remat=full needs less', 1)
    except Exception as error:
      _fail_of_fork(error)
      raise
    process.leave(code or 0)

  app.run(guarded, flags_parser=functools.partial(_parse, words))


def given_config(flag: flags.FlagHolder) -> config_lib.Config:
  """The resolved config of --config and its flags. Raises ConfigError if there is none."""
  if not flags.FLAGS[flag.name].present:
    raise config_lib.ConfigError('--config is missing; see --help for an example')
  if not isinstance(flag.value, config_lib.Config):
    raise config_lib.ConfigError(f'get_config() of the config file returned {type(flag.value).__name__}; '
                                 'expected a framework.config.Config')
  return config_lib.resolve(flag.value)


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
    raise config_lib.ConfigError(f"--workdir is '{text}': {one_line(error)}") from None
