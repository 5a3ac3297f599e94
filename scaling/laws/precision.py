"""Training in few bits (column bits): the additive law at N (1 - exp(-bits/gamma)) parameters, as many as still count."""

import numpy as np

from scaling.laws._law import STANDARD, Law


def law() -> Law:
  def log_loss(theta, x, xp=np):
    e, a, b, alpha, beta, gamma = (theta[..., i, None] for i in range(6))
    n = x['n'] + xp.log1p(-xp.exp(-x['bits'] * xp.exp(-gamma)))
    return xp.log(xp.exp(e) + xp.exp(a - alpha * n) + xp.exp(b - beta * x['d']))

  return Law('precision', 'E + A/(N (1 - exp(-bits/gamma)))^alpha + B/D^beta', 'Kumar et al. 2024, arXiv:2411.04330, '
             'section 4', (*STANDARD, 'gamma'), log_loss, columns=('n', 'd', 'bits'), logs=('E', 'A', 'B', 'gamma'),
             tries={'gamma': [1.0, 3.0]})
