"""The best learning rate and batch of each size, as laws: rate*(N, D) and batch*(D), from any sweep.

In each cell the loss is a quadratic in ln rate and ln batch near its least; its middle is the cell's optimum, with an
interval from the scatter about all quadratics together. An optimum at an edge of what was tried, or no valley at all, is
no optimum: the cell is left out of the laws, and what to run next is said. The laws are lines in logarithms, with
intervals that let the cells of a size err together.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from foundation.errors import ConfigError
from scaling import sandwich
from scaling.columns import SELECTED
from scaling.objective import Loss
from scaling.observations import Counting, Observations, levels
from scaling.selection import CELL, cells
from scaling.table import Runs

NEAR = 0.05  # of ln loss above the least, within which a quadratic is taken for the valley's shape


@dataclasses.dataclass(frozen=True)
class Optimum:
  """Of one cell: the setting {axis: value} of least loss, and that loss in nats per token.

  low, high: the setting's interval. edge: {axis: the value to try next} where the valley is not closed. error: standard
  error of ln setting.
  """
  N: float
  D: float
  loss: float
  setting: dict[str, float]
  low: dict[str, float]
  high: dict[str, float]
  edge: dict[str, float]
  runs: int


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """setting = scale x product of column^exponent. low, high: of `scale` and the exponents."""
  name: str
  columns: tuple[str, ...]
  values: np.ndarray  # ln scale, exponents
  low: np.ndarray
  high: np.ndarray
  covariance: np.ndarray
  degrees: float
  rms: float
  cells: int

  def at(self, level: float = 0.9, **columns: float) -> tuple[float, float, float]:
    """(value, low, high) of the setting at these columns, with the scatter of a cell about the law in the interval."""
    x = np.array([1.0, *(np.log(columns[name]) for name in self.columns)])
    middle = float(x @ self.values)
    half = np.sqrt(sandwich.limit(level, self.degrees) * (x @ self.covariance @ x + self.rms ** 2))
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half))

  def __str__(self) -> str:
    powers = ' '.join(f'{name}^{value:.3f}' for name, value in zip(self.columns, self.values[1:]))
    spread = ', '.join(f'{name} [{a:.3f}, {b:.3f}]' for name, a, b in zip(self.columns, self.low[1:], self.high[1:]))
    return (f'{self.name}* = {np.exp(self.values[0]):.4g} {powers}   {spread}   ({self.cells} cells, '
            f'{100 * self.rms:.0f} % about it)')


def _quadratic(axes: np.ndarray) -> np.ndarray:
  """Columns 1, x_i, x_i x_j of axes [rows, A]."""
  size = axes.shape[1]
  return np.stack([np.ones(len(axes)), *axes.T, *(axes[:, i] * axes[:, j] for i in range(size) for j in range(i, size))], 1)


def _valley(coefficients, size: int) -> tuple[np.ndarray, np.ndarray]:
  """(gradient at 0, second derivative) of a quadratic's coefficients."""
  second, place = np.zeros((size, size)), 1 + size
  for i in range(size):
    for j in range(i, size):
      second[i, j] += coefficients[place]
      second[j, i] += coefficients[place]
      place += 1
  return coefficients[1:1 + size], second


@dataclasses.dataclass(frozen=True)
class _Cell:
  """A fitted quadratic: of ln loss in the logarithms of `names`, about `centre`."""
  rows: np.ndarray
  names: tuple[str, ...]
  centre: np.ndarray
  axes: np.ndarray
  coefficients: np.ndarray
  inverse: np.ndarray
  squares: float
  spare: int


def _fit(o: Observations, tried, rows) -> _Cell | None:
  names = tuple(name for name in SELECTED if name in tried and len(levels(tried[name][rows], CELL)[0]) >= 3)
  need = 1 + len(names) + len(names) * (len(names) + 1) // 2
  if not names or len(rows) < need:
    return None
  y = np.log(o.loss[rows])
  order = np.argsort(y)
  near = rows[order[:max(int((y <= y.min() + NEAR).sum()), min(need + 1, len(rows)))]]
  axes = np.log(np.stack([tried[name][near] for name in names], 1))
  centre = axes.mean(0)
  basis = _quadratic(axes - centre)
  if np.linalg.matrix_rank(basis) < need:
    near, axes = rows, np.log(np.stack([tried[name][rows] for name in names], 1))
    centre = axes.mean(0)
    basis = _quadratic(axes - centre)
    if np.linalg.matrix_rank(basis) < need:
      return None
  y = np.log(o.loss[near])
  coefficients = np.linalg.lstsq(basis, y, rcond=None)[0]
  return _Cell(rows, names, centre, axes, coefficients, np.linalg.pinv(basis.T @ basis),
               float(((y - basis @ coefficients) ** 2).sum()), len(near) - need)


