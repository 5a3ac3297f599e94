"""What a user did wrong, said in one line with the nearest valid choice."""

from collections.abc import Iterable
import difflib

from foundation.printable import printable


class ConfigError(ValueError):
  """What the user gave cannot be honoured; the message is one line, fit to be shown without a traceback."""


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
  """" (did you mean 'x'?)" for the choice closest to `word`, or ''."""
  close = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
  return f" (did you mean '{close[0]}'?)" if close else ''


def one_line(error: BaseException) -> str:
  """The message of an error without line breaks and escapes; the name of its type if it has none."""
  return printable(' '.join(str(error).split())) or type(error).__name__
