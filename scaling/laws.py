"""What a loss is as a function of parameters N and training tokens D, and where each law puts the optimum.

A law works on logarithms. `log_loss(theta, x, xp)` maps coordinates theta[..., P] and a dictionary of log columns
x (`n` = ln N, `d` = ln D; some laws read `u` = ln unique tokens or `k` = ln experts) of shape [rows] to ln loss
[..., rows]; `xp` is numpy or jax.numpy, and complex theta is allowed, so that a derivative needs no second
definition. Coordinates named in `Law.logs` are natural logarithms of the displayed parameter (E, A, B, q, ...).
Losses are in nats per token, N in parameters, D in tokens, C in FLOPs.

All laws share two terms, U = A/N^alpha and V = B/D^beta, joined as (U^(1/q) + V^(1/q))^q: q = 1 adds them, q -> 0
takes the larger. Where N and D cost C = 6 N D, the optimum of any such law is the same closed form.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from scaling.table import TableError, nearest

LN6 = float(np.log(6.0))
STANDARD = ('E', 'A', 'B', 'alpha', 'beta')
EXPONENTS = {'alpha': (0.01, 3.0), 'beta': (0.01, 3.0)}


@dataclasses.dataclass(frozen=True)
class Terms:
  """A law in standard form: ln U = a - alpha n, ln V = b - beta d, joined with exponent q above ln E = e."""
  e: np.ndarray
  a: np.ndarray
  b: np.ndarray
  alpha: np.ndarray
  beta: np.ndarray
  q: np.ndarray


@dataclasses.dataclass(frozen=True)
class Law:
  """One parametric law.

  parameters: displayed names in the order of theta. logs: those of them that theta holds as logarithms.
  jacobian(theta, x): d ln loss / d theta, [..., rows, P]. terms(theta, x, xp): standard form, at x if the law maps
  columns. pairs: (scale, exponent, column, factor); centring a column moves the scale's log by factor * mean *
  exponent. bounds: displayed values outside which a fit is suspect. start: additive coordinates -> theta[..., P].
  """
  name: str
  formula: str
  source: str
  parameters: tuple[str, ...]
  log_loss: Callable
  jacobian: Callable
  terms: Callable
  start: Callable
  logs: tuple[str, ...] = ('E', 'A', 'B')
  pairs: tuple = (('A', 'alpha', 'n', 1.0), ('B', 'beta', 'd', 1.0))
  columns: tuple[str, ...] = ('n', 'd')
  bounds: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=lambda: dict(EXPONENTS))

  def display(self, theta) -> dict[str, np.ndarray]:
    """Displayed values (E, A, B not as logarithms) of theta[..., P]."""
    theta = np.asarray(theta, float)
    with np.errstate(over='ignore'):
      return {name: np.exp(theta[..., i]) if name in self.logs else theta[..., i]
              for i, name in enumerate(self.parameters)}

  def coordinates(self, values: Mapping[str, float]) -> np.ndarray:
    """theta of displayed values; refuses unknown, missing and non-positive ones."""
    for name in values:
      if name not in self.parameters:
        raise TableError(f'law {self.name} has no parameter {name!r}; it has {", ".join(self.parameters)}'
                         f'{nearest(name, self.parameters)}')
    for name in self.parameters:
      if name not in values:
        raise TableError(f'law {self.name} needs a value of {name!r} besides {", ".join(values)}')
      if name in self.logs and not values[name] > 0:
        raise TableError(f'{name}={values[name]} must be positive in the law {self.name}')
    return np.array([np.log(values[p]) if p in self.logs else values[p] for p in self.parameters], float)

  def loss(self, theta, N, D, U=None, K=None) -> np.ndarray:
    """Loss in nats per token at N parameters and D tokens (broadcast together), U unique tokens, K experts."""
    given = {'n': N, 'd': D, 'u': U, 'k': K}
    missing = [key.upper() for key in self.columns if given[key] is None]
    if missing:
      raise TableError(f'law {self.name} needs the column {missing[0]} besides N and D')
    logs = np.broadcast_arrays(*(np.log(np.asarray(given[key], float)) for key in self.columns))
    x = {key: np.ravel(value) for key, value in zip(self.columns, logs)}
    theta = np.asarray(theta, float)
    return np.exp(self.log_loss(theta, x, np)).reshape(theta.shape[:-1] + logs[0].shape)


def _lse(u, v, xp):
  """ln(exp u + exp v), also for complex arguments with small imaginary parts."""
  m = xp.maximum(xp.real(u), xp.real(v))
  return m + xp.log(xp.exp(u - m) + xp.exp(v - m))


def _share(u, v):
  """exp(u) / (exp(u) + exp(v)) without overflow."""
  return 0.5 * (1.0 + np.tanh(0.5 * (u - v)))


def _columns(theta):
  return [theta[..., i, None] for i in range(theta.shape[-1])]


def _head(e, u, v, k, offset, xp):
  """ln loss of the parts; e None: no irreducible loss; k = ln q, None: q = 1; offset ln L0 bounds the loss by L0."""
  if k is None:
    s = _lse(u, v, xp)
  else:
    q = xp.exp(k)
    s = q * _lse(u / q, v / q, xp)
  if offset is not None:
    return _lse(e, offset + s, xp) - _lse(s, 0.0 * s, xp)
  return s if e is None else _lse(e, s, xp)


def _two_terms(spec, chain, offset=None):
  """(log_loss, jacobian, terms) of a law whose parts are spec(coordinates, xp) = (e, a, b, alpha, beta, k).

  chain: {part: [(coordinate, factor)]}, the derivative of each part by each coordinate; a factor may be a function of
  the coordinates.
  """
  def parts(theta, x, xp):
    e, a, b, alpha, beta, k = spec(_columns(theta), xp)
    return e, a - alpha * x['n'], b - beta * x['d'], k

  def log_loss(theta, x, xp=np):
    return _head(*parts(theta, x, xp), offset, xp)

  def jacobian(theta, x):
    e, u, v, k = parts(theta, x, np)
    q = 1.0 if k is None else np.exp(k)
    p, gap = _share(u / q, v / q), np.abs(u - v) / q
    s = np.maximum(u, v) + q * np.log1p(np.exp(-gap))
    if offset is not None:
      by_e = _share(e, offset + s)
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


def _links(*order):
  return {part: [(i, 1.0)] for i, part in enumerate(order)}


def _append(values):
  """Start of a law that adds coordinates to the additive one: a lane for each combination of their values."""
  def start(theta):
    lanes = theta
    for column in values:
      lanes = np.concatenate([np.concatenate([lanes, np.full(lanes.shape[:-1] + (1,), c)], -1) for c in column], 0)
    return lanes
  return start


def additive() -> Law:
  """Chinchilla's third approach."""
  return Law('additive', 'E + A/N^alpha + B/D^beta', 'Hoffmann et al. 2022, arXiv:2203.15556, section 3.3', STANDARD,
             *_two_terms(lambda t, xp: (*t, None), _links('e', 'a', 'b', 'alpha', 'beta')), start=lambda s: s)


