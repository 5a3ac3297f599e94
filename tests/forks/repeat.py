"""A word of `size` letters, told twice: the second half is the first."""

from __future__ import annotations

import dataclasses
import string

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
  """size: letters of a word."""
  size: int = 5

  @property
  def alphabet(self):
    return string.ascii_lowercase

  @property
  def length(self):
    return 1 + 2 * self.size

  def block(self, rng):
    word = rng.integers(26, size=self.size)
    return np.concatenate([[26], word, word])
