"""What to train next: the compute optimum, and its versions with inference, repeated data, money and time.

Costs are FLOPs, seconds or dollars; training costs k N D FLOPs, k by the table's count (6 the usual), and a served token
a third of that a token, 2 N (prefill and decode at their own rates), as in Sardana et al. 2024, arXiv:2401.00448,
section 2.
"""

import dataclasses
import pathlib

import numpy as np
from scipy import optimize

from foundation import reading
from foundation.errors import ConfigError, nearest
from scaling.fit import Fit
from scaling.laws import allocation
from scaling.uncertainty import Quantity, loss_at, n_opt

UNITS = ('flops', 'seconds', 'dollars')


@dataclasses.dataclass(frozen=True)
class Rates:
  """How fast and dear the machine is: useful FLOP/s in training, prefill and decode, and dollars per hour.

  Zero: unknown; a budget that needs it is refused. Prefill and decode default to the training rate.
  """
  flops_per_second: float = 0.0
  dollars_per_hour: float = 0.0
  prefill_flops_per_second: float = 0.0
  decode_flops_per_second: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not (np.isfinite(value) and value >= 0):
        raise ConfigError(f'{field.name}={value}: expected a positive number')

  @classmethod
  def of_machine(cls, path: str, k: float, **others: float) -> 'Rates':
    """Of a file that experiments.plan --output wrote: tokens a second there as FLOP/s, at k FLOPs a parameter and token.

    others: fields that are given otherwise; what is 0 among them is the file's.

    Raises:
      ConfigError: another file, or a plan without a bound.
    """
    about = reading.value(pathlib.Path(path).expanduser(), {
        'parameters': int, 'tokens_per_second': float, 'dollars_per_hour': float, 'target': str})
    if not about['tokens_per_second'] > 0:
      raise ConfigError(f'{path} is a plan for {about["target"]}, of whose rates nothing is known; expected a GPU or TPU')
    own = {'flops_per_second': k * about['parameters'] * about['tokens_per_second'],
           'dollars_per_hour': about['dollars_per_hour']}
    return cls(**others | {name: value for name, value in own.items() if not others.get(name)})

  def flops(self, budget: float, unit: str = 'flops') -> float:
    """Training FLOPs that a budget in FLOPs, seconds or dollars buys."""
    if unit not in UNITS:
      raise ConfigError(f'budget unit {unit!r} is not one of {", ".join(UNITS)}{nearest(unit, UNITS)}')
    if not (np.isfinite(budget) and budget > 0):
      raise ConfigError(f'budget={budget} {unit}: expected a positive number')
    if unit == 'flops':
      return budget
    if not self.flops_per_second:
      raise ConfigError(f'a budget in {unit} needs flops_per_second, the useful FLOP/s of the machine')
    if unit == 'dollars' and not self.dollars_per_hour:
      raise ConfigError('a budget in dollars needs dollars_per_hour')
    return budget * self.flops_per_second * (1.0 if unit == 'seconds' else 3600.0 / self.dollars_per_hour)

  def cost(self, N, D, prefill: float = 0.0, decode: float = 0.0, k: float = 6.0):
    """Cost of training N on D tokens and serving so many, in training-equivalent FLOPs (time at each stage's rate)."""
    base = self.flops_per_second or 1.0
    stages = [(prefill, self.prefill_flops_per_second), (decode, self.decode_flops_per_second)]
    if any(rate for _, rate in stages) and not self.flops_per_second:
      raise ConfigError('prefill and decode rates need flops_per_second, the training rate they are compared with')
    return k * N * D + sum(k / 3.0 * N * tokens * base / (rate or base) for tokens, rate in stages)


@dataclasses.dataclass(frozen=True)
class Plan:
  """One recommended run. loss in nats per token; C training FLOPs; cost in training-equivalent FLOPs.

  near: least and greatest N whose loss is within 0.1 % of this one's at the same cost. notes: what to know.
  """
  N: float
  D: float
  C: float
  loss: float
  cost: float
  near: tuple[float, float]
  epochs: float = 1.0
  notes: tuple[str, ...] = ()

  @property
  def ratio(self) -> float:
    """Tokens per parameter."""
    return self.D / self.N


def _far(result: Fit, C: float) -> tuple[str, ...]:
  reach = C / result.observations.C.max()
  notes = (f'{reach:.3g} times the largest compute fitted: an extrapolation',) if reach > 1 else ()
  return notes + (() if result.accepted else ('the fit was not accepted',))


