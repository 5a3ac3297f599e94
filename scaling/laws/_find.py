"""Finds a law by its name or by the path of its file, and refuses one that contradicts itself."""

import inspect
import sys
from collections.abc import Callable

import numpy as np

from foundation import entries
from foundation.errors import ConfigError, one_line
from scaling.laws._law import Law, complex_step
from scaling.laws._optimum import allocation, searched

EXAMPLES = np.array([[0.5, 6.0, 7.0, 0.34, 0.37], [0.2, 5.0, 6.5, 0.4, 0.3]])  # additive coordinates


def names() -> list[str]:
  """The laws of the package."""
  return entries.names(sys.modules[__package__], 'law')


def law(name: str, uninformed: float | None = None, key: str = 'law') -> Law:
  """The law of a name, or of a path that ends in .py.

  uninformed: ln(vocabulary) in nats, which `bounded` needs. key: the flag or setting that the name is of.

  Raises:
    ConfigError: there is no such law, or its file lacks or contradicts what scaling.laws expects.
  """
  make = entries.find(sys.modules[__package__], name, key, ['law']).law
  subject = f"{key} is '{name}', whose"
  takes = inspect.signature(make).parameters if callable(make) else {}
  if len(takes) > 1:
    raise ConfigError(f'{subject} law() takes {", ".join(takes)}; expected no argument, or one for ln(vocabulary)')
  if takes and uninformed is None:
    raise ConfigError(f'law {name} needs the uninformed loss ln(vocabulary) in nats, such as 5.545 for 256 bytes')
  result = _call(f'{subject} law()', make, *[uninformed] * len(takes))
  if not isinstance(result, Law):
    raise ConfigError(f'{subject} law() gives {type(result).__name__}; expected a scaling.laws.Law')
  if name.endswith('.py'):
    _check(result, subject)
  return result


def _call(what: str, function: Callable, *arguments):
  try:
    return function(*arguments)
  except ConfigError:
    raise
  except Exception as error:  # whatever a user's file does
    where = entries.place(error)[1]
    raise ConfigError(f'{what} fails{where} ({type(error).__name__}: {one_line(error)}); see scaling.laws') from None


def _check_array(array, what: str, shape: tuple[int, ...], theta) -> None:
  """Refuses a result of a law's function that is no array of finite numbers of that shape."""
  given = np.asarray(array)
  if given.shape != shape or given.dtype.kind not in 'iuf' or not np.isfinite(given).all():
    said = f'shape {given.shape}' if given.dtype.kind in 'iufc' else type(array).__name__
    raise ConfigError(f'{what} gives {said}, or no finite numbers; expected {shape} for theta {theta.shape} and columns '
                      f'of {shape[1]} rows')


@np.errstate(all='ignore')
def _check(law: Law, subject: str) -> None:
  """Refuses a law whose functions give the wrong shape, or a derivative or an optimum that is not the loss's."""
  if not law.parameters:
    raise ConfigError(f'{subject} parameters is (); expected at least one, else nothing is fitted')
  n, rows, size = np.linspace(14.0, 21.0, 5), 5, len(law.parameters)
  known = {'n': n, 'd': 0.5 * n + 14.0, 'u': 0.5 * n + 13.0, 'k': np.linspace(0.0, 2.0, rows), 'c': 1.5 * n + 16.0}
  x = {column.key: known.get(column.key, column.of(np.linspace(0.2, 0.9, rows))) for column in law.reads}
  theta = _call(f'{subject} start', lambda: np.asarray(law.start(EXAMPLES), float))
  if theta.ndim != 2 or theta.shape[-1] != size:
    raise ConfigError(f'{subject} start gives shape {theta.shape}; expected (lanes, {size}), a column a parameter')
  value = _call(f'{subject} log_loss', law.log_loss, theta, x, np)
  _check_array(value, f'{subject} log_loss', (len(theta), rows), theta)
  jacobian = _call(f'{subject} jacobian', law.jacobian, theta, x)
  _check_array(jacobian, f'{subject} jacobian', (len(theta), rows, size), theta)
  alone = law.log_loss(theta, {key: column[:1] for key, column in x.items()}, np)
  if np.abs(alone - value[:, :1]).max() > 1e-9:
    raise ConfigError(f'{subject} log_loss gives a row another loss alone than among other rows; expected one a row')
  h = 1e-5
  moved = [law.log_loss(theta + h * unit, x, np) - law.log_loss(theta - h * unit, x, np) for unit in np.eye(size)]
  by_steps = _call(f'{subject} log_loss, of complex theta,', complex_step(law.log_loss), theta, x)
  for which, derivative in (('jacobian', jacobian), ('log_loss of complex theta', by_steps)):
    off = np.abs(np.stack(moved, -1) / (2.0 * h) - derivative) > 1e-4 * (1.0 + np.abs(derivative))
    if off.any():
      name = law.parameters[int(np.flatnonzero(off.any((0, 1)))[0])]
      raise ConfigError(f'{subject} {which} has another derivative by {name} than the differences of log_loss; '
                        'expected arithmetic that keeps complex numbers')
  if law.terms is not None and 'u' not in law.columns:
    at = {column.name: 0.5 for column in law.reads if column.key not in known}
    closed, _ = _call(f'{subject} terms', lambda: allocation(law, theta, 6e20, K=1.0, at=at))
    least = searched(law, theta, np.log(1e20), law.others(1.0, at))
    wrong = np.flatnonzero(np.abs(closed - least) > 1e-3)  # NaN: no optimum to compare
    if len(wrong):
      raise ConfigError(f'{subject} terms put the optimum of 6e20 FLOPs at N = {np.exp(closed[wrong[0]]):.4g}; its '
                        f'loss is least at {np.exp(least[wrong[0]]):.4g}')
