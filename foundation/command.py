"""A program's command line: every subcommand owns its flags, and what the user can mend is one line, no traceback.

  FIT = Command('fit', run_fit, 'fits a law.', 'Example:\\n  python -m scaling fit --runs=runs', (
      Flag('runs', str, '', 'folder of runs'),
      Flag('bootstrap', int, 1000, 'draws', least=1)))

  if __name__ == '__main__':
    sys.exit(run('python -m scaling', 'Scaling laws.', [FIT, ...]))

`run_fit(flags)` gets `flags.runs` and `flags.bootstrap`, and returns an exit code or None. A flag of one subcommand is
refused by all others. absl reads the words: --name=value, --name value, --noname for a bool, --flagfile=PATH.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import os
import sys
import textwrap
import types
from typing import Any

from absl import flags as absl_flags

from foundation.entries import blame
from foundation.errors import ConfigError, nearest, one_line

HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')


@dataclasses.dataclass(frozen=True)
class Flag:
  """What --name may be. A value that is refused is so before the subcommand begins; NaN and infinity always are.

  kind: str, int, float, bool or list (words between commas). default: of that kind, or None. choices: all it may be
  besides the default; (): anything. least, most: bounds, inclusive.
  """
  name: str
  kind: type
  default: Any
  help: str
  choices: tuple[str, ...] = ()
  least: float = -math.inf
  most: float = math.inf

  def parse(self, text: Any) -> Any:
    """The value of a word. Raises ValueError that says what was expected."""
    if self.kind is list:
      return list(text) if isinstance(text, list) else [word.strip() for word in text.split(',') if word.strip()]
    try:
      value = self.kind(text)
    except ValueError:
      value = math.nan
    if self.kind in (int, float):
      if not math.isfinite(value):
        raise ValueError(f'expected a {"whole" if self.kind is int else "finite"} number')
      if not self.least <= value <= self.most:
        bound = f'at least {self.least:g}' if value < self.least else f'at most {self.most:g}'
        raise ValueError(f'expected {bound}')
    if self.choices and value not in (*self.choices, self.default):
      raise ValueError(f'expected one of {", ".join(self.choices)}{nearest(value, self.choices)}')
    return value


@dataclasses.dataclass(frozen=True)
class Command:
  """A subcommand: `function` of a namespace with the values of its flags. about: one line of help; details: the rest,
  with examples. A program without subcommands is one whose name is ''.
  """
  name: str
  function: Callable[[types.SimpleNamespace], int | None]
  about: str
  details: str
  flags: Sequence[Flag] = ()


class _Parser(absl_flags.ArgumentParser):
  """A Flag as absl asks for it."""

  def __init__(self, flag: Flag):
    super().__init__()
    self.parse = flag.parse  # type: ignore[method-assign, assignment]  # it has no other attributes of a parser


def run(program: str, about: str, commands: Sequence[Command], words: Sequence[str] | None = None,
        refusals: tuple[type[Exception], ...] = ()) -> int:
  """Runs the subcommand that the words name, by default those of this process, and returns the exit code.

  That is the subcommand's own (None: 0), or 2 after `error: ...`, one line on stderr, for ConfigError, OSError, the
  `refusals`, errors of the program that also speak to its user, and whatever a file outside the packages raises.
  """
  try:
    code = _run(program, about, commands, list(sys.argv[1:] if words is None else words))
    sys.stdout.flush()
    return code
  except BrokenPipeError:  # the reader of the output left early
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except (ConfigError, OSError, *refusals) as error:  # type: ignore[misc]  # mypy does not unpack here
    print(f'error: {one_line(error)}', file=sys.stderr)
    return 2
  except Exception as error:
    if not (said := blame(error)):
      raise
    print(f'error: {said}', file=sys.stderr)
    return 2


def _run(program: str, about: str, commands: Sequence[Command], words: list[str]) -> int:
  named, name = {command.name: command for command in commands}, ''
  asked = any(word in HELP for word in words)
  if name not in named:
    place = next((i for i, word in enumerate(words) if not word.startswith('-')), len(words))
    name = ''.join(words[place:place + 1])
    if asked and not name:
      print(_overview(program, about, commands), end='')
      return 0
    if name not in named:
      raise ConfigError(f"command is '{name}'; expected one of {', '.join(named)}{nearest(name, named)}; see {program} "
                        '--help')
    del words[place]
  if asked:
    print(_usage(program, named[name]), end='')
    return 0
  return named[name].function(_values(program, named[name], commands, words)) or 0


def _values(program: str, command: Command, commands: Sequence[Command], words: list[str]) -> types.SimpleNamespace:
  title, values = f'{program} {command.name}'.strip(), absl_flags.FlagValues()
  for flag in command.flags:
    if flag.kind is bool:
      absl_flags.DEFINE_bool(flag.name, flag.default, flag.help, values)
    else:
      absl_flags.DEFINE(_Parser(flag), flag.name, flag.default, flag.help, values)
  try:
    rest = values([title, *words])
  except absl_flags.UnrecognizedFlagError as error:
    owners = [c.name for c in commands if error.flagname in [flag.name for flag in c.flags]]
    elsewhere = f', only of {", ".join(owners)}' if owners else ''
    hint = nearest(f'--{error.flagname}', [f'--{flag.name}' for flag in command.flags], cutoff=0.0)
    raise ConfigError(f"--{error.flagname} is not a flag of '{title}'{elsewhere}{hint}") from None
  except (absl_flags.Error, ValueError) as error:
    raise ConfigError(one_line(error)) from None
  if len(rest) > 1:
    raise ConfigError(f"'{rest[1]}' is not a flag; flags are written --name=value")
  return types.SimpleNamespace(**{flag.name: values[flag.name].value for flag in command.flags})


def _overview(program: str, about: str, commands: Sequence[Command]) -> str:
  width = max(len(command.name) for command in commands)
  lines = [f'  {command.name:{width}}  {command.about}' for command in commands]
  return '\n'.join([about.strip(), '', 'Commands:', *lines, '',
                    f'`{program} COMMAND --help` shows the flags and examples of one.', ''])


def _usage(program: str, command: Command) -> str:
  lines = []
  for flag in command.flags:
    choices = f': {" | ".join(flag.choices)}' if flag.choices else ''
    shown = ','.join(flag.default) if isinstance(flag.default, list) else flag.default
    default = f' (default {shown})' if shown not in ('', None, 0, False) else ''
    lines += textwrap.wrap(f'  --{flag.name}: {flag.help}{choices}{default}', 120, subsequent_indent=' ' * 6)
  head = f'{program} {command.name}'.strip() + f': {command.about}'
  return '\n'.join([head, '', command.details.strip(), '', *(['Flags:', *lines, ''] if lines else [])])
