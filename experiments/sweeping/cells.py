"""A sweep as one expression: which settings of a config its cells change, and to what.

  cells = product(zipped(over('model.width', [16, 32]), over('model.layers', [2, 3])),
                  over('training.steps', [500, 1000]))

An expression is a list of cells, and a cell is a dictionary {config key: value}, so a sweep file may also compute one.
"""

import copy
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from foundation import entries
from foundation.errors import one_line
from framework import config as config_lib
from framework import models
from framework.training import branch
from scaling import laws, lints

Cells = list[dict[str, Any]]


def over(key: str, values: Iterable[Any]) -> Cells:
  """A cell for each value of one key."""
  return [{key: value} for value in values]


def product(*parts: Cells) -> Cells:
  """Every combination of a cell of each part, the last part varying fastest."""
  return [_merged(row) for row in itertools.product(*parts)]


def zipped(*parts: Cells) -> Cells:
  """The first cells of all parts as one, then the second ones, and so on: zip. The parts must be of one length."""
  if len({len(part) for part in parts}) > 1:
    raise config_lib.ConfigError(f'zipped() got parts of {", ".join(str(len(part)) for part in parts)} cells; '
                                 'expected one length')
  return [_merged(row) for row in zip(*parts)]


def chain(*parts: Cells) -> Cells:
  """The cells of all parts, one part after the other."""
  return [cell for part in parts for cell in part]


def _merged(row: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  for cell in row:
    for key, value in cell.items():
      if key in out:
        raise config_lib.ConfigError(f"two parts of a sweep set {key}, to {out[key]!r} and {value!r}; expected one")
      out[key] = value
  return out


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep file's get_sweep() returns.

  base: what the cells have in common. law: of scaling.laws, fitted to all cells but the largest, which it predicts; '':
  the one that predicts best below them. allow: codes of scaling.lints that do not refuse the sweep.
  """
  base: config_lib.Config
  cells: Cells
  law: str = ''
  allow: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep. cost: exact training FLOPs of the steps that it does not take over from a shorter run."""
  name: str
  config: config_lib.Config  # resolved
  cost: float = 0.0
  source: str = ''  # the name of the cell at whose decay this one begins
  own_steps: int = 0  # steps that it takes itself, in all stages of its training
  whole_cost: float = 0.0  # with the steps that it takes over

  @functools.cached_property
  def stages(self) -> dict[str, int]:
    """{folder below the run's: steps} of the stages of its training; kept, since it is asked at every poll."""
    return {stage.name: stage.config.training.steps for stage in models.stages(self.config)}


def load(path: pathlib.Path) -> Sweep:
  """The Sweep of a sweep file. Raises ConfigError."""
  module = entries.from_file(str(path), 'sweep file')
  if not hasattr(module, 'get_sweep'):
    raise config_lib.ConfigError(f'sweep file {path} has no get_sweep(); expected a function that returns a Sweep')
  try:
    sweep = module.get_sweep()
  except config_lib.ConfigError:
    raise
  except Exception as error:  # a sweep file is anyone's code
    raise config_lib.ConfigError(f'sweep file {path}: {type(error).__name__}: {one_line(error)}') from None
  if not isinstance(sweep, Sweep):
    raise config_lib.ConfigError(f'get_sweep() of {path} returned {type(sweep).__name__}; expected an '
                                 'experiments.sweeping.cells.Sweep')
  return sweep


def expand(sweep: Sweep) -> list[Cell]:
  """The cells by name with resolved configs, those of a trunk in the order in which one begins where another decays.

  Raises:
    ConfigError: a cell's key or value is wrong, or two cells are the same run.
  """
  if not sweep.cells:
    raise config_lib.ConfigError('the sweep has no cells')
  cells = []
  seen: dict[str, str] = {}  # settings -> the name of their cell
  for changes in sweep.cells:
    try:
      config = config_lib.assign(copy.deepcopy(sweep.base), changes)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'the sweep changes a setting: {error}') from None
    name = '_'.join(f"{key.split('.')[1]}{value}" for key, value in changes.items()) or 'base'
    name = name.replace('/', '-')
    try:
      config = config_lib.resolve(config)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'cell {name}: {error}') from None
    settings = repr(config)
    if settings in seen:
      raise config_lib.ConfigError(f'the cells {seen[settings]} and {name} are the same run; expected each once')
    if name in seen.values():
      raise config_lib.ConfigError(f'two different cells have the name {name}; expected the same keys in all cells')
    seen[settings] = name
    cells.append(Cell(name, config))
  return [dataclasses.replace(cell, source=source) for trunk in trunks(cells)
          for cell, source in zip(trunk, ['', *(c.name for c in trunk)])]


def trunks(cells: list[Cell]) -> list[list[Cell]]:
  """Groups of cells that share a trunk (framework.training.branch), shortest first; a cell without fellows is alone."""
  out: list[list[Cell]] = []
  for cell in sorted(cells, key=lambda cell: cell.config.training.steps):
    trunk = next((l for l in out if branch.shares_trunk(l[-1].config, cell.config)), None)
    if trunk:
      trunk.append(cell)
    else:
      out.append([cell])
  return out


def with_costs(cells: list[Cell], corpus_of: Callable[[config_lib.Config], Any]) -> list[Cell]:
  """The cells with their own steps and training FLOPs, on the corpus of each."""
  begins = {cell.name: branch.branch_step(cell.config) for cell in cells}
  def costed(cell: Cell) -> Cell:
    steps = sum(cell.stages.values())
    own = steps - (begins[cell.source] if cell.source else 0)
    whole = models.flops_train(cell.config, corpus_of(cell.config))
    return dataclasses.replace(cell, own_steps=own, cost=whole * own / steps, whole_cost=whole)
  return [costed(cell) for cell in cells]


def check(sweep: Sweep, cells: list[Cell]) -> None:
  """Raises ConfigError if the law or what is allowed could only be refused when cells have run, or if the shortest cell
  is too short for a law and `allow` has no 'few_steps'.
  """
  allow = lints.check_codes(sweep.allow)
  if sweep.law:
    law = laws.law(sweep.law, key="the sweep's law")
    if 'k' in law.columns:
      raise config_lib.ConfigError(f"the sweep's law is '{sweep.law}', which needs the experts of a run; expected a "
                                   'law of parameters and tokens')
  short = min(cells, key=lambda cell: cell.config.training.steps)
  if short.config.training.steps < lints.STEPS and 'few_steps' not in allow:
    raise config_lib.ConfigError(f"cell {short.name} has {short.config.training.steps} steps; expected {lints.STEPS} "
                                 "or more, or 'few_steps' among the sweep's `allow`")
