"""Progress of long work, drawn on a terminal only."""

from collections.abc import Callable, Iterator
import contextlib
import sys

import tqdm


@contextlib.contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
  """A bar as a function show(done, total, what), in bytes."""
  line = tqdm.tqdm(unit='B', unit_scale=True, leave=False, file=sys.stderr, disable=not sys.stderr.isatty())
  def show(done: int, total: int, what: str) -> None:
    line.total = total
    line.set_description_str(what, refresh=False)
    line.update(done - line.n)
  with line:
    yield show
