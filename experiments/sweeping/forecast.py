"""A sweep's laws: the largest cell is predicted, in the ledger, before it starts, and compared when it has ended."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeping.cells import Cell
from foundation import files, reading
from foundation.errors import ConfigError
from foundation.printable import printable
from framework.config import Data
from framework.data import stream
from scaling import ledger, lints, prediction, report, table, uncertainty
from scaling.fit import Fit, check_rows, fit
from scaling.holdout import COMPARED, holdout, splits, thin
from scaling.laws import law as law_of
from scaling.objective import Loss

LAWS = COMPARED
LOSS = Loss('huber', 0.0)  # delta from the residuals
LEVEL = 0.9
LEDGER = 'ledger.jsonl'


def observations(runs: pathlib.Path, allow: Sequence[str]) -> tuple[table.Observations, list[lints.Finding]]:
  """The finished runs below a folder, checked, each cell at its best rate and batch. Raises TableError."""
  return lints.selected(table.read(runs), allow=allow)


def choose(o: table.Observations, law: str) -> Fit:
  """The fit of a law; of '', of that law of LAWS which predicts best beyond what it was fitted to."""
  if law:
    return fit(o, law_of(law), LOSS)
  scores = {}
  for name in LAWS:
    result = fit(o, law_of(name), LOSS)
    scores[name] = (not result.accepted, holdout(o, law_of(name), LOSS, cuts=thin(o)).score)
  return fit(o, law_of(min(scores, key=scores.__getitem__)), LOSS)


def check_design(cells: Sequence[Cell], sizes: Mapping[str, tuple[float, float]], largest: Cell, law: str,
                 allow: Sequence[str]) -> None:
  """Raises ConfigError now for what the tables of the cells would be refused for when they have run.

  Their N, D, FLOPs and number are known: only the losses are not. Of equal N and D the table keeps one learning rate.
  """
  held = held_back(cells, sizes, largest)
  for source, chosen in (('the cells but the largest', [c for c in cells if c not in held]), ('the cells', cells)):
    rates: dict[tuple[float, float], list[float]] = {}
    for cell in chosen:
      rates.setdefault(sizes[cell.name], []).append(cell.config.optimizer.learning_rate)
    kept = [cell for cell in chosen if cell.config.optimizer.learning_rate == max(
        rates[sizes[cell.name]], key=rates[sizes[cell.name]].count)]
    if not kept:
      raise ConfigError('the sweep has one cell; expected more, from which the largest is predicted')
    N, D = np.array([sizes[cell.name] for cell in kept]).T
    o = dataclasses.replace(table.Observations.of(N, D, np.ones(len(N)), [cell.whole_cost for cell in kept]),
                            source=source)
    try:
      for name in [law] if law else LAWS:
        check_rows(o, law_of(name))
      if not law:
        splits(o, cuts=thin(o))
    except ConfigError as error:
      raise ConfigError(f'{source}: {error}') from None
    lints.check_design(dataclasses.replace(o, rows=tuple(cell.name for cell in kept)), allow)


def held_back(cells: Sequence[Cell], sizes: Mapping[str, tuple[float, float]], largest: Cell) -> list[Cell]:
  """The cells of the largest one's N and D, at whatever rate: none of them runs before their loss is predicted."""
  N, D = sizes[largest.name]
  near = lambda a, b: abs(a / b - 1.0) <= prediction.CELL
  return [cell for cell in cells if near(sizes[cell.name][0], N) and near(sizes[cell.name][1], D)]


def predict(folder: pathlib.Path, name: str, N: float, D: float, law: str, allow: Sequence[str]) -> dict:
  """Writes the prediction of a cell of N parameters and D tokens that has not begun; once written it stays."""
  for record in ledger.read(folder / LEDGER):
    if record['kind'] == 'prediction' and record['name'] == name:
      return record
  o, _ = observations(folder / 'cells', allow)
  ran = prediction.same_cell(o, N, D)  # an earlier sweep of this folder may have had it
  result = choose(o.take(~ran), law)
  quantity = uncertainty.loss_at(result.law, N, D)
  interval, _, _ = prediction.predict(result, quantity, N, D, LEVEL, LOSS)
  k = result.observations.convention.k
  return ledger.predict(folder / LEDGER, name, N=N, D=D, C=k * N * D, k=k, loss=interval.estimate, low=interval.low,
                        high=interval.high, level=LEVEL, law=result.law.name, objective='huber 0',
                        runs=len(result.observations), source=str(folder.name), seen=bool(ran.any()))


