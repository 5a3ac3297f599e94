"""How fast rotary positions turn each pair of channels: a share of them, and waves stretched for longer texts.

Rotary embedding: Su et al. 2021, arXiv:2104.09864. `scaling` is a text, '' for none:

  linear:factor=4                                   all waves are that much longer (Chen et al. 2023, arXiv:2306.15595)
  llama3:factor=8,low=1,high=4,length=8192          those that turn fewer than `low` times in `length` tokens are; those
                                                    that turn more than `high` times stay (Grattafiori et al. 2024,
                                                    arXiv:2407.21783)
  yarn:factor=4,length=4096,fast=32,slow=1,scale=1  as llama3, with a ramp over channels from `fast` to `slow` turns, and
                                                    queries and keys times `scale` (Peng et al. 2023, arXiv:2309.00071)
"""

import math

import numpy as np

from foundation.errors import ConfigError, nearest

KINDS = {'linear': ('factor',), 'llama3': ('factor', 'low', 'high', 'length'),
         'yarn': ('factor', 'length', 'fast', 'slow', 'scale')}


def read(scaling: str) -> tuple[str, dict[str, float]]:
  """(kind, its numbers) of the setting model.rope_scaling; ('', {}) of ''. Raises ConfigError."""
  kind, _, rest = scaling.partition(':')
  if not scaling:
    return '', {}
  if kind not in KINDS:
    raise ConfigError(f"model.rope_scaling is '{scaling}'; expected one of {', '.join(KINDS)}, with numbers, as "
                      f"'linear:factor=4'{nearest(kind, KINDS)}")
  values: dict[str, float] = {}
  for name, _, word in (part.partition('=') for part in rest.split(',')):
    try:
      values[name] = float(word)
    except ValueError:
      values[name] = math.nan
  if values.keys() != set(KINDS[kind]) or not all(0 < value < 1e12 for value in values.values()):
    raise ConfigError(f"model.rope_scaling is '{scaling}'; expected positive numbers, as '{kind}:"
                      f"{','.join(f'{name}=4' for name in KINDS[kind])}'")
  if kind == 'llama3' and values['low'] >= values['high']:
    raise ConfigError(f"model.rope_scaling is '{scaling}'; expected low below high")
  return kind, values


def write(kind: str, values: dict[str, float]) -> str:
  """The inverse of `read`."""
  return f"{kind}:{','.join(f'{name}={values[name]!r}' for name in KINDS[kind])}"


def rotated(head_width: int, share: float) -> int:
  """Channels of a head that are rotated: an even number, 2 at least."""
  return max(2, int(head_width * share) // 2 * 2)


def frequencies(channels: int, base: float, scaling: str = '') -> tuple[np.ndarray, float]:
  """Radians a token of each pair of `channels` rotated channels, float32 [channels / 2], and a factor of both queries
  and keys."""
  pair = np.arange(channels // 2)
  plain = base ** (-2.0 * pair / channels)
  kind, s = read(scaling)
  if kind == 'linear':
    return (plain / s['factor']).astype(np.float32), 1.0
  if kind == 'llama3':
    turns = s['length'] * plain / (2 * math.pi)
    keep = np.clip((turns - s['low']) / (s['high'] - s['low']), 0, 1)
    return (plain * (keep + (1 - keep) / s['factor'])).astype(np.float32), 1.0
  if kind == 'yarn':
    def pair_of(turns):  # which pair turns so often in the length
      return channels * math.log(s['length'] / (2 * math.pi * turns)) / (2 * math.log(base))
    low, high = max(math.floor(pair_of(s['fast'])), 0), min(math.ceil(pair_of(s['slow'])), channels - 1)
    keep = 1 - np.clip((pair - low) / max(high - low, 1e-3), 0, 1)
    return (plain * (keep + (1 - keep) / s['factor'])).astype(np.float32), s['scale']
  return plain.astype(np.float32), 1.0
