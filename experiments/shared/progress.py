"""Progress of long work, drawn on a terminal only."""

from collections.abc import Callable, Iterator
import contextlib
import sys

import tqdm


@contextlib.contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
  """A bar as a function show(done, total, what), in bytes."""
  with _bar('B') as show:
    yield show


@contextlib.contextmanager
def steps() -> Iterator[Callable[[int, int, str], None]]:
  """A bar as a function show(done, total, what), in steps; another `what` of another total begins again."""
  with _bar('step') as show:
    yield show


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int, str], None]]:
  line = tqdm.tqdm(unit=unit, unit_scale=unit == 'B', leave=False, file=sys.stderr, disable=not sys.stderr.isatty())
  def show(done: int, total: int, what: str) -> None:
    if done < line.n:
      line.reset()
    line.total = total
    line.set_description_str(what, refresh=False)
    line.update(done - line.n)
  with line:
    yield show
