"""The tied law with repeated data."""

from scaling.laws._law import Law
from scaling.laws.tied import law as tied
from scaling.laws.repeated import repeated


def law() -> Law:
  return repeated(tied())
