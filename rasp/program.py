"""A program: a named s-op with what it may be given, which the interpreter runs and the compiler takes."""

from collections.abc import Callable, Iterable
import dataclasses
import types
from typing import Any

from rasp import interpreter
from rasp.language import RaspError, SOp, Value, here, lift


@dataclasses.dataclass(frozen=True)
class Program:
  """A named s-op with what it may be given: the values of `tokens`, and an example input."""
  name: str
  result: SOp
  vocabulary: tuple[Value, ...] = ()
  example: tuple[Value, ...] = ()
  doc: str = ''

  def __call__(self, sequence: Iterable[Value]) -> list[Value]:
    """The exact result, by the interpreter."""
    return interpreter.run(self.result, list(sequence), self.vocabulary)


def program(function: Callable | None = None, *, vocabulary: Iterable[Value] = (), example: Iterable[Value] = (),
            name: str = '') -> Any:
  """Turns a function without arguments that returns an s-op into a Program."""
  def wrap(function):
    called, result, values, shown = name or function.__name__, function(), tuple(vocabulary), tuple(example)
    if result is None:
      raise RaspError(here(), f"'{called}' returns None; expected an s-op (does it lack a `return`?)")
    interpreter.check_tokens(shown, values, f"of '{called}' and its example: ", here())
    return Program(called, lift(result), values, shown, (function.__doc__ or '').strip())
  return wrap(function) if function else wrap


def programs(module: types.ModuleType) -> dict[str, Program]:
  """What a file offers to run, by name: its Programs at the top level, and those in its `PROGRAMS` if it has that."""
  here = vars(module)
  return {p.name: p for p in (*here.get('PROGRAMS', {}).values(), *here.values()) if isinstance(p, Program)}
