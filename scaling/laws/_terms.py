"""Two terms, U = A/N^alpha and V = B/D^beta, joined as (U^(1/q) + V^(1/q))^q: what the laws of this package share.

q = 1 adds them, q -> 0 takes the larger.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from scaling.laws._law import Terms


def _log_sum(u, v, xp):
  """ln(exp u + exp v), also for complex arguments with small imaginary parts."""
  m = xp.maximum(xp.real(u), xp.real(v))
  return m + xp.log(xp.exp(u - m) + xp.exp(v - m))


def _share(u, v):
  """exp(u) / (exp(u) + exp(v)) without overflow."""
  return 0.5 * (1.0 + np.tanh(0.5 * (u - v)))


def _columns(theta):
  return [theta[..., i, None] for i in range(theta.shape[-1])]


def _joined(e, u, v, k, offset, xp):
  """ln loss of the parts; e None: no irreducible loss; k = ln q, None: q = 1; offset ln L0 bounds the loss by L0."""
  if k is None:
    s = _log_sum(u, v, xp)
  else:
    q = xp.exp(k)
    s = q * _log_sum(u / q, v / q, xp)
  if offset is not None:
    return _log_sum(e, offset + s, xp) - _log_sum(s, 0.0 * s, xp)
  return s if e is None else _log_sum(e, s, xp)


def two_terms(spec, chain, offset=None) -> tuple[Callable, Callable, Callable]:
  """(log_loss, jacobian, terms) of a law whose parts are spec(coordinates, xp) = (e, a, b, alpha, beta, k).

  chain: {part: [(coordinate, factor)]}, the derivative of each part by each coordinate; a factor may be a function of
  the coordinates.
  """
  def parts(theta, x, xp) -> tuple[Any, Any, Any, Any]:
    e, a, b, alpha, beta, k = spec(_columns(theta), xp)
    return e, a - alpha * x['n'], b - beta * x['d'], k

  def log_loss(theta, x, xp=np):
    return _joined(*parts(theta, x, xp), offset, xp)

  def jacobian(theta, x):
    e, u, v, k = parts(theta, x, np)
    q = 1.0 if k is None else np.exp(k)
    p, gap = _share(u / q, v / q), np.abs(u - v) / q
    s = np.maximum(u, v) + q * np.log1p(np.exp(-gap))
    if offset is not None:
      by_e: Any = _share(e, offset + s)
      by_s = 1.0 - by_e - _share(s, 0.0)
    else:
      by_e = None if e is None else _share(e, s)
      by_s = np.ones_like(s) if e is None else 1.0 - by_e
    by = {'e': by_e, 'a': by_s * p, 'b': by_s * (1.0 - p)}
    by['alpha'], by['beta'] = -by['a'] * x['n'], -by['b'] * x['d']
    if k is not None:  # d s / d ln q is q times the entropy of the two shares
      by['k'] = by_s * q * (np.log1p(np.exp(-gap)) + gap * np.minimum(p, 1.0 - p))
    out = np.zeros(s.shape + (theta.shape[-1],))
    for part, links in chain.items():
      for index, factor in links:
        out[..., index] += by[part] * (factor(_columns(theta)) if callable(factor) else factor)
    return out

  def terms(theta, x=None, xp=np):
    e, a, b, alpha, beta, k = spec([theta[..., i] for i in range(theta.shape[-1])], xp)
    return Terms(-np.inf if e is None else e, a, b, alpha, beta, 1.0 if k is None else xp.exp(k))

  return log_loss, jacobian, terms


def in_order(*parts):
  """The chain of a law whose coordinates are these parts, each by itself."""
  return {part: [(i, 1.0)] for i, part in enumerate(parts)}


def with_values(values):
  """Start of a law that appends coordinates to another's: a lane for each combination of their values."""
  def start(theta):
    lanes = theta
    for column in values:
      lanes = np.concatenate([np.concatenate([lanes, np.full(lanes.shape[:-1] + (1,), c)], -1) for c in column], 0)
    return lanes
  return start
