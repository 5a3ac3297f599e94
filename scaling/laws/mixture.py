"""Data of two sources, of which one has a share of the tokens (column share): E + A/N^alpha + B/D^beta + G exp(-t share).

The share's term is the exponential form of the mixing laws; G may be of either sign, and is held to a positive one here
so that more of the source helps: use 1 - share for the other.
"""

import numpy as np

from scaling.laws._law import STANDARD, Law


def law() -> Law:
  def log_loss(theta, x, xp=np):
    e, a, b, alpha, beta, g, t = (theta[..., i, None] for i in range(7))
    return xp.log(xp.exp(e) + xp.exp(a - alpha * x['n']) + xp.exp(b - beta * x['d']) + xp.exp(g - t * x['share']))

  return Law('mixture', 'E + A/N^alpha + B/D^beta + G exp(-t share)', 'Ye et al. 2024, arXiv:2403.16952, equation 6',
             (*STANDARD, 'G', 't'), log_loss, columns=('n', 'd', 'share'), logs=('E', 'A', 'B', 'G'),
             tries={'G': [0.1, 1.0], 't': [1.0, 5.0]}, bounds={'t': (0.0, 100.0)})
