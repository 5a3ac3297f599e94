"""Sequences that are easy to compute from right to left and hard from left to right: "TCS for LLMs", one-way functions.

b_T is drawn, b_t = f_t(b_{t+1}) mod p, and a block tells the maps f_0 .. f_{T-1} before it tells b_T:

  end f_0 .. f_{T-1} b_T = b_0 ; b_{T-1} .. b_0      form answer: the answer, then its derivation
  end f_0 .. f_{T-1} b_T = b_{T-1} .. b_0            form derivation: step by step, the answer last

Kinds of maps: cube, a + c b^3 with c != 0, a permutation where 3 does not divide p - 1; quad, a + c b + d b^2 with
d != 0, the paper's; affine, a + c b with c != 0. Three facts to choose by. For p = 5 the cubes generate the symmetric
group S_5, so that b_0 is its word problem, complete for NC1 (Barrington 1989). The affine maps are a solvable group,
which has constant-depth shortcuts (Liu et al. 2023, arXiv:2210.10749). Quads are two-to-one, and a composition of about
1.75 p of them is constant: take T below p / 2.

Once b_{T-1} is known the maps give the rest, in form answer: the hard token is b_0 after '='.
"""

import dataclasses
import functools

import numpy as np

from framework.config import ConfigError, nearest
from framework.data import tasks

KINDS = ('cube', 'quad', 'affine')
FORMS = ('answer', 'derivation')


@dataclasses.dataclass(frozen=True)
class Task(tasks.Question):
  """p: the modulus, a prime; steps: T; maps: how many maps occur, 0 for all of the kind."""
  kind: str = 'cube'
  p: int = 5
  steps: int = 8
  form: str = 'answer'
  maps: int = 4

  def __post_init__(self):
    for name, choices in (('kind', KINDS), ('form', FORMS)):
      value = getattr(self, name)
      if value not in choices:
        raise ConfigError(f'data.task has {name}={value}; expected one of {", ".join(choices)}'
                          f'{nearest(value, choices)}')
    if not 2 <= self.p <= 4096 or any(self.p % d == 0 for d in range(2, int(self.p**0.5) + 1)):
      raise ConfigError(f'data.task has p={self.p}; expected a prime from 2 to 4093')
    if self.kind == 'cube' and (self.p - 1) % 3 == 0:
      raise ConfigError(f'data.task has p={self.p}, where cubes are no permutation; expected a prime with 3 not '
                        'dividing p - 1, as 5, 11, 17, 29')
    most = self._all_maps.shape[0]
    if not 0 <= self.maps <= most or self.maps == 1:
      raise ConfigError(f'data.task has maps={self.maps}; expected 2 to {most}, or 0 for all')
    tasks.check_range(self, steps=(1, 10**5))

  @functools.cached_property
  def _all_maps(self) -> np.ndarray:
    """int [maps of the kind, p]: the image of every b, by (a, c, d)."""
    p, b = self.p, np.arange(self.p)
    if self.kind == 'quad':
      return np.array([(a + c * b + d * b * b) % p for a in range(p) for c in range(p) for d in range(1, p)])
    power = 3 if self.kind == 'cube' else 1
    return np.array([(a + c * b**power) % p for a in range(p) for c in range(1, p)])

  @functools.cached_property
  def table(self) -> np.ndarray:
    """int [M, p]: the image of every b under each of the maps that occur, which a fixed key picks."""
    count = self.maps or len(self._all_maps)
    picked = np.random.Generator(np.random.Philox(key=2)).permutation(len(self._all_maps))[:count]
    return self._all_maps[np.sort(picked)]

  @property
  def alphabet(self) -> str:
    return tasks.characters(self.p + len(self.table)) + '=;'

  @property
  def equals(self) -> int:
    """The token '='."""
    return self.end - 2

  @property
  def start(self) -> int:
    return self.steps + 2

  @property
  def hard(self) -> int:
    """The place of the token that no table of a few steps gives: b_0 before its derivation."""
    return self.start + 1 if self.form == 'answer' else self.length - 1

  @property
  def length(self) -> int:
    return self.start + 1 + self.steps + (2 if self.form == 'answer' else 0)

  @property
  def chance(self) -> float:
    """Accuracy on the hard token of who cannot compute: b_0 is uniform where all maps are permutations."""
    return 1 / self.p

  @property
  def draws(self) -> int:
    return self.steps + 1

  def spell(self, u_n, xp):
    table = xp.asarray(self.table)
    (M, p), T = self.table.shape, self.steps
    f, b = tasks.pick(u_n[:T], M, xp), tasks.pick(u_n[T], p, xp)
    first, derivation = b, []
    for t in reversed(range(T)):
      b = table[f[t], b]
      derivation.append(b)
    answer = [b, self.end - 1] if self.form == 'answer' else []
    return xp.concatenate([xp.asarray([self.end]), p + f, xp.stack(
        [xp.asarray(x) for x in (first, self.equals, *answer, *derivation)])])
