"""Mixtures of experts: N active of N_total parameters, and a granularity (column) by which the experts are made finer.

E + (A + G/granularity^gamma)/N^alpha + B/D^beta with N between the active and the total count: ln N' = ln N + s ln
(N_total/N).
"""

import numpy as np

from scaling.laws._law import STANDARD, Law


def law() -> Law:
  def log_loss(theta, x, xp=np):
    e, a, b, alpha, beta, g, gamma, s = (theta[..., i, None] for i in range(8))
    n = x['n'] + s * (x['t'] - x['n'])
    size = xp.log(xp.exp(a) + xp.exp(g - gamma * x['g'])) - alpha * n
    return xp.log(xp.exp(e) + xp.exp(size) + xp.exp(b - beta * x['d']))

  return Law('mixture_of_experts', "E + (A + G/granularity^gamma)/N'^alpha + B/D^beta, N' = N (N_total/N)^s",
             'Krajewski et al. 2024, arXiv:2402.07871, equation 9, at a count between active and total', (
                 *STANDARD, 'G', 'gamma', 's'), log_loss, columns=('n', 'd', 't', 'g'), logs=('E', 'A', 'B', 'G'),
             tries={'G': [1.0, 30.0], 'gamma': [0.5], 's': [0.2]}, bounds={'gamma': (0.0, 5.0), 's': (-0.5, 1.5)})