def _optimum(o: Observations, tried, cell: _Cell, variance: float, degrees: int, level: float) -> Optimum:
  size, rows = len(cell.names), cell.rows
  gradient, second = _valley(cell.coefficients, size)
  best = rows[np.argmin(o.loss[rows])]
  closed = bool(np.linalg.eigvalsh(second).min() > 0)
  middle = -np.linalg.solve(second, gradient) if closed else np.log([tried[name][best] for name in cell.names]) - cell.centre
  # d middle / d coefficients, of second @ middle = -gradient
  by = np.zeros((size, len(cell.coefficients)))
  if closed:
    inverse, place = np.linalg.inv(second), 1 + size
    by[:, 1:1 + size] = -inverse
    for i in range(size):
      for j in range(i, size):
        moved = np.zeros(size)
        moved[i] += middle[j]
        moved[j] += middle[i]
        by[:, place] = -inverse @ moved
        place += 1
  error = np.sqrt(np.einsum('ai,ij,aj->a', by, cell.inverse, by) * variance)
  half = np.sqrt(sandwich.limit(level, degrees)) * error if closed else np.full(size, np.inf)
  setting: dict[str, float] = {}
  low, high, edge = dict(setting), dict(setting), dict(setting)
  for i, name in enumerate(cell.names):
    values = np.sort(levels(tried[name][rows], CELL)[0])
    least = float(np.exp(middle[i] + cell.centre[i]))
    setting[name], low[name], high[name] = least, float(least * np.exp(-half[i])), float(least * np.exp(half[i]))
    at = tried[name][best]
    if least <= values[0] or not closed and at <= values[0] * 1.01:
      edge[name] = float(values[0] ** 2 / values[1])
    elif least >= values[-1] or not closed and at >= values[-1] / 1.01:
      edge[name] = float(values[-1] ** 2 / values[-2])
  with np.errstate(all='ignore'):
    loss = np.exp(cell.coefficients[0] + 0.5 * gradient @ middle) if closed and not edge else o.loss[best]
  if not closed and not edge:
    edge = {name: setting[name] for name in cell.names}  # a ridge: the best setting itself, again
  return Optimum(float(np.exp(np.log(o.N[rows]).mean())), float(np.exp(np.log(o.D[rows]).mean())), float(loss), setting,
                 low, high, edge, len(rows))


def optima(runs: Runs, counting: Counting = Counting(), level: float = 0.9) -> tuple[list[Optimum], list[str]]:
  """(the optimum of each cell that tries three rates or batches, by N and D; why the other cells have none)."""
  tried = {name: runs.numbers[name] for name in SELECTED if name in runs.numbers}
  if not tried:
    raise ConfigError(f'{runs.source}: no learning rate and no batch; expected a column lr or batch')
  known = np.all([np.isfinite(v) & (v > 0) for v in tried.values()], axis=0)
  o, tried = runs.take(known).observe(counting), {name: v[known] for name, v in tried.items()}
  label = cells(o)
  found, left = [], []
  for number in range(label.max() + 1):
    rows = np.flatnonzero(label == number)
    cell = _fit(o, tried, rows)
    if cell is None:
      left.append(f'N={o.N[rows[0]]:.4g}, D={o.D[rows[0]]:.4g}: {len(rows)} runs; expected three rates or batches or more, '
                  'and more runs than a quadratic has terms')
    else:
      found.append(cell)
  if not found:
    raise ConfigError(f'{runs.source}: no cell has a valley to find; {left[0] if left else ""}')
  spare = sum(cell.spare for cell in found)
  # without a run to spare nothing is known of the noise: the intervals are then without end
  variance = sum(cell.squares for cell in found) / spare if spare else np.inf
  out = [_optimum(o, tried, cell, variance, max(spare, 1), level) for cell in found]
  return sorted(out, key=lambda item: (item.N, item.D)), left