def tied() -> Law:
  """The additive law with one exponent: the optimal ratio of tokens to parameters does not depend on compute."""
  chain = {**_links('e', 'a', 'b', 'alpha'), 'beta': [(3, 1.0)]}
  return Law('tied', 'E + A/N^alpha + B/D^alpha', 'Muennighoff et al. 2023, arXiv:2305.16264, appendix A', STANDARD[:4],
             *_two_terms(lambda t, xp: (*t, t[3], None), chain),
             pairs=(('A', 'alpha', 'n', 1.0), ('B', 'alpha', 'd', 1.0)),
             start=lambda s: np.stack([s[..., 0], s[..., 1], s[..., 2], (s[..., 3] + s[..., 4]) / 2], -1),
             bounds={'alpha': (0.01, 3.0)})


def kaplan() -> Law:
  """No irreducible loss; the paper's constants are N_c = A^(1/alpha) and D_c = B^(1/beta)."""
  chain = {**_links('a', 'b', 'alpha', 'beta'), 'k': [(3, lambda t: 1.0 / t[3])]}
  return Law('kaplan', '[(A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta)]^beta',
             'Kaplan et al. 2020, arXiv:2001.08361, equation 1.5', STANDARD[1:],
             *_two_terms(lambda t, xp: (None, *t, xp.log(t[3])), chain), logs=('A', 'B'), start=lambda s: s[..., 1:])


