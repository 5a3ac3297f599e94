"""Routed models, bilinear in logarithms: ln L = ln A - alpha ln N - gamma ln K + c ln N ln K, N active parameters."""

import numpy as np

from scaling.laws._law import Law


def law() -> Law:
  def log_loss(theta, x, xp=np):
    a, alpha, gamma, c = (theta[..., i, None] for i in range(4))
    return a - alpha * x['n'] - gamma * x['k'] + c * x['n'] * x['k']

  return Law('routing', 'A N^-alpha K^(-gamma + c ln N)', 'Clark et al. 2022, arXiv:2202.01169, equation 6',
             ('A', 'alpha', 'gamma', 'c'), log_loss, columns=('n', 'k'), tries={'gamma': [0.1], 'c': [0.0]})
