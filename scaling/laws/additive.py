"""Chinchilla's third approach: an irreducible loss, one term of parameters and one of tokens."""

from scaling.laws._law import STANDARD, Law
from scaling.laws._terms import in_order, two_terms


def law() -> Law:
  return Law('additive', 'E + A/N^alpha + B/D^beta', 'Hoffmann et al. 2022, arXiv:2203.15556, section 3.3', STANDARD,
             *two_terms(lambda t, xp: (*t, None), in_order('e', 'a', 'b', 'alpha', 'beta')))
