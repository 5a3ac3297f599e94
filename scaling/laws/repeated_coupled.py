"""The coupled law with repeated data."""

from scaling.laws._law import Law
from scaling.laws.coupled import law as coupled
from scaling.laws.repeated import repeated


def law() -> Law:
  return repeated(coupled())
