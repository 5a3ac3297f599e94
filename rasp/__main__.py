"""RASP from the command line: python -m rasp COMMAND [--program=NAME|path.py] [flags].

A path.py holds functions under @rasp.program; with several, --program=path.py:NAME picks one. A folder that `compile
--out` wrote is run by its name. The tokens of --input are its characters, those of a program over numbers digits;
tokens of several characters, as 12, -3 or cat, stand between commas.

Example:
  python -m rasp run --program=reverse --input=abcd
"""

import pathlib
import re
import sys

from foundation import entries
from foundation.command import Command, Flag, run
from foundation.errors import ConfigError, nearest
import rasp
from rasp import draw, export, interpreter, language, library, lint, verify
from rasp.library import PROGRAMS
from rasp.program import programs as programs_of


WHOLE = re.compile(r'-?\d+')


def find(text: str) -> rasp.Program:
  """A program by its name in the library or by its file. Raises ConfigError."""
  path, _, name = text.partition(':')
  if not text:
    raise ConfigError("--program is ''; expected a name of `python -m rasp list` or a file path.py")
  if not path.endswith('.py'):
    if text not in PROGRAMS:
      raise ConfigError(f"--program is '{text}'; expected a file path.py or a name of `python -m rasp list`"
                        f'{nearest(text, PROGRAMS)}')
    return PROGRAMS[text]
  programs = programs_of(entries.from_file(path, '--program', library.__name__))
  if not programs:
    raise ConfigError(f"--program is '{text}', whose file has no function under @rasp.program; expected one or more, as "
                      f'the docstring of {library.__name__} says')
  if name and name not in programs or len(programs) != 1 and not name:
    raise ConfigError(f"--program is '{text}'; expected path.py:NAME, where NAME is one of "
                      f"{', '.join(programs)}{nearest(name, programs)}")
  return programs[name] if name else next(iter(programs.values()))


def read(text: str, vocabulary: tuple) -> list:
  """The tokens of a text: characters, or words between commas where tokens or words have several characters."""
  words = text.split(',')
  wide = any(len(str(v)) > 1 for v in vocabulary) or len(words) > 1 and all(words) and max(map(len, words)) > 1
  named = {str(v): v for v in vocabulary}
  numbers = all(isinstance(v, int) for v in vocabulary) if vocabulary else wide and all(map(WHOLE.fullmatch, words))
  parts = [word.strip() for word in words if word.strip()] if wide else list(text)
  return [named[p] if p in named else int(p) if numbers and WHOLE.fullmatch(p) else p for p in parts]


def tokens(flags) -> tuple[rasp.Program, list, tuple]:
  """(program, input, vocabulary) of the flags."""
  program = find(flags.program)
  vocabulary = tuple(read(flags.vocabulary, program.vocabulary)) or program.vocabulary
  sequence = read(flags.input, vocabulary) if flags.input else list(program.example)
  vocabulary = vocabulary or tuple(sorted(set(sequence), key=language.order))
  if not sequence:
    raise ConfigError(f"--input is '' and the program '{program.name}' has no example; expected at least one token, or "
                      "@rasp.program(vocabulary='...', example='...')")
  interpreter.check_tokens(sequence, vocabulary, f"'{program.name}': ")
  return program, sequence, vocabulary


def compiled(flags, program: rasp.Program, sequence: list, vocabulary: tuple) -> rasp.Compiled:
  """The decoder of the program, long enough for the input."""
  return rasp.compile(program, vocabulary, flags.longest or max(16, len(sequence)), causal=flags.causal,
                      dtype=flags.dtype)


def output(values) -> str:
  """Characters without spaces, anything else with; undefined is _."""
  shown = ['%.6g' % v if isinstance(v, float) else draw.show(v) for v in values]
  return ('' if all(v is None or isinstance(v, str) and len(v) == 1 for v in values) else ' ').join(shown)


