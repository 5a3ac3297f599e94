"""L(N): the loss of models that have tokens enough."""

from scaling.laws._law import Law
from scaling.laws._one import one_term


def law() -> Law:
  return one_term('size', 'E + A/N^alpha', 'n', ('E', 'A', 'alpha'))