@np.errstate(all='ignore')
def compute_optimal(result: Fit, C: float, K: float | None = None, at=None) -> Plan:
  """Least loss for C training FLOPs. K, at: see `Law.others`."""
  if 'u' in result.law.columns:
    raise ConfigError(f'law {result.law.name} needs a number of unique tokens: use with_repetition')
  k = result.observations.convention.k
  n, d = (float(v) for v in allocation(result.law, result.theta, C, k, K, at))
  if not (np.isfinite(n) and np.isfinite(d)):
    why = 'its loss falls or rises with size all the way' if result.law.terms is None else \
        'its exponents are not both positive'
    raise ConfigError(f'the law {result.law.name} has no optimum here: {why}')
  sizes = np.exp(n + np.linspace(-4, 4, 1601))
  losses = result.predict(sizes, C / (k * sizes), **({} if K is None else {'K': K}), **(at or {}))
  if not np.isfinite(losses).all():
    raise ConfigError(f'the fitted law gives no loss around its optimum of {np.exp(n):.3g} parameters')
  return Plan(np.exp(n), np.exp(d), C, float(losses[800]), C, _near(sizes, losses), notes=_far(result, C))


def _near(sizes, losses) -> tuple[float, float]:
  good = sizes[losses <= losses.min() * 1.001]
  return float(good.min()), float(good.max())


@np.errstate(all='ignore')
def with_repetition(result: Fit, C: float, unique: float) -> Plan:
  """Least loss for C training FLOPs when only `unique` tokens exist; more tokens are repetitions of them."""
  if 'u' not in result.law.columns:
    raise ConfigError(f'law {result.law.name} knows no repetition; fit repeated, repeated_tied or repeated_coupled')
  if not unique > 0:
    raise ConfigError(f'unique tokens {unique}: expected a positive number')
  k = result.observations.convention.k
  middle = 0.5 * np.log(C / k)
  sizes = np.exp(middle + np.linspace(-12, 12, 4801))
  losses = result.predict(sizes, C / (k * sizes), U=unique)
  best = int(np.argmin(losses))
  if best in (0, len(sizes) - 1):
    raise ConfigError(f'no optimum between {sizes[0]:.3g} and {sizes[-1]:.3g} parameters at C={C:.3g}')
  D = C / (k * sizes[best])
  epochs = max(D / unique, 1.0)
  seen = (result.observations.D / result.observations.U).max()
  notes = _far(result, C)
  if epochs > seen:
    notes += (f'{epochs:.1f} epochs, more than the {seen:.1f} of any fitted run',)
  return Plan(float(sizes[best]), float(D), C, float(losses[best]), C, _near(sizes, losses), float(epochs), notes)


def tokens_for(result: Fit, N, loss: float):
  """Tokens at which N parameters reach the loss (nats per token); inf where no number of tokens does."""
  N = np.atleast_1d(np.asarray(N, float))
  low, high = np.full(N.shape, np.log(1.0)), np.full(N.shape, np.log(1e30))
  for _ in range(100):
    middle = 0.5 * (low + high)
    above = result.predict(N, np.exp(middle)) > loss
    low, high = np.where(above, middle, low), np.where(above, high, middle)
  return np.where(result.predict(N, 1e30) <= loss, np.exp(high), np.inf)


@np.errstate(all='ignore')
def inference_aware(result: Fit, loss: float, prefill: float = 0.0, decode: float = 0.0,
                    rates: Rates = Rates()) -> tuple[Plan, float]:
  """(plan, share of cost saved) of the cheapest model that reaches the loss and serves so many tokens over its life.

  The saving is against the compute-optimal model of the same loss, serving as much.
  """
  if 'u' in result.law.columns or 'k' in result.law.columns:
    raise ConfigError(f'law {result.law.name}: inference-aware plans know laws of N and D alone')
  floor = float(result.predict(1e25, 1e25))
  if not loss > floor:
    raise ConfigError(f'loss {loss} is not above {floor:.4f}, the least that the law allows at any size')

  k = result.observations.convention.k

  def cost(n):
    size = np.exp(n)
    return float(np.log(rates.cost(size, tokens_for(result, size, loss)[0], prefill, decode, k)))

  def best(price):
    grid = np.linspace(np.log(1e2), np.log(1e16), 281)
    sizes = np.exp(grid)
    prices = price(sizes, tokens_for(result, sizes, loss))
    i = int(np.argmin(prices))
    inner = lambda n: float(np.log(price(np.exp(n), tokens_for(result, np.exp(n), loss)[0])))
    return float(np.exp(optimize.minimize_scalar(inner, bounds=(grid[max(i - 1, 0)], grid[min(i + 1, 280)]),
                                                 method='bounded', options={'xatol': 1e-10}).x))

  N = best(lambda size, tokens: rates.cost(size, tokens, prefill, decode, k))
  plain = best(lambda size, tokens: k * size * tokens)
  D = float(tokens_for(result, N, loss)[0])
  total, before = np.exp(cost(np.log(N))), np.exp(cost(np.log(plain)))
  sizes = N * np.exp(np.linspace(-4, 4, 801))
  total_near = rates.cost(sizes, tokens_for(result, sizes, loss), prefill, decode, k)
  good = sizes[total_near <= total * 1.01]
  return Plan(N, D, k * N * D, loss, float(total), (float(good.min()), float(good.max())),
              notes=_far(result, k * N * D)), float(1.0 - total / before)