def measure(folder: pathlib.Path, name: str, rates: Sequence[str] = ()) -> dict:
  """Writes what the cell measured beside its prediction, the best of all `rates` that it ran at; it stays."""
  for record in ledger.read(folder / LEDGER):
    if record['kind'] == 'measurement' and record['name'] == name:
      return record
  losses = [reading.value(folder / 'cells' / cell / 'result.json', {'loss_nats_per_token': float})[
      'loss_nats_per_token'] for cell in (rates or [name])]
  return ledger.measure(folder / LEDGER, name, min(losses))


def conclude(folder: pathlib.Path, law: str, allow: Sequence[str], data: Data) -> tuple[str, pathlib.Path]:
  """(what the finished sweep on `data` shows, in words; the page with its figures)."""
  o, findings = observations(folder / 'cells', allow)
  result = choose(o, law)
  C = 10.0 * float(o.C.max())
  about = report.doubt(result, C, fit_scale=True)
  truth = _known_truth(result, about.errors, data)
  page = report.page(folder / 'report', o, result, about, C, LOSS, LAWS, findings, f'Sweep {folder.resolve().name}',
                     [*compared(folder), *truth])
  files.write_sealed(folder / 'report' / 'law.json', {
      'law': result.law.name, 'formula': result.law.formula, 'values': result.values, 'errors': result.errors,
      'runs': len(o), 'rms_percent': 100 * result.rms})
  return '\n'.join([report.summary(result, about, findings), *truth]), page


def _known_truth(result: Fit, errors: dict[str, float], data: Data) -> list[str]:
  """E beside the entropy of a synthetic language that knows it, and beside that of its held-out text as drawn."""
  if not data.task or 'E' not in result.values:
    return []
  _, held_out, *_ = stream.splits(data)
  if not hasattr(held_out.task, 'entropy'):
    return []
  E, error = result.values['E'], errors['E']
  length = held_out.tokens // held_out.task.length * held_out.task.length
  entropy, drawn = held_out.task.entropy, float(held_out.task.nats(held_out.read(0, length)).mean())
  start = f'the entropy of {data.task} is {entropy:.5f} nats per token: E {E:.5f}'
  if not 0.0 < error < np.inf:  # E went to its bound: the runs show no irreducible loss
    return [f'{start} has no standard error, so its {E - entropy:+.5f} from it and {E - drawn:+.5f} from the {drawn:.5f} '
            'of the held-out text prove nothing']
  return [f'{start} ± {error:.5f} is {(E - entropy) / error:+.2f} standard errors from it, {(E - drawn) / error:+.2f} '
          f'from the {drawn:.5f} of the held-out text']


def compared(folder: pathlib.Path) -> list[str]:
  """A line for each prediction of the ledger."""
  records = ledger.read(folder / LEDGER)
  measured = {r['name']: r for r in records if r['kind'] == 'measurement'}
  lines = []
  for p in (r for r in records if r['kind'] == 'prediction'):
    name, law, when = printable(p['name'], 120), printable(p['law'], 120), printable(p['written'], 60)
    line = (f"{name}: predicted {p['loss']:.4f} [{p['low']:.4f}, {p['high']:.4f}] at {100 * p['level']:g} % by "
            f"the {law} law from {p['runs']} runs, {when}")
    m = measured.get(p['name'])
    lines.append(line + (f"; measured {m['measured']:.4f} ({m['error_percent']:+.2f} %), "
                         f"{'inside' if m['inside'] else 'outside'} the interval, {printable(m['written'], 60)}" if m
                         else ''))
  return lines
