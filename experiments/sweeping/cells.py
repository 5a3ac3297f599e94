"""A sweep as one expression: which settings of a config its cells change, and to what.

  cells = product(together(over('model.width', [16, 32]), over('model.layers', [2, 3])),
                  over('training.steps', [500, 1000]))

An expression is a list of cells, and a cell is a dictionary {config key: value}, so a sweep file may also compute one.
"""

import copy
import dataclasses
import importlib.util
import itertools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from framework import config as config_lib
from framework.training import branch
from scaling import lints

Cells = list[dict[str, Any]]


def over(key: str, values: Iterable[Any]) -> Cells:
  """A cell for each value of one key."""
  return [{key: value} for value in values]


def product(*parts: Cells) -> Cells:
  """Every combination of a cell of each part, the last part varying fastest."""
  return [_merged(row) for row in itertools.product(*parts)]


def together(*parts: Cells) -> Cells:
  """The first cells of all parts as one, then the second ones, and so on: zip. The parts must be of one length."""
  if len({len(part) for part in parts}) > 1:
    raise config_lib.ConfigError(f'together() got parts of {", ".join(str(len(part)) for part in parts)} cells; '
                                 'expected one length')
  return [_merged(row) for row in zip(*parts)]


def chain(*parts: Cells) -> Cells:
  """The cells of all parts, one part after the other."""
  return [cell for part in parts for cell in part]


def _merged(row: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  out = {}
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
  config: config_lib.Config
  cost: float = 0.0
  source: str = ''  # the name of the cell at whose decay this one begins
  own_steps: int = 0  # steps that it takes itself


def load(path: pathlib.Path) -> Sweep:
  """The Sweep of a sweep file. Raises ConfigError."""
  if not path.is_file():
    around = [str(p) for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
    raise config_lib.ConfigError(f'sweep file {path} does not exist{config_lib.nearest(str(path), around)}')
  spec = importlib.util.spec_from_file_location('lemma_sweep', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    sweep = module.get_sweep()
  except config_lib.ConfigError:
    raise
  except Exception as error:  # a sweep file is anyone's code
    raise config_lib.ConfigError(f'sweep file {path}: {type(error).__name__}: {" ".join(str(error).split())}') from None
  if not isinstance(sweep, Sweep):
    raise config_lib.ConfigError(f'get_sweep() of {path} returned {type(sweep).__name__}; expected an '
                                 'experiments.sweeping.cells.Sweep')
  return sweep


def expand(sweep: Sweep) -> list[Cell]:
  """The checked cells by name, ladders in the order in which one rung begins where the one before decays.

  Raises:
    ConfigError: a cell's key or value is wrong, or two cells are the same run.
  """
  if not sweep.cells:
    raise config_lib.ConfigError('the sweep has no cells')
  known = config_lib.flatten(config_lib.Config())
  cells, seen = [], {}
  for changes in sweep.cells:
    config = copy.deepcopy(sweep.base)
    for key, value in changes.items():
      if key not in known:
        raise config_lib.ConfigError(f"the sweep changes '{key}', which no config has"
                                     f'{config_lib.nearest(key, known)}')
      section, field = key.split('.')
      setattr(getattr(config, section), field, value)
    name = '_'.join(f"{key.split('.')[1]}{value}" for key, value in changes.items()) or 'base'
    name = name.replace('/', '-')
    try:
      config_lib.check(config)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'cell {name}: {error}') from None
    settings = repr(config)
    if settings in seen:
      raise config_lib.ConfigError(f'the cells {seen[settings]} and {name} are the same run; expected each once')
    if name in seen.values():
      raise config_lib.ConfigError(f'two different cells have the name {name}; expected the same keys in all cells')
    seen[settings] = name
    cells.append(Cell(name, config))
  return [dataclasses.replace(cell, source=source) for ladder in ladders(cells)
          for cell, source in zip(ladder, ['', *(c.name for c in ladder)])]


def ladders(cells: list[Cell]) -> list[list[Cell]]:
  """Groups of cells that share a trunk (framework.training.branch), shortest first; a cell without fellows is alone."""
  out: list[list[Cell]] = []
  for cell in sorted(cells, key=lambda cell: cell.config.training.steps):
    ladder = next((l for l in out if branch.shares_trunk(l[-1].config, cell.config)), None)
    if ladder:
      ladder.append(cell)
    else:
      out.append([cell])
  return out


def with_costs(cells: list[Cell], vocabulary: int) -> list[Cell]:
  """The cells with their own steps and training FLOPs."""
  from framework.models import flops
  steps = {cell.name: branch.branch_step(cell.config) for cell in cells}
  def costed(cell):
    c = cell.config
    own = c.training.steps - (steps[cell.source] if cell.source else 0)
    return dataclasses.replace(cell, own_steps=own, cost=own * c.training.batch * flops.train(
        c.model, vocabulary, c.data.window))
  return [costed(cell) for cell in cells]


def check_steps(cells: list[Cell], allow: Iterable[str]) -> None:
  """Raises ConfigError if the shortest cell is too short for a law, unless `allow` has 'few_steps'."""
  short = min(cells, key=lambda cell: cell.config.training.steps)
  if short.config.training.steps < lints.STEPS and 'few_steps' not in allow:
    raise config_lib.ConfigError(f"cell {short.name} has {short.config.training.steps} steps; expected {lints.STEPS} "
                                 "or more, or 'few_steps' among the sweep's `allow`")