@dataclasses.dataclass(frozen=True)
class Purchase:
  """A run to buy. sd_before, sd_after: of the target quantity's value (a logarithm for N_opt). cost: FLOPs."""
  N: float
  D: float
  repeat: int  # how many runs of this cell there are then
  cost: float
  sd_before: float
  sd_after: float
  U: float  # unique tokens
  K: float = 1.0  # experts


@dataclasses.dataclass(frozen=True)
class _Cells:
  """The runs on offer, [cells] each: N, D, unique tokens U, experts K, and their cost in FLOPs, k N D."""
  N: np.ndarray
  D: np.ndarray
  U: np.ndarray
  K: np.ndarray
  k: float

  @property
  def cost(self) -> np.ndarray:
    return self.k * self.N * self.D


def _offer(result: Fit, sizes, tokens, unique: float, epochs, K: float) -> _Cells:
  """Every size at every number of tokens, of epochs (a law of repeated data) and of experts (a law of experts)."""
  o, columns = result.observations, result.law.columns
  doubling = lambda v: v.min() * 2.0 ** np.arange(0, np.ceil(np.log2(v.max() / v.min())) + 2)
  sizes = doubling(o.N) if sizes is None else np.asarray(sizes, float)
  tokens = doubling(o.D) if tokens is None else np.asarray(tokens, float)
  epochs = epochs if 'u' in columns else (1,)
  experts = np.unique([1.0, K, *o.K]) if 'k' in columns else (1.0,)  # type: ignore[misc]  # its runs have K
  n, d, e, k = (g.ravel() for g in np.meshgrid(sizes, tokens, epochs, experts, indexing='ij'))
  exist = d / e <= unique if 'u' in columns else np.ones(len(n), bool)
  exist &= d >= n * min(1.0, (o.D / o.N).min())  # a table of runs with fewer tokens than parameters is refused
  return _Cells(n[exist], d[exist], (d / e)[exist], k[exist], o.convention.k)


def _wanted(result: Fit, C: float, unique: float, K: float) -> Quantity:
  """What the next runs shall tell: N_opt(C), or of repeated data the loss of its best run."""
  if 'u' in result.law.columns:
    best = with_repetition(result, C, unique)
    return loss_at(result.law, best.N, best.D, min(unique, best.D))
  return n_opt(result.law, C, K if 'k' in result.law.columns else None, result.observations.convention.k)


def _check_next(result: Fit, C: float, budget: float, unique: float) -> None:
  law = result.law
  if not law.decides and 'u' not in law.columns or set(law.columns) - set('nduk'):
    raise ConfigError(f'law {law.name} reads {", ".join(c.name for c in law.reads)}; next runs are chosen over N and D, '
                      'U and K alone')
  if 'u' in law.columns and not unique > 0:
    raise ConfigError(f'law {law.name}: next runs need the number of unique tokens that exist (--unique)')
  for name, value in (('budget', budget), ('C', C)):
    if not (np.isfinite(value) and value > 0):
      raise ConfigError(f'{name}={value}: expected a positive number of FLOPs')


