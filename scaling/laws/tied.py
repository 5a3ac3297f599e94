"""The additive law with one exponent: the optimal ratio of tokens to parameters does not depend on compute."""

import numpy as np

from scaling.laws._law import STANDARD, Law
from scaling.laws._terms import in_order, two_terms


def law() -> Law:
  chain = {**in_order('e', 'a', 'b', 'alpha'), 'beta': [(3, 1.0)]}
  return Law('tied', 'E + A/N^alpha + B/D^alpha', 'Muennighoff et al. 2023, arXiv:2305.16264, appendix A', STANDARD[:4],
             *two_terms(lambda t, xp: (*t, t[3], None), chain),
             pairs=(('A', 'alpha', 'n', 1.0), ('B', 'alpha', 'd', 1.0)),
             start=lambda s: np.stack([s[..., 0], s[..., 1], s[..., 2], (s[..., 3] + s[..., 4]) / 2], -1))
