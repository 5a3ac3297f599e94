"""A law at the effective parameters of K experts (column K): ln N' = ln N + (s + t ln N) ln K, N active parameters.

The effective count of a bilinear law a ln N + b ln K + c ln N ln K + d, with s = b/a and t = c/a; the saturation of K
in that paper is left out, so the map holds well below its saturating number of experts.
"""

import dataclasses

import numpy as np

from scaling.laws._law import Law
from scaling.laws._terms import with_values
from scaling.laws.additive import law as additive


def experts(base: Law) -> Law:
  """`base`, which has a closed optimum, with experts."""
  size = len(base.parameters)

  def log_loss(theta, x, xp=np):
    s, t = theta[..., size, None], theta[..., size + 1, None]
    return base.log_loss(theta[..., :size], {'n': x['n'] + (s + t * x['n']) * x['k'], 'd': x['d']}, xp)

  def terms(theta, x, xp=np):
    f = base.terms(theta[..., :size], xp=xp)
    s, t, k = theta[..., size], theta[..., size + 1], x['k']
    return dataclasses.replace(f, a=f.a - f.alpha * s * k, alpha=f.alpha * (1.0 + t * k))

  return Law(f'experts_{base.name}', f'{base.formula} at ln N + (s + t ln N) ln K',
             f'Clark et al. 2022, arXiv:2202.01169, sections 4 and 5; head: {base.source}',
             base.parameters + ('s', 't'), log_loss, terms=terms,
             start=lambda v: with_values([(0.5,), (0.0,)])(base.start(v)), logs=base.logs, pairs=base.pairs,
             columns=('n', 'd', 'k'), bounds=dict(base.bounds))


def law() -> Law:
  return experts(additive())