@np.errstate(all='ignore')
def next_runs(result: Fit, C: float, budget: float, sizes=None, tokens=None, quantity: Quantity | None = None,
              seed_noise: float = 0.0, misfit: float = 0.002, largest: float = 0.5, unique: float = 0.0,
              epochs=(1, 2, 4, 8, 16, 32), K: float = 1.0) -> list[Purchase]:
  """Greedy purchases: each time the run that cuts the variance of ln N_opt(C) most per FLOP, until the budget is spent.

  A law of repeated data wants to know the loss of its best run when `unique` tokens exist, and is offered every cell at
  every number of `epochs` that no more tokens than these need. A law of experts wants to know N_opt of K experts, and
  is offered every cell at one expert, at K and at the numbers that were run; all cost k N D of their active parameters.

  A cell's ln loss has variance seed_noise^2 / repeats + (misfit * decades below C)^2: repeats stop once the seeds'
  part is below the other, and small runs never become proof about a large one. seed_noise 0: the residual rms.
  largest: greatest share of the budget for one run. sizes, tokens: the cells on offer (default: a grid of factors of
  two over the fitted range and one step beyond).
  """
  o, law = result.observations, result.law
  _check_next(result, C, budget, unique)
  quantity = quantity or _wanted(result, C, unique, K)
  cells = _offer(result, sizes, tokens, unique, epochs, K)
  affordable = cells.cost <= largest * budget
  if not affordable.any():
    raise ConfigError(f'budget {budget:.3g} FLOPs: the cheapest cell on offer costs {cells.cost.min():.3g}, more than '
                      f'{largest:g} of it')
  ran = _Cells(o.N, o.D, o.D if o.U is None else o.U,
               o.K if 'k' in law.columns else np.ones(len(o)), o.convention.k)  # type: ignore[arg-type]
  free = np.array([i for i, name in enumerate(law.parameters) if name not in result.fixed])

  def rows(runs):
    x = {'n': np.log(runs.N), 'd': np.log(runs.D), 'u': np.log(runs.U), 'k': np.log(runs.K)}
    return law.jacobian(result.theta[None], x)[0][:, free]

  # coordinates in which the runs' rows are orthogonal
  centre = np.linalg.pinv(np.linalg.qr(rows(ran), mode='r'))
  noise = seed_noise or result.rms
  floor = lambda runs: misfit * np.maximum(np.log10(C / runs.cost), 0.25)
  known = rows(ran) @ centre
  information = (known.T / (noise ** 2 + floor(ran) ** 2)) @ known
  if not np.linalg.cond(information) < 1e12:
    raise ConfigError(f'the {len(o)} runs do not determine the law {law.name}; no next run can be valued by it')
  gradient = quantity.gradient(result.theta[None])[0][free] @ centre
  if not np.isfinite([*gradient, *quantity.value(result.theta[None])]).all():
    raise ConfigError(f'the law {law.name} has no optimum at {C:.3g} FLOPs; no next run can be valued by it')
  if not gradient.any():
    raise ConfigError(f'no free parameter of the law {law.name} moves its {quantity.name}; no next run can be valued by '
                      'it')
  return _buy(cells, affordable, budget, information, rows(cells) @ centre, gradient, noise, floor(cells))


def _buy(cells: _Cells, affordable, budget: float, information, offered, gradient, noise: float, floor
         ) -> list[Purchase]:
  """Greedy purchases of the cells whose rows are `offered`, from the information of the runs that there are.

  gradient: of the quantity. noise, floor [cells]: standard deviations of a seed, and of what no repeat removes.
  """
  cost, bound = cells.cost, floor ** 2
  repeats, unspent = np.zeros(len(cost), int), budget
  bought: list[Purchase] = []
  while True:
    inverse = np.linalg.inv(information)
    before = float(gradient @ inverse @ gradient)
    held = np.where(repeats > 0, 1.0 / (noise ** 2 / np.maximum(repeats, 1) + bound), 0.0)
    added = 1.0 / (noise ** 2 / (repeats + 1) + bound) - held
    along, size = offered @ inverse @ gradient, np.einsum('ij,jk,ik->i', offered, inverse, offered)
    gain = added * along ** 2 / (1.0 + added * size)
    worth = (repeats == 0) | (noise ** 2 / np.maximum(repeats, 1) > bound)
    allowed = worth & affordable & (cost <= unspent)
    if not allowed.any():
      return bought
    i = int(np.argmax(np.where(allowed, gain / cost, -1.0)))
    information = information + added[i] * np.outer(offered[i], offered[i])
    repeats[i] += 1
    unspent -= cost[i]
    bought.append(Purchase(float(cells.N[i]), float(cells.D[i]), int(repeats[i]), float(cost[i]), before ** 0.5,
                           float(gradient @ np.linalg.inv(information) @ gradient) ** 0.5, float(cells.U[i]),
                           float(cells.K[i])))