def run_folder(flags) -> None:
  """Prints the output of a compiled program that `compile --out` wrote."""
  if flags.interpret or flags.vocabulary or flags.longest or flags.causal is not None:
    raise ConfigError(f"--program is the folder '{flags.program}', whose weights are fixed; expected --input alone")
  decoder = export.load(pathlib.Path(flags.program))
  sequence = read(flags.input, decoder.vocabulary)
  if not sequence:
    raise ConfigError("--input is ''; expected at least one token, since a folder holds no example")
  print(decoder.report)
  print(output(decoder(sequence)))


def run_run(flags) -> None:
  """Prints the output of a program, by its decoder or its interpreter."""
  if pathlib.Path(flags.program).is_dir() and flags.program:
    run_folder(flags)
    return
  program, sequence, vocabulary = tokens(flags)
  if flags.interpret:
    print(output(interpreter.run(program.result, sequence, vocabulary)))
    return
  decoder = compiled(flags, program, sequence, vocabulary)
  print(decoder.report)
  print(output(decoder(sequence)))


def run_compile(flags) -> None:
  """Prints what the decoder of a program holds and whether it is right; writes it to --out."""
  program, sequence, vocabulary = tokens(flags)
  decoder = compiled(flags, program, sequence, vocabulary)
  print(decoder.report)
  verdict = verify.verify(decoder, program.result, exhaustive=3, samples=4)
  for where, what in decoder.circuit():
    print(f'{where:24} {what[:90]}')
  for doubt in lint.lint(program.result):
    print(f'RASP-L: {doubt}')
  print(f'{verdict.inputs} inputs against the interpreter: {verdict.wrong} wrong, largest error {verdict.worst:.1e}')
  if flags.out:
    export.save(decoder, pathlib.Path(flags.out))
    print(flags.out)


def run_draw(flags) -> None:
  """Draws the selectors of a program, in the terminal or to --out."""
  program, sequence, vocabulary = tokens(flags)
  if not flags.out:
    print(draw.text(program.result, sequence))
    return
  decoder = compiled(flags, program, sequence, vocabulary)
  draw.save(draw.figure(program.result, sequence, decoder), pathlib.Path(flags.out))
  print(flags.out)


def run_list(_) -> None:
  """Prints the library's programs with their examples."""
  for program in PROGRAMS.values():
    print(f"{program.name:22}{''.join(map(str, program.example)):12} {output(program(program.example))}")


PROGRAM = (
    Flag('program', str, '', 'a name of `list`, a file path.py, path.py:NAME, or for run a compiled folder'),
    Flag('input', str, '', 'the tokens, one a character or between commas; default: the example of the program'),
    Flag('vocabulary', str, '', "every token that may occur; default: the program's own"),
    Flag('longest', int, 0, 'tokens; default: those of the input, at least 16', least=0),
    Flag('causal', bool, None, 'compile to a causal decoder; default: where the program allows it'),
    Flag('dtype', str, 'float32', 'of the arithmetic', ('float32', 'bfloat16')))
COMMANDS = (
    Command('run', run_run, 'compile a program, run the decoder on --input, print the output as the last line', """
Examples:
  python -m rasp run --program=reverse --input=abcd
  python -m rasp run --program=mine.py:twice --interpret
""", (*PROGRAM, Flag('interpret', bool, False, 'run the interpreter in place of the decoder'))),
    Command('compile', run_compile, 'compile and verify against the interpreter, with circuit and doubts', """
Prints the report, the circuit and where the program leaves RASP-L.

Example:
  python -m rasp compile --program=mine.py --longest=40 --out=mine
""", (*PROGRAM, Flag('out', str, '', 'the folder to write the decoder to'))),
    Command('draw', run_draw, 'the selectors of a program on --input, in the terminal or as a picture', """
Examples:
  python -m rasp draw --program=associative_memory
  python -m rasp draw --program=associative_memory --out=picture.svg
""", (*PROGRAM, Flag('out', str, '', 'the picture to write, .svg or .png, with the compiled attention beside'))),
    Command('list', run_list, "the library's programs", """
Example:
  python -m rasp list
"""))


if __name__ == '__main__':
  sys.exit(run('python -m rasp', __doc__, COMMANDS, refusals=(rasp.RaspError,)))
