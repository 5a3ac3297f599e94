"""A law at effective tokens and parameters when D tokens are read from U unique ones (column U): data read again.

D' = U_D (1 + R_D* (1 - exp(-R/R_D*))) with U_D = min(U, D) and R = D/U_D - 1 repetitions; N' likewise from
U_N = min(N, the compute-optimal N of U_D tokens). R_D and R_N are the decay constants R_D*, R_N*.
"""

import numpy as np

from scaling.laws._law import Law
from scaling.laws._terms import with_values
from scaling.laws.additive import law as additive


def repeated(base: Law) -> Law:
  """`base`, which has a closed optimum, with repeated data."""
  size = len(base.parameters)

  def effective(theta, x, xp):
    head, (r_d, r_n) = theta[..., :size], (xp.exp(theta[..., size + i, None]) for i in range(2))
    t = base.terms(head, xp=xp)
    a, b, alpha, beta, q = (c if isinstance(c, float) else c[..., None] for c in (t.a, t.b, t.alpha, t.beta, t.q))
    unique = xp.minimum(x['u'], x['d'])
    best = (q * xp.log(alpha / beta) + a - b + beta * unique) / alpha  # ln N where the two terms cost the same
    size_n = xp.where(xp.real(best) < x['n'], best, x['n'] + 0.0 * best)

    def decay(excess, rate):
      return xp.log1p(rate * -xp.expm1(-xp.expm1(excess) / rate))
    return {'n': size_n + decay(x['n'] - size_n, r_n), 'd': unique + decay(x['d'] - unique, r_d)}

  def log_loss(theta, x, xp=np):
    return base.log_loss(theta[..., :size], effective(theta, x, xp), xp)

  return Law(f'repeated_{base.name}', f'{base.formula} at effective N, D of U unique tokens',
             f'Muennighoff et al. 2023, arXiv:2305.16264, section 3; head: {base.source}',
             base.parameters + ('R_D', 'R_N'), log_loss,
             start=lambda s: with_values([np.log([5.0, 20.0, 80.0]), np.log([2.0, 10.0])])(base.start(s)),
             logs=base.logs + ('R_D', 'R_N'), pairs=base.pairs, columns=('n', 'd', 'u'),
             bounds={**base.bounds, 'R_D': (0.1, 1000.0), 'R_N': (0.1, 1000.0)})


def law() -> Law:
  return repeated(additive())
