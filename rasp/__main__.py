"""RASP from the command line: python -m rasp COMMAND [--program=NAME|path.py] [flags].

Commands:
  run      compile a program, run the decoder on --input, print the output sequence as the last line
  compile  compile, verify against the interpreter, print report, circuit and RASP-L's doubts; --out=FOLDER writes it
  draw     its selectors on --input, in the terminal, or --out=FILE.svg or .png with the compiled attention beside them
  list     the library's programs

Example:
  python -m rasp run --program=reverse --input=abcd

A path.py holds functions under @rasp.program; with several, --program=path.py:NAME picks one. The tokens of --input
are its characters; those of a program over numbers are digits.
"""

import importlib.util
import pathlib
import sys

from absl import app, flags, logging

from framework.config import ConfigError, nearest
import rasp
from rasp import draw, export, interpreter, lint, verify
from rasp.library import PROGRAMS

COMMANDS = ('run', 'compile', 'draw', 'list')
PROGRAM = flags.DEFINE_string('program', '', 'a name of `list`, or a file path.py, or path.py:NAME')
INPUT = flags.DEFINE_string('input', '', 'the tokens, one a character; default: the example of the program')
VOCABULARY = flags.DEFINE_string('vocabulary', '', "every token that may occur; default: the program's own")
LONGEST = flags.DEFINE_integer('longest', 0, 'tokens; default: those of the input, at least 16', lower_bound=0)
CAUSAL = flags.DEFINE_bool('causal', None, 'compile to a causal decoder; default: where the program allows it')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'of the arithmetic')
INTERPRET = flags.DEFINE_bool('interpret', False, 'run the interpreter in place of the decoder')
OUT = flags.DEFINE_string('out', '', 'draw: the picture to write; compile: the folder to write')


def find(text: str) -> rasp.Program:
  """A program by its name in the library or by its file. Raises ConfigError."""
  path, _, name = text.partition(':')
  if not path.endswith('.py'):
    if text not in PROGRAMS:
      raise ConfigError(f"--program is '{text}'; expected a file path.py or a name of `python -m rasp list`"
                        f'{nearest(text, PROGRAMS)}')
    return PROGRAMS[text]
  if not pathlib.Path(path).is_file():
    raise ConfigError(f"--program is '{path}', which does not exist; expected a Python file with an @rasp.program")
  spec = importlib.util.spec_from_file_location('rasp_user_program', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except rasp.RaspError:
    raise
  except Exception as error:
    raise ConfigError(f"--program is '{path}', which fails ({type(error).__name__}: {error}); expected a file that "
                      'Python can run') from None
  found = {p.name: p for p in vars(module).values() if isinstance(p, rasp.Program)}
  if name and name not in found or len(found) != 1 and not name:
    raise ConfigError(f"--program is '{text}'; expected path.py:NAME, where NAME is one of {', '.join(found) or 'none'}"
                      f'{nearest(name, found)}')
  return found[name] if name else next(iter(found.values()))


def tokens(program: rasp.Program) -> tuple[list, tuple]:
  """(input, vocabulary) of the flags."""
  digits = bool(program.vocabulary) and all(isinstance(v, int) for v in program.vocabulary)
  read = lambda text: [int(c) if digits and c.isdigit() else c for c in text]
  sequence = read(INPUT.value) if INPUT.value else list(program.example)
  vocabulary = tuple(read(VOCABULARY.value)) or program.vocabulary or tuple(sorted(set(sequence)))
  if not sequence:
    raise ConfigError("--input is ''; expected at least one token")
  interpreter.check_tokens(sequence, vocabulary)
  return sequence, vocabulary


def output(values) -> str:
  """Characters without spaces, anything else with; undefined is _."""
  shown = ['%.6g' % v if isinstance(v, float) else draw.show(v) for v in values]
  return ('' if all(v is None or isinstance(v, str) and len(v) == 1 for v in values) else ' ').join(shown)


def main(argv) -> None:
  logging.set_verbosity(logging.WARNING)  # JAX tells absl's log of every kind of device that is not there
  if len(argv) != 2 or argv[1] not in COMMANDS:
    given = ' '.join(argv[1:])
    raise ConfigError(f"command is '{given}'; expected one of {', '.join(COMMANDS)}{nearest(given, COMMANDS)}, for "
                      'example python -m rasp run --program=reverse --input=abcd')
  if argv[1] == 'list':
    for program in PROGRAMS.values():
      print(f"{program.name:22}{''.join(map(str, program.example)):12} {output(program(program.example))}")
    return
  if not PROGRAM.value:
    raise ConfigError("--program is ''; expected a name of `python -m rasp list` or a file path.py")
  program = find(PROGRAM.value)
  sequence, vocabulary = tokens(program)
  if argv[1] == 'run' and INTERPRET.value:
    print(output(interpreter.run(program.result, sequence, vocabulary)))
    return
  if argv[1] == 'draw' and not OUT.value:
    print(draw.text(program.result, sequence))
    return
  compiled = rasp.compile(program, vocabulary, LONGEST.value or max(16, len(sequence)), causal=CAUSAL.value,
                          dtype=DTYPE.value)
  if argv[1] == 'draw':
    draw.save(draw.figure(program.result, sequence, compiled), pathlib.Path(OUT.value))
    print(OUT.value)
    return
  print(compiled.report)
  if argv[1] == 'run':
    print(output(compiled(sequence)))
    return
  verdict = verify.verify(compiled, program.result, exhaustive=3, samples=4)
  for where, what in compiled.circuit():
    print(f'{where:24} {what[:90]}')
  for doubt in lint.lint(program.result):
    print(f'RASP-L: {doubt}')
  print(f'{verdict.inputs} inputs against the interpreter: {verdict.wrong} wrong, largest error {verdict.worst:.1e}')
  if OUT.value:
    export.save(compiled, pathlib.Path(OUT.value))
    print(OUT.value)


def run() -> None:
  """The command line, with one line for every error that the user can mend."""
  try:
    app.run(main)
  except (ConfigError, rasp.RaspError) as error:
    sys.exit(f'rasp: {error}')


if __name__ == '__main__':
  run()
