"""Programs by name, in `PROGRAMS`: shifts and sorting, brackets, addition, hops. Each has its idea in its docstring.

A file of programs is an entry: a new one in this folder is in `python -m rasp list` without an edit elsewhere, and one
anywhere else runs as --program=path.py. It holds

  - functions that return an s-op, with arguments where they are parts of others: `def shift(by, x=tokens)`;
  - Programs, made of functions without arguments by `@rasp.program(vocabulary='abcd', example='abca')`: a name (the
    function's, if none is given), every value that a token may take, and an input that shows what it does;
  - here, where a function's name is often its program's, `PROGRAMS`: a dict of the Programs by name. Elsewhere that is
    allowed, and Programs at the top level of the file are found without it (`rasp.program.programs`).
"""

import importlib
import sys

from foundation import entries
from rasp.program import programs

PROGRAMS = {name: program for file in entries.names(sys.modules[__name__], 'PROGRAMS')
            for name, program in programs(importlib.import_module(f'{__name__}.{file}')).items()}
