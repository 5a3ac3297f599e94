"""A law that nests the additive (q = 1), Kaplan's (E = 0, q = beta) and the larger of two terms (q -> 0)."""

from scaling.laws._law import EXPONENTS, STANDARD, Law
from scaling.laws._terms import in_order, two_terms, with_values


def law() -> Law:
  return Law('coupled', 'E + [(A/N^alpha)^(1/q) + (B/D^beta)^(1/q)]^q',
             'a join of Kaplan et al. 2020 (equation 1.5) and Hoffmann et al. 2022 (section 3.3)', (*STANDARD, 'q'),
             *two_terms(lambda t, xp: t, in_order('e', 'a', 'b', 'alpha', 'beta', 'k')), logs=('E', 'A', 'B', 'q'),
             start=with_values([(-1.5, -0.5, 0.0, 0.4)]), bounds={**EXPONENTS, 'q': (0.02, 50.0)})
