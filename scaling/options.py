"""What the flags of the commands mean: the table, the objective and the law that they ask for. Each flag stands once."""

import math
import pathlib

from foundation.command import Flag
from foundation.errors import ConfigError


def runs(flags):
  from scaling import table as tables
  if not flags.runs:
    raise ConfigError('--runs is missing: a folder of runs with result.json, or a CSV with columns N, D, loss')
  columns = tables.parse_assignments(flags.columns, '--columns')
  units = tables.parse_assignments(flags.units, '--units')
  whole = pathlib.Path(flags.runs).exists()  # a path may hold a comma
  paths = [flags.runs] if whole else [path.strip() for path in flags.runs.split(',')]
  found = tables.joined([tables.read(path, columns, units) for path in paths])
  found = found.where(flags.where) if flags.where else found
  found = found.exclude(flags.exclude) if flags.exclude else found
  return found.weighted(flags.weights) if flags.weights else found


def counting(flags):
  from scaling.observations import Counting
  return Counting(flags.params, flags.compute)


def uninformed(flags) -> float | None:
  return math.log(flags.vocabulary) if flags.vocabulary else None


def table(flags, *read_by):
  """(observations, findings) of the runs that these laws read, each cell at its best learning rate and batch."""
  from scaling import lints
  reads = tuple(dict.fromkeys(column for law in read_by for column in law.reads))
  return lints.selected(runs(flags), counting(flags), flags.allow, uninformed(flags), reads)


def at(flags) -> dict[str, float]:
  """The columns of --at."""
  from scaling.table import parse_assignments
  return _numbers(parse_assignments(flags.at, '--at'), '--at')


def _numbers(given: dict[str, str], what: str) -> dict[str, float]:
  out = {}
  for name, value in given.items():
    try:
      out[name] = float(value)
    except ValueError:
      raise ConfigError(f'{what}: {name}={value!r} is not a number') from None
  return out


def loss(flags):
  from scaling.objective import Loss
  return Loss(flags.loss, flags.delta, flags.penalty, raw=flags.raw)


def experts(flags, law):
  """--K, or None for a law without experts."""
  if 'k' not in law.columns:
    if flags.K != 1:
      raise ConfigError(f'--K={flags.K:g}: law {law.name} knows no experts; fit --law=experts')
    return None
  return flags.K


def asked(flags):
  """(law, objective, fixed values) of the flags; what is wrong in them is refused before a table is read."""
  from scaling import laws
  from scaling.table import parse_assignments
  law, objective = laws.law(flags.law, uninformed(flags), '--law'), loss(flags)
  fixed = _numbers(parse_assignments(flags.fix, '--fix'), '--fix')
  return law, objective, fixed


def fitted(flags):
  """(fit, findings) of the law to the runs."""
  from scaling.fit import fit
  law, objective, fixed = asked(flags)
  observations, findings = table(flags, law)
  return fit(observations, law, objective, fixed), findings


def number(name: str, default: float, text: str, **bounds) -> Flag:
  """A flag that holds a number from 0 up, if no other bounds are given."""
  return Flag(name, float, default, text, **{'least': 0.0, **bounds})


LAWS = ' | '.join(sorted(path.stem for path in pathlib.Path(__file__).with_name('laws').glob('[!_]*.py')))
TABLE = (
    Flag('runs', str, '', 'folder of runs with result.json, or a table (CSV, JSON lines, parquet, .gz); several: a,b'),
    Flag('columns', str, '', 'headers of standard names that are not found: N=params,loss=c4'),
    Flag('units', str, '', 'loss=nats|bits|perplexity, N and D=1|thousands|millions|billions|trillions|log10, '
         'C=flop|exaflop|pflop_days|log10'),
    Flag('exclude', str, '', 'drop the rows where this column is not zero'),
    Flag('weights', str, '', 'column of positive weights of the rows in the objective'),
    Flag('where', str, '', 'keep the rows where this holds: role=train,N<2e9,(mult=1|2 or not rerun=1)'),
    Flag('params', str, '', 'what N counts, the first there is if empty', ('given', 'total', 'no_input', 'body')),
    Flag('compute', str, '', 'what C counts, the first there is if empty', ('given', 'exact', '6nd')),
    Flag('allow', list, [], 'codes of findings that do not refuse the table: few_sizes,short_range'),
    number('vocabulary', 0.0, 'number of tokens in the vocabulary; 0: unknown'))
OBJECTIVE = (
    Flag('loss', str, 'huber', 'objective', ('huber', 'lad', 'student_t', 'asymmetric', 'squares')),
    number('delta', 1e-3, 'Huber delta in ln loss; 0: fitted to the residuals'),
    number('penalty', 10.0, 'asymmetric: weight of a law above its run'),
    Flag('raw', bool, False, 'residuals of the loss itself, in nats, and not of its logarithm; --delta is then in nats'))
FITTING = (
    *TABLE,
    Flag('law', str, 'additive', f'{LAWS}, or the path of a .py file (see scaling/laws/__init__.py)'),
    *OBJECTIVE,
    Flag('fix', str, '', 'parameters kept as given: E=1.7,alpha=0.34'))
LEVEL = number('level', 0.9, 'nominal level of intervals', most=1.0)
SIMULATIONS = Flag('simulations', int, 100, 'simulated tables for the coverage; 0: none', least=0)
TARGET = number('compute_target', 0.0, 'FLOPs of the decision; 0: ten times the largest run')
EXPERTS = number('K', 1.0, 'experts of the run; a law of experts counts its active parameters', least=1.0)
AT = Flag('at', str, '', 'values of the other columns that the law reads: bits=8,lr=1e-3')
UNIQUE = number('unique', 0.0, 'unique tokens that exist; 0: no limit')
LEDGER = (
    Flag('ledger', str, '', 'append-only file of predictions'),
    Flag('name', str, '', 'name of a ledger entry'))
