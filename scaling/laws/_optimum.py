"""Where a law puts the compute optimum: the N and D of least loss for a number of FLOPs."""

from typing import Any

import numpy as np

from foundation.errors import ConfigError
from scaling.laws._law import Law


def allocation(law: Law, theta, C, k: float = 6.0, K=None, at=None) -> tuple[np.ndarray, np.ndarray]:
  """ln N and ln D that minimise the loss at C = k N D FLOPs, for theta[..., P] and C broadcast.

  Closed form: N = G (C/k)^(beta/(alpha+beta)), G = ((alpha/beta)^q A/B)^(1/(alpha+beta)); a head that is monotone in
  the joined terms does not move it. A law without terms is searched; NaN where there is no optimum. That of a law of
  repeated data depends on the unique tokens: `plan.with_repetition`. theta may be complex. K, at: see `Law.others`.
  """
  theta = np.asarray(theta)
  if K is not None and not np.all(np.asarray(K, float) >= 1):
    raise ConfigError(f'K={K} experts: expected at least 1')
  total = np.log(np.asarray(C) / k)
  if 'u' in law.columns:
    raise ConfigError(f'law {law.name} has no closed-form optimum; use the planner with a number of unique tokens')
  if not {'n', 'd'} <= set(law.columns):
    raise ConfigError(f'law {law.name} reads {", ".join(column.name for column in law.reads)}; an optimum is one of N and '
                      'D')
  others = law.others(K, at)
  if law.terms is None:
    n = searched(law, theta, total, others, k)
    return n, total - n
  t = law.terms(theta, others)
  with np.errstate(invalid='ignore', divide='ignore'):  # exponents of opposite sign have no optimum: NaN
    balance = (t.q * np.log(t.alpha / t.beta) + t.a - t.b) / (t.alpha + t.beta)
    n = balance + t.beta / (t.alpha + t.beta) * total
  return n, total - n


@np.errstate(all='ignore')
def searched(law: Law, theta, total, others=None, k: float = 6.0) -> np.ndarray:
  """ln N of the least loss where ln N + ln D = total, for theta[..., P] and total broadcast; NaN where it falls or
  rises all the way from 12 below to 12 above the middle.

  Grids, each within the last one's best cell, then two Newton steps, of which the last carries the imaginary part of
  theta along: so the optimum can be differentiated. others: x of the columns besides n, d and c.
  """
  theta, total = np.asarray(theta), np.asarray(total, float)
  shape = np.broadcast_shapes(theta.shape[:-1], total.shape)
  theta, total = np.broadcast_to(theta, shape + theta.shape[-1:]), np.broadcast_to(total, shape)[..., None]

  def log_loss(theta, n):
    x = {key: np.full(n.shape[-1], value) for key, value in (others or {}).items()}
    return law.log_loss(theta, {'n': n, 'd': total - n, 'c': total + np.log(k) + 0.0 * n, **x}, np)

  best, reach = 0.5 * total, 12.0
  inside: Any = True
  for points in (33, 9, 9, 9, 9):
    n = best + np.linspace(-reach, reach, points)
    value = log_loss(np.real(theta), n)
    at = np.argmin(np.where(np.isfinite(value), value, np.inf), -1)[..., None]
    if points == 33:
      inside = (at > 0) & (at < points - 1)
    best, reach = np.take_along_axis(n, at, -1), 2.0 * reach / (points - 1)
  h = 1e-3
  for coordinates in (np.real(theta), theta):
    left, middle, right = np.moveaxis(log_loss(coordinates, best + np.array([-h, 0.0, h])), -1, 0)
    curvature = np.real(left - 2.0 * middle + right) / h ** 2
    step = (right - left) / (2.0 * h) / np.where(curvature > 0, curvature, np.nan)
    best = best - step[..., None]
  return np.where(inside, best, np.nan)[..., 0]
