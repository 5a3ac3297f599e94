"""One power of one column above a floor: what the laws of size, of tokens and of compute share."""

import numpy as np

from scaling.laws._law import Law


def one_term(name: str, formula: str, column: str, parameters: tuple[str, str, str]) -> Law:
  """E + A x^-alpha, the parameters in this order."""
  def log_loss(theta, x, xp=np):
    e, a, alpha = (theta[..., i, None] for i in range(3))
    power = a - alpha * x[column]
    top = xp.maximum(xp.real(e), xp.real(power))
    return top + xp.log(xp.exp(e - top) + xp.exp(power - top))
  return Law(name, formula, 'Kaplan et al. 2020, arXiv:2001.08361, equations 1.1 to 1.3, with a floor', parameters,
             log_loss, columns=(column,), logs=parameters[:2], pairs=((parameters[1], parameters[2], column, 1.0),))
