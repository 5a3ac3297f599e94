"""Synthetic languages, one file each: `data.task=NAME:setting=value,...` trains on the class `Task` of NAME.py.

A `Task` is a frozen dataclass whose fields are its settings, and which has

  alphabet: str, distinct characters in order; symbol i is written alphabet[i], len(alphabet) is the end of a document
  length: int, tokens of a block
  block(rng) -> int [length], one block of the language, drawn with a numpy Generator

Languages with a question (one_way, path_star, k_hop, addition) are a `Question`.

Where they are known, a task has `entropy`, nats per token, and `nats(tokens)`, -ln p of each token of a text after
those before it; a sweep then compares its irreducible loss with them.

`framework/data/stream.py` joins blocks to an endless text. A block that begins with the end-of-document token opens a
document of its own; without such tokens the text is one long document.
"""

from typing import Any

import numpy as np

from framework.config import ConfigError


def characters(count: int) -> str:
  """An alphabet of assigned, printable characters."""
  return ''.join(map(chr, range(0x4E00, 0x4E00 + count)))


def check_range(task: Any, **limits: tuple[float, float]) -> None:
  """Raises ConfigError, with the nearest choice, where a setting of the task lies outside of its (low, high)."""
  for name, (low, high) in limits.items():
    value = getattr(task, name)
    if not low <= value <= high:  # also a value that is no number
      raise ConfigError(f'data.task has {name}={value}; expected {low} to {high}, nearest is '
                        f'{high if value > high else low}')


def pick(u_n, choices: int, xp):
  """0 .. choices - 1, of uniform numbers in [0, 1): float32 may round a product up to `choices`."""
  return xp.minimum((u_n * choices).astype(int), choices - 1)


class Question:
  """A task whose blocks are `end question = answer working`, a document each.

  A subclass, which `self: Any` stands for, has `alphabet`, `length`, and

    draws: uniform numbers that a block is a function of
    spell(u_n, xp) -> int [length], the block of `draws` uniform numbers in [0, 1); xp is numpy or jax.numpy
    start: the place of the question's last token: what comes after it is the task
    chance: accuracy on the token at `hard` of who cannot compute
  """

  @property
  def end(self: Any) -> int:
    """The token that opens a block."""
    return len(self.alphabet)

  @property
  def hard(self: Any) -> int:
    """The place of the token that is hard to answer."""
    return self.start + 1

  def block(self: Any, rng: np.random.Generator) -> np.ndarray:
    return self.spell(rng.random(self.draws), np)