def coupled() -> Law:
  """Nests the additive law (q = 1), Kaplan's (E = 0, q = beta) and the larger of two terms (q -> 0)."""
  values = (-1.5, -0.5, 0.0, 0.4)
  return Law('coupled', 'E + [(A/N^alpha)^(1/q) + (B/D^beta)^(1/q)]^q',
             'a join of Kaplan et al. 2020 (equation 1.5) and Hoffmann et al. 2022 (section 3.3)', (*STANDARD, 'q'),
             *_two_terms(lambda t, xp: t, _links('e', 'a', 'b', 'alpha', 'beta', 'k')), logs=('E', 'A', 'B', 'q'),
             start=_append([values]), bounds={**EXPONENTS, 'q': (0.02, 50.0)})


def overtraining() -> Law:
  """Loss by tokens per parameter M = D/N and compute C = 6 N D, one exponent: E + (A M^eta + B M^-eta) C^-eta.

  As M^eta C^-eta = (6 N^2)^-eta this is the tied law with exponent 2 eta.
  """
  def spec(t, xp):
    return t[0], t[1] - LN6 * t[3], t[2] - LN6 * t[3], 2.0 * t[3], 2.0 * t[3], None
  chain = {'e': [(0, 1.0)], 'a': [(1, 1.0), (3, -LN6)], 'b': [(2, 1.0), (3, -LN6)], 'alpha': [(3, 2.0)],
           'beta': [(3, 2.0)]}
  return Law('overtraining', 'E + (A M^eta + B M^-eta) C^-eta, M = D/N, C = 6ND',
             'Gadre et al. 2024, arXiv:2403.08540, equation 4', ('E', 'A', 'B', 'eta'), *_two_terms(spec, chain),
             pairs=(('A', 'eta', 'n', 2.0), ('B', 'eta', 'd', 2.0)), bounds={'eta': (0.005, 1.5)},
             start=lambda s: np.stack([s[..., 0], s[..., 1], s[..., 2], (s[..., 3] + s[..., 4]) / 4], -1))


def bounded(uninformed: float) -> Law:
  """E + (L0 - E) h/(1 + h), h = A/N^alpha + B/D^beta: never above the uninformed loss L0 = ln(vocabulary), in nats."""
  if not uninformed > 0:
    raise TableError(f'uninformed loss {uninformed} must be positive: ln(vocabulary) in nats, ln 256 = 5.545 for bytes')
  return Law('bounded', f'E + ({uninformed:.4g} - E) h/(1+h), h = A/N^alpha + B/D^beta',
             'arXiv:2605.09189, without its overfitting term', STANDARD,
             *_two_terms(lambda t, xp: (*t, None), _links('e', 'a', 'b', 'alpha', 'beta'), float(np.log(uninformed))),
             start=lambda s: s - np.array([0.0, *2 * [np.log(uninformed)], 0.0, 0.0]))


def _complex_step(log_loss):
  """d ln loss / d theta to machine precision (Squire and Trapp 1998): Im f(theta + i h) / h with h = 1e-30."""
  def jacobian(theta, x):
    columns = []
    for i in range(theta.shape[-1]):
      moved = theta.astype(complex)
      moved[..., i] += 1e-30j
      columns.append(log_loss(moved, x, np).imag / 1e-30)
    return np.stack(columns, -1)
  return jacobian


