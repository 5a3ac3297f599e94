"""Addition, most significant digit first, then the working from the least significant digit.

  end a_1 .. a_n + b_1 .. b_n = s_0 s_1 .. s_n ; w_n .. w_1 s_0

a_1 and s_0 are the most significant; each step of the working w_i is the digit and the carry that leaves it, one symbol
of 2 x base. s_0 is a carry that may come from far: the first `chain` digit pairs add up to base - 1 and hand on what
reaches them, so that it is decided by the digits after them.
"""

import dataclasses

from framework.data import tasks


@dataclasses.dataclass(frozen=True)
class Task(tasks.Question):
  """digits: n; chain: digit pairs that only hand a carry on; base: of the digits."""
  digits: int = 8
  chain: int = 6
  base: int = 10

  def __post_init__(self):
    tasks.check_range(self, digits=(1, 10**4), base=(2, 1000))
    tasks.check_range(self, chain=(0, self.digits - 1))

  @property
  def alphabet(self) -> str:
    return tasks.characters(3 * self.base) + '+=;'

  @property
  def equals(self) -> int:
    """The token '='."""
    return 3 * self.base + 1

  @property
  def start(self) -> int:
    return 2 * self.digits + 2

  @property
  def length(self) -> int:
    return self.start + 2 * self.digits + 4

  @property
  def chance(self) -> float:
    """Accuracy on s_0 of who always says 0: k = n - chain free digits carry with probability (1 - base^-k) / 2."""
    return (1 + float(self.base) ** (self.chain - self.digits)) / 2

  @property
  def draws(self) -> int:
    return 2 * self.digits

  def spell(self, u_n, xp):
    n, base = self.digits, self.base
    a, b = tasks.pick(u_n.reshape(2, n), base, xp)
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
