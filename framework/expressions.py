"""Settings that are written as text and mean more: data.mixture, optimizer.rewarm."""

import math
import re

from foundation.errors import ConfigError


def mixture(text: str) -> list[tuple[str, str, float]]:
  """[(name, path, weight)] of data.mixture, whose weights sum to 1. Raises ConfigError."""
  expected = "expected name=path:weight, as in 'web=pages/:0.7,code=src/:0.3'"
  clauses = re.split(r',(?=\s*[\w.-]+=)', text)  # a path may hold commas and colons
  parts = []
  for clause in clauses:
    name, equals, rest = clause.strip().partition('=')
    path, colon, weight = rest.rpartition(':')
    try:
      share = float(weight)
    except ValueError:
      share = math.nan
    if not equals or not re.fullmatch(r'[\w.-]+', name) or not colon or not path or not 0 < share < math.inf:
      raise ConfigError(f"data.mixture has '{clause.strip()}'; {expected}, with a weight above 0")
    parts.append((name, path, share))
  names = [name for name, _, _ in parts]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise ConfigError(f"data.mixture names '{twice}' twice; expected names of their own")
  total = sum(share for _, _, share in parts)
  if min(share for _, _, share in parts) / total < 2**-24:
    raise ConfigError(f"data.mixture is '{text}', with a share below 6e-8; expected more, or the text left out")
  return [(name, path, share / total) for name, path, share in parts]


def segments(rewarm: str, warmup_steps: int, steps: int) -> list[tuple[int, int]]:
  """[(first step, steps)] of the parts of a training that each warm up; there is one without optimizer.rewarm.

  Raises:
    ConfigError: it is no list of steps in order, or a part is no longer than its warm-up.
  """
  words = [word.strip() for word in rewarm.split(',')] if rewarm.strip() else []
  if not all(word.isdecimal() and len(word) < 12 for word in words):
    raise ConfigError(f"optimizer.rewarm is '{rewarm}'; expected numbers of steps, as '300' or '300,600'")
  places = [0, *map(int, words), steps]
  for begin, end in zip(places, places[1:]):
    if words and end - begin <= max(1, warmup_steps):
      raise ConfigError(f"optimizer.rewarm is '{rewarm}', which leaves {end - begin} steps from {begin} on; expected "
                        f'more than optimizer.warmup_steps {warmup_steps}, in order, before training.steps {steps}')
  return [(begin, end - begin) for begin, end in zip(places, places[1:])]
