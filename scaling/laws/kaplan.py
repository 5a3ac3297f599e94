"""Kaplan's law: no irreducible loss; the paper's constants are N_c = A^(1/alpha) and D_c = B^(1/beta)."""

from scaling.laws._law import STANDARD, Law
from scaling.laws._terms import in_order, two_terms


def law() -> Law:
  chain = {**in_order('a', 'b', 'alpha', 'beta'), 'k': [(3, lambda t: 1.0 / t[3])]}
  return Law('kaplan', '[(A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta)]^beta',
             'Kaplan et al. 2020, arXiv:2001.08361, equation 1.5', STANDARD[1:],
             *two_terms(lambda t, xp: (None, *t, xp.log(t[3])), chain))