def repeated(base: Law) -> Law:
  """`base` at effective tokens and parameters when D tokens are read from U unique ones (column U).

  D' = U_D (1 + R_D* (1 - exp(-R/R_D*))) with U_D = min(U, D) and R = D/U_D - 1 repetitions; N' likewise from
  U_N = min(N, the compute-optimal N of U_D tokens). R_D and R_N are the decay constants R_D*, R_N*.
  """
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
    mapped = effective(theta, x, xp)
    return base.log_loss(theta[..., :size], mapped, xp)

  names = base.parameters + ('R_D', 'R_N')
  return Law(f'repeated_{base.name}', f'{base.formula} at effective N, D of U unique tokens',
             f'Muennighoff et al. 2023, arXiv:2305.16264, section 3; head: {base.source}', names, log_loss,
             _complex_step(log_loss), lambda theta, x=None, xp=np: None,
             start=lambda s: _append([np.log([5.0, 20.0, 80.0]), np.log([2.0, 10.0])])(base.start(s)),
             logs=base.logs + ('R_D', 'R_N'), pairs=base.pairs, columns=('n', 'd', 'u'),
             bounds={**base.bounds, 'R_D': (0.1, 1000.0), 'R_N': (0.1, 1000.0)})


def experts(base: Law) -> Law:
  """`base` at the effective parameters of K experts (column K): ln N' = ln N + (s + t ln N) ln K, N active parameters.

  The effective count of a bilinear law a ln N + b ln K + c ln N ln K + d, with s = b/a and t = c/a; the saturation of K
  in that paper is left out, so the map holds well below its saturating number of experts.
  """
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
             base.parameters + ('s', 't'), log_loss, _complex_step(log_loss), terms,
             start=lambda v: _append([(0.5,), (0.0,)])(base.start(v)), logs=base.logs, pairs=base.pairs,
             columns=('n', 'd', 'k'), bounds=dict(base.bounds))


LAWS = {'additive': additive, 'tied': tied, 'kaplan': kaplan, 'coupled': coupled, 'overtraining': overtraining,
        'repeated': lambda: repeated(additive()), 'repeated_tied': lambda: repeated(tied()),
        'repeated_coupled': lambda: repeated(coupled()), 'experts': lambda: experts(additive())}


def law(name: str, uninformed: float | None = None) -> Law:
  """A law by name; `bounded` needs the uninformed loss ln(vocabulary) in nats."""
  if name == 'bounded':
    if uninformed is None:
      raise TableError('law bounded needs the uninformed loss ln(vocabulary) in nats, such as 5.545 for 256 bytes')
    return bounded(uninformed)
  if name not in LAWS:
    names = (*LAWS, 'bounded')
    raise TableError(f'law {name!r} is not one of {", ".join(names)}{nearest(name, names)}')
  return LAWS[name]()


def allocation(law: Law, theta, C, flops_per_parameter_token: float = 6.0, K=None) -> tuple[np.ndarray, np.ndarray]:
  """ln N and ln D that minimise the loss at C = 6 N D FLOPs, for theta[..., P] and C broadcast.

  Closed form: N = G (C/6)^(beta/(alpha+beta)), G = ((alpha/beta)^q A/B)^(1/(alpha+beta)); a head that is monotone in
  the joined terms does not move it. A law of repeated data has none: `plan.with_repetition` searches.
  """
  theta = np.asarray(theta)
  if K is not None and not np.all(np.asarray(K, float) >= 1):
    raise TableError(f'K={K} experts: expected at least 1')
  t = law.terms(theta, {'k': 0.0 if K is None else np.log(K)})
  if t is None:
    raise TableError(f'law {law.name} has no closed-form optimum; use the planner with a number of unique tokens')
  total = np.log(np.asarray(C, float) / flops_per_parameter_token)
  with np.errstate(invalid='ignore', divide='ignore'):  # exponents of opposite sign have no optimum: NaN
    balance = (t.q * np.log(t.alpha / t.beta) + t.a - t.b) / (t.alpha + t.beta)
    n = balance + t.beta / (t.alpha + t.beta) * total
  return n, total - n
