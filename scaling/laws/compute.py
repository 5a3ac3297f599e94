"""L(C), with a floor: the loss along the compute optimum, or of any one recipe."""

from scaling.laws._law import Law
from scaling.laws._one import one_term


def law() -> Law:
  return one_term('compute', 'E + A/C^alpha', 'c', ('E', 'A', 'alpha'))
