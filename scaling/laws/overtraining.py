"""Loss by tokens per parameter M = D/N and compute C = 6 N D, one exponent: E + (A M^eta + B M^-eta) C^-eta.

As M^eta C^-eta = (6 N^2)^-eta this is the tied law with exponent 2 eta.
"""

import numpy as np

from scaling.laws._law import Law
from scaling.laws._terms import two_terms

LN6 = float(np.log(6.0))


def law() -> Law:
  def spec(t, xp):
    return t[0], t[1] - LN6 * t[3], t[2] - LN6 * t[3], 2.0 * t[3], 2.0 * t[3], None
  chain = {'e': [(0, 1.0)], 'a': [(1, 1.0), (3, -LN6)], 'b': [(2, 1.0), (3, -LN6)], 'alpha': [(3, 2.0)],
           'beta': [(3, 2.0)]}
  return Law('overtraining', 'E + (A M^eta + B M^-eta) C^-eta, M = D/N, C = 6ND',
             'Gadre et al. 2024, arXiv:2403.08540, equation 4', ('E', 'A', 'B', 'eta'), *two_terms(spec, chain),
             pairs=(('A', 'eta', 'n', 2.0), ('B', 'eta', 'd', 2.0)), bounds={'eta': (0.005, 1.5)},
             start=lambda s: np.stack([s[..., 0], s[..., 1], s[..., 2], (s[..., 3] + s[..., 4]) / 4], -1))
