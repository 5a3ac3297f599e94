"""L(D): the loss of models that are large enough."""

from scaling.laws._law import Law
from scaling.laws._one import one_term


def law() -> Law:
  return one_term('tokens', 'E + B/D^beta', 'd', ('E', 'B', 'beta'))