def law(name: str, found: Sequence[Optimum], columns: Sequence[str], level: float = 0.9) -> PowerLaw:
  """The line in logarithms through the closed optima of an axis. Raises ConfigError if there are too few."""
  kept = [item for item in found if name in item.setting and name not in item.edge]
  columns = tuple(columns)
  if len(kept) < len(columns) + 3:
    raise ConfigError(f'{len(kept)} cells have a best {name} inside what was tried; expected {len(columns) + 3} or more '
                      f'for a law of {" and ".join(columns)}')
  X = np.stack([np.ones(len(kept)), *(np.log([getattr(item, column) for item in kept]) for column in columns)], 1)
  for i, column in enumerate(columns, 1):
    if np.ptp(X[:, i]) < 0.02:
      raise ConfigError(f'all cells with a best {name} have the same {column}; a law of it needs several')
  if len(columns) == 2 and np.linalg.svd(X - X.mean(0), compute_uv=False)[1] < 0.02 * len(kept) ** 0.5:
    raise ConfigError(f'{" and ".join(columns)} rise together in all cells; a law of both cannot be told from one of each')
  y = np.log([item.setting[name] for item in kept])
  values = np.linalg.lstsq(X, y, rcond=None)[0]
  residual, labels = X @ values - y, levels([item.N for item in kept], CELL)[1]
  plain = np.linalg.inv(X.T @ X) * float(residual @ residual) / (len(kept) - X.shape[1])
  low, high, degrees = np.empty(len(values)), np.empty(len(values)), []
  scale = []
  for i, slope in enumerate(np.eye(len(values))):
    ratio, free = sandwich.spread(Loss('squares'), residual[None], X[None], slope[None], labels)
    scale.append(1.0 / float(ratio[0]))
    half = np.sqrt(sandwich.limit(level, float(free[0])) * plain[i, i] * scale[-1])
    low[i], high[i] = values[i] - half, values[i] + half
    degrees.append(float(free[0]))
  root = np.sqrt(np.array(scale))
  return PowerLaw(name, columns, values, low, high, plain * np.outer(root, root), min(degrees),
                  float(np.sqrt(residual @ residual / (len(kept) - X.shape[1]))), len(kept))


def laws(found: Sequence[Optimum], level: float = 0.9) -> tuple[dict[str, PowerLaw], list[str]]:
  """({axis: its law}, why one is missing): the rate by N and D, or by the one that varies; the batch by D."""
  out, reasons = {}, []
  for name, choices in (('lr', (('N', 'D'), ('N',), ('D',))), ('batch', (('D',),))):
    if not any(name in item.setting for item in found):
      continue
    for columns in choices:
      try:
        out[name] = law(name, found, columns, level)
        break
      except ConfigError as error:
        reasons.append(str(error))
  return out, reasons


def next_cells(runs: Runs, counting: Counting = Counting()) -> list[dict[str, float]]:
  """What to run next: {N, D, lr, batch} a step beyond each edge at which a cell's optimum lies.

  A sweep file calls it on the runs that there are, and adds these to its cells.
  """
  found, _ = optima(runs, counting)
  return [{'N': item.N, 'D': item.D, **item.setting, **item.edge} for item in found if item.edge]


def settings(runs: Runs, N: float, D: float, counting: Counting = Counting()) -> dict[str, float]:
  """{lr, batch} that the laws of these runs give to a run of N parameters and D tokens."""
  found, _ = laws(optima(runs, counting)[0])
  return {name: power.at(N=N, D=D)[0] for name, power in found.items()}


def observations(found: Sequence[Optimum], source: str = 'optima') -> Observations:
  """The least loss of each cell with a closed valley, for the law of the loss."""
  kept = [item for item in found if not item.edge]
  o = Observations.of(*(np.array([getattr(item, name) for item in kept]) for name in ('N', 'D', 'loss')))
  return dataclasses.replace(o, source=source, rows=tuple(f'cell N={item.N:.4g}, D={item.D:.4g}' for item in kept))


def text(runs: Runs, counting: Counting = Counting(), N: float = 0.0, D: float = 0.0, level: float = 0.9) -> str:
  """A row a cell, the laws of rate and batch, their values at N and D, and what to run next."""
  found, left = optima(runs, counting, level)
  names = [name for name in SELECTED if any(name in item.setting for item in found)]
  lines = [f'{"N":>10s} {"D":>10s} {"loss":>8s} {"runs":>5s} ' + ' '.join(f'{name + "*":>10s} {f"{100 * level:g} %":>24s}'
                                                                          for name in names)]
  for item in found:
    line = f'{item.N:10.4g} {item.D:10.4g} {item.loss:8.4f} {item.runs:5d} '
    for name in names:
      if name not in item.setting:
        line += f'{"":>10s} {"not varied":>24s} '
      else:
        bounds = f'edge: try {item.edge[name]:.4g}' if name in item.edge else f'[{item.low[name]:.4g}, {item.high[name]:.4g}]'
        line += f'{item.setting[name]:10.4g} {bounds:>24s} '
    lines.append(line.rstrip())
  powers, reasons = laws(found, level)
  lines += [str(power) for power in powers.values()]
  if N and D:
    for name, power in powers.items():
      value, low, high = power.at(level, N=N, D=D)
      lines.append(f'{name}* at N={N:.4g}, D={D:.4g}: {value:.4g}, {100 * level:g} % [{low:.4g}, {high:.4g}]')
  lines += [f'left out: {reason}' for reason in (*reasons, *left)]
  return '\n'.join(lines)
