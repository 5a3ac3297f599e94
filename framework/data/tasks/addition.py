"""Addition, most significant digit first, then the working from the least significant digit.

  end a_1 .. a_n + b_1 .. b_n = s_0 s_1 .. s_n ; w_n .. w_1 s_0

a_1 and s_0 are the most significant; each step of the working w_i is the digit and the carry that leaves it, one symbol
of 2 x base. s_0 is a carry that may come from far: the first `chain` digit pairs add up to base - 1 and hand on what
reaches them, so that it is decided by the digits after them.
"""

import dataclasses

import numpy as np

from framework.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Task:
  """digits: n; chain: digit pairs that only hand a carry on; base: of the digits."""
  digits: int = 8
  chain: int = 6
  base: int = 10

  def __post_init__(self):
    if not 1 <= self.digits <= 10**4 or not 2 <= self.base <= 1000:
      raise ConfigError(f'data.task has digits={self.digits} and base={self.base}; expected 1 to 10000 and 2 to 1000')
    if not 0 <= self.chain < self.digits:
      raise ConfigError(f'data.task has chain={self.chain}; expected 0 to {self.digits - 1}, one less than digits')

  @property
  def alphabet(self) -> str:
    return ''.join(map(chr, range(0x4E00, 0x4E00 + 3 * self.base))) + '+=;'

  @property
  def end(self) -> int:
    return len(self.alphabet)

  @property
  def equals(self) -> int:
    """The token '='."""
    return 3 * self.base + 1

  @property
  def start(self) -> int:
    """The place of '=' in a block: what comes after it is the task."""
    return 2 * self.digits + 2

  @property
  def hard(self) -> int:
    """The place of s_0, the carry that has come through the chain."""
    return self.start + 1

  @property
  def length(self) -> int:
    return self.start + 2 * self.digits + 4

  @property
  def chance(self) -> float:
    """Accuracy on s_0 of who always says 0: k = n - chain free digits carry with probability (1 - base^-k) / 2."""
    return (1 + float(self.base) ** (self.chain - self.digits)) / 2

  @property
  def draws(self) -> int:
    """Uniform numbers that a block is a function of."""
    return 2 * self.digits

  def spell(self, u_n, xp=np):
    """The block, int [length], of uniform numbers in [0, 1); `xp` is numpy or jax.numpy."""
    n, base = self.digits, self.base
    a, b = xp.minimum((u_n.reshape(2, n) * base).astype(int), base - 1)  # float32 may round a product up to base
    b = xp.where(xp.arange(n) < self.chain, base - 1 - a, b)
    carry, digits, working = 0 * a[0], [], []
    for i in reversed(range(n)):
      total = a[i] + b[i] + carry
      carry = total // base
      digits.append(total % base)
      working.append(base + total)  # the digit and the carry: a symbol of its own a total
    last = carry
    sum_ = xp.stack([last, *reversed(digits)])
    return xp.concatenate([xp.asarray([self.end]), a, xp.asarray([self.equals - 1]), b, xp.asarray([self.equals]), sum_,
                           xp.asarray([self.equals + 1]), xp.stack(working), last[None]])

  def block(self, rng: np.random.Generator) -> np.ndarray:
    return self.spell(rng.random(self.draws))
