"""k-hop induction: from the last symbol go back to where it stood before, read on by one, and do that k times.

  end x_1 .. x_L = h_k ; h_1 h_2 .. h_k

h_0 = x_L; h_{i+1} is the symbol after the latest earlier place of h_i. A hop looks left of where the last one read; the
symbol '-' says that there is no such place, and stays. One hop is an induction head's; k hops take a transformer about
log2 k layers, since two hops compose to one of twice the length (Sanford et al. 2024, arXiv:2402.09268). Here the
answer comes first and the hops after it: told in that order each is a single hop.
"""

import dataclasses

from framework.data import tasks


@dataclasses.dataclass(frozen=True)
class Task(tasks.Question):
  """text: L; symbols: how many there are; hops: k."""
  text: int = 64
  symbols: int = 4
  hops: int = 4

  def __post_init__(self):
    tasks.check_range(self, text=(2, 10**5), symbols=(2, 4096), hops=(1, 10**4))

  @property
  def alphabet(self) -> str:
    return tasks.characters(self.symbols) + '-=;'

  @property
  def none(self) -> int:
    """The token '-', for no such place."""
    return self.symbols

  @property
  def equals(self) -> int:
    """The token '='."""
    return self.symbols + 1

  @property
  def start(self) -> int:
    return self.text + 1

  @property
  def length(self) -> int:
    return self.start + 3 + self.hops

  @property
  def chance(self) -> float:
    """Accuracy on h_k of who always says the same symbol: all are alike, and each is h_k at most so often."""
    return 1 / self.symbols

  @property
  def draws(self) -> int:
    return self.text

  def spell(self, u_n, xp):
    L, V = self.text, self.symbols
    x = tasks.pick(u_n, V, xp)
    place, hops = xp.asarray(L - 1), []
    for _ in range(self.hops):
      here = (x == x[place]) & (xp.arange(L) < place)
      latest = xp.where(here, xp.arange(L), -1).max()
      # Where a hop has failed there is nothing left of place 0, and so no later hop succeeds.
      place = xp.maximum(latest + 1, 0)
      hops.append(xp.where(latest >= 0, x[place], self.none))
    hops = xp.stack(hops)
    return xp.concatenate([xp.asarray([self.end]), x, xp.asarray([self.equals]), hops[-1:],
                           xp.asarray([self.equals + 1]), hops])
