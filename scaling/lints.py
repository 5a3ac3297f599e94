"""What makes a table of runs unfit for a scaling law, found before anything is fitted.

Each finding has a code, says which rows it is about, and refuses or warns. A refusal can be overridden by its code.
"""

import dataclasses
import heapq
from collections.abc import Iterable, Sequence

import numpy as np

from foundation.errors import ConfigError, nearest
from scaling.columns import SELECTED, Column
from scaling.observations import Counting, Observations, levels
from scaling.selection import best_rate, cells
from scaling.table import Runs

SIZES, STEPS, DECADES = 5, 200, 1.5
LEVEL = 0.02  # relative difference up to which two values are one size
CODES = ('few_sizes', 'few_tokens', 'short_range', 'few_steps', 'no_interior_minimum', 'rate_edge', 'mixed_schedules',
         'duplicates', 'log10_column', 'perplexity', 'bits', 'mixed_units', 'compute', 'swapped', 'scaled_column',
         'mixed_scale', 'rounded', 'seeds', 'above_uniform', 'not_falling', 'diverged', 'batch_edge', 'selected',
         'mapped', 'derived', 'unfinished')
SCALE = 1e4  # factor between neighbouring counts of a table above which some are in another unit


@dataclasses.dataclass(frozen=True)
class Finding:
  """code: one of CODES. refuses: the table is not used unless the code is allowed."""
  code: str
  refuses: bool
  message: str

  def __str__(self) -> str:
    return f'{self.code}: {self.message}'


def _names(rows, keep, most: int = 3) -> str:
  hits = [rows[i] for i in np.flatnonzero(keep)]
  return ', '.join(hits[:most]) + (f' and {len(hits) - most} more' if len(hits) > most else '')


def isoflop_groups(o: Observations, tolerance: float = 0.1, least: int = 4) -> list[np.ndarray]:
  """Row indices of runs of nearly equal C (each within `tolerance` of ln C of the group's middle), by C.

  Greedy: the compute with most runs around it first. A group has `least` sizes or more, over a factor of 2 or more.
  """
  order = np.argsort(o.C, kind='stable')
  c = np.log(o.C[order])
  first, last = np.searchsorted(c, c - tolerance, 'left'), np.searchsorted(c, c + tolerance, 'right')
  remaining, groups = np.ones(len(c), bool), []
  heap = [(int(a - b), int(order[i]), i) for i, (a, b) in enumerate(zip(first, last))]  # most runs first, then by row
  heapq.heapify(heap)
  while heap and -heap[0][0] >= least:
    before, row, i = heapq.heappop(heap)
    if not remaining[i]:
      continue
    near = first[i] + np.flatnonzero(remaining[first[i]:last[i]])
    if len(near) < -before:  # others were taken meanwhile
      heapq.heappush(heap, (-len(near), row, i))
      continue
    remaining[near] = False
    group = np.sort(order[near])
    if len(levels(o.N[group], LEVEL)[0]) >= least and np.ptp(np.log(o.N[group])) >= np.log(2.0):
      groups.append(group)
  return sorted(groups, key=lambda g: np.log(o.C[g]).mean())


def _shape(o: Observations) -> list[Finding]:
  out = []
  sizes, tokens = levels(o.N, LEVEL)[0], levels(o.D, LEVEL)[0]
  decades = float(np.log10(o.C.max() / o.C.min()))
  corner = np.corrcoef(np.log(o.N * o.D), o.loss)[0, 1] if decades > 0 else 0.0
  if corner > 0:
    out.append(Finding('not_falling', True, f'loss rises with N and D (correlation {corner:+.2f}); expected a loss, '
                       'not an accuracy or a log likelihood'))
  if len(sizes) < SIZES:
    out.append(Finding('few_sizes', True, f'{len(sizes)} distinct N ({", ".join(f"{v:.4g}" for v in sizes)}); expected '
                       f'{SIZES} or more, so that an exponent is more than a line through its ends'))
  if len(tokens) < 3:
    out.append(Finding('few_tokens', True, f'{len(tokens)} distinct D; expected 3 or more'))
  if decades < DECADES:
    out.append(Finding('short_range', True, f'C spans {decades:.2f} decades ({o.C.min():.3g} to {o.C.max():.3g} '
                       f'FLOPs); expected {DECADES} or more'))
  edges, inside = [], 0
  for group in isoflop_groups(o):
    best = group[np.argmin(o.loss[group])]
    if o.N[best] in (o.N[group].min(), o.N[group].max()):
      edges.append((best, len(group)))
    else:
      inside += 1
  if edges:
    best, count = edges[0]
    out.append(Finding('no_interior_minimum', inside == 0 and len(edges) > 1,
                       f'{len(edges)} of {len(edges) + inside} isoFLOP groups have their least loss at the smallest or '
                       f'largest N, first {o.rows[best]} (N={o.N[best]:.4g}, {count} runs at C={o.C[best]:.3g})'))
  return out


def _cells(o: Observations, runs: Runs) -> list[Finding]:
  out = []
  seen: dict[tuple, int] = {}
  again: list[tuple[int, int]] = []
  seeds: list[tuple[int, int]] = []
  apart = [c for c in (o.U, o.K, *o.more.values(), *(runs.numbers.get(name) for name in (*SELECTED, 'seed')))
           if c is not None]
  for i, row in enumerate(zip(o.N, o.D, *apart)):
    if row in seen:
      (again if o.loss[i] == o.loss[seen[row]] else seeds).append((seen[row], i))
    seen.setdefault(row, i)
  if again:
    first, second = again[0]
    out.append(Finding('duplicates', True, f'{o.rows[second]} repeats N, D and loss of {o.rows[first]}'
                       f'{f", and {len(again) - 1} rows more" if len(again) > 1 else ""}; a run counted twice narrows '
                       'every interval'))
  if seeds:
    spread = max(abs(float(np.log(o.loss[j] / o.loss[i]))) for i, j in seeds)
    out.append(Finding('seeds', False, f'{len(seeds)} cells have several losses, up to {100 * spread:.2f} % apart: '
                       'taken as seeds'))
  return out


def _units(o: Observations, uninformed: float | None) -> list[Finding]:
  out = []
  for name, column in (('N', o.N), ('D', o.D)):
    if column.max() < 30:
      kind = 'log10' if name == 'N' and column.max() < 13 or name == 'D' and column.max() < 15 else 'natural logarithm'
      out.append(Finding('log10_column', True, f'{name} lies in [{column.min():.4g}, {column.max():.4g}]: a {kind} or '
                         f'a scaled count, not a count; say --units={name}=log10 (or millions, billions)'))
    elif column.max() < 1000 * (1 if name == 'N' else 1000) and o.C.max() > 1e15:
      out.append(Finding('scaled_column', True, f'{name} is at most {column.max():.4g} while C reaches '
                         f'{o.C.max():.3g}; say --units={name}=millions or billions if it is scaled'))
  if o.loss.max() > 20:
    worst = int(np.argmax(o.loss))
    out.append(Finding('perplexity', True, f'{o.rows[worst]}: loss={o.loss[worst]:.5g} is more than ln of any '
                       'vocabulary; a perplexity? expected nats per token, ln(perplexity)'))
  if uninformed is not None and (o.loss > uninformed * 1.02).any():
    over = o.loss > uninformed * 1.02
    worst = int(np.argmax(o.loss))
    bits = np.median(o.loss) > 0.9 * uninformed
    out.append(Finding('bits' if bits else 'above_uniform', bool(bits), f'{_names(o.rows, over)}: loss up to '
                       f'{o.loss[worst]:.4g} above the uninformed {uninformed:.4g} nats'
                       f'{"; in bits? say --units=loss=bits" if bits else ""}'))
  if (o.D < o.N).mean() > 0.5:
    out.append(Finding('swapped', True, f'{int((o.D < o.N).sum())} of {len(o)} rows have fewer tokens than parameters, '
                       f'first {_names(o.rows, o.D < o.N, 1)}; are N and D swapped, or D in sequences or steps?'))
  out += _mixed_scale(o)
  digits = [len(f'{v:.10e}'.split('e')[0].replace('.', '').rstrip('0')) for v in o.N]
  if len(levels(o.N, LEVEL)[0]) > 2 and max(digits) <= 2:
    out.append(Finding('rounded', False, f'every N has two digits or fewer (such as {o.N[0]:g}); exact counts move the '
                       'optimum noticeably'))
  return out


def _mixed_scale(o: Observations) -> list[Finding]:
  """Rows whose N or D is so far below or above all others that it is in another unit."""
  out = []
  for name, column in (('N', o.N), ('D', o.D)):
    order = np.argsort(column)
    gaps = np.diff(np.log(column[order]))
    if not gaps.size or gaps.max() < np.log(SCALE):
      continue
    at = int(np.argmax(gaps)) + 1
    few, low = (order[:at], True) if at <= len(order) / 2 else (order[at:], False)
    odd = np.zeros(len(o), bool)
    odd[few] = True
    out.append(Finding('mixed_scale', True, f'{_names(o.rows, odd)}: {name} is {column[few[0]]:.4g} where the other '
                       f'rows have {"at least" if low else "at most"} {column[order[at if low else at - 1]]:.4g}; in '
                       f'another unit ({"millions, billions" if low else "the others"})?'))
  return out


def _compute(o: Observations, c: np.ndarray | None) -> list[Finding]:
  """What is wrong with FLOPs as they were given beside 6 N D."""
  if c is None:
    return []
  ratio = c / (6.0 * o.N * o.D)
  ratio = ratio[np.isfinite(ratio)]
  if not ratio.size:
    return []
  middle = float(np.median(ratio))
  if 0.5 <= middle <= 2.5:
    return []
  steady = float(np.median(np.abs(np.log(ratio / middle)))) < 0.05
  per_size = float(np.median(np.abs(np.log(ratio / (6.0 * o.N[:ratio.size]))))) < 0.05
  if per_size:
    reason = 'C/(6ND) is 6N: D was divided by 6N twice'
  elif steady and abs(np.log(middle / 6)) < 0.05:
    reason = 'C/(6ND) is 6: D was divided by 6 twice'
  elif steady and abs(np.log(middle * 6)) < 0.05:
    reason = 'C is N D, without the 6'
  elif steady and abs(np.log(middle * 3)) < 0.05:
    reason = 'C is 2ND: the forward pass only'
  elif abs(np.log10(middle * 8.64e19)) < 0.5:
    reason = 'C is in PFLOP-days; say --units=C=pflop_days'
  else:
    reason = f'C/(6ND) is {middle:.3g}; expected about 1 (to 2.5 with attention and the head)'
  worst = int(np.argmax(np.abs(np.log(ratio))))
  return [Finding('compute', True, f'{reason}; first {o.rows[0]}, farthest {o.rows[worst]}')]


def _surface(o: Observations) -> tuple[np.ndarray, np.ndarray]:
  """(columns of a quadratic in ln N and ln D, ln loss less the one of least absolute deviations)."""
  n, d = np.log(o.N) - np.log(o.N).mean(), np.log(o.D) - np.log(o.D).mean()
  basis = np.stack([np.ones(len(n)), n, d, n * n, d * d, n * d], 1)
  weights, y = np.ones(len(n)), o.y
  for _ in range(50):  # so that a minority does not bend the surface
    r = y - basis @ np.linalg.lstsq(basis * weights[:, None], y * weights, rcond=None)[0]
    weights = 1.0 / np.sqrt(np.maximum(np.abs(r), 1e-3))
  return basis, r


BITS = float(np.log(1.0 / np.log(2.0)))  # ln of a loss in bits over the same in nats


def _in_two_units(o: Observations, basis, r) -> np.ndarray | None:
  """Which rows are in bits, where that and one smooth surface explain a table that a surface alone does not.

  Tried from the rows above the surface, and from a part of the rows, or of the sizes, on from a place.
  """
  y, best, least = o.y, None, np.inf
  cuts = np.unique(np.linspace(2, len(y) - 2, 24).astype(int))
  places = [np.argsort(np.argsort(key, kind='stable'), kind='stable') for key in (np.arange(len(y)), o.N, o.D)]
  starts = [r > np.median(r), r > BITS / 2.0, *(side for place in places for cut in cuts
                                                for side in (place < cut, place >= cut))]
  for high in starts:
    for _ in range(20):
      left = y - BITS * high - basis @ np.linalg.lstsq(basis, y - BITS * high, rcond=None)[0]
      new = left + BITS * high > BITS / 2.0
      if (new == high).all():
        break
      high = new
    if 1 < high.sum() < len(y) - 1 and np.std(left) < least:
      best, least = high, np.std(left)
  plain = np.std(y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0])
  return best if least < 0.03 and least < plain / 3.0 else None


def _off_the_others(o: Observations) -> list[Finding]:
  """Rows off a smooth surface in ln N and ln D: by the factor of another unit, or far above it."""
  if len(o) < 12:
    return []
  basis, r = _surface(o)
  usual = 1.4826 * np.median(np.abs(r))
  off = np.abs(np.abs(r) - BITS) < 0.08
  if usual < 0.03 and off.sum() > 1 and off.mean() < 0.5:
    kind = 'bits' if np.median(r[off]) > 0 else 'nats'
    return [Finding('mixed_units', False, f'{_names(o.rows, off)}: loss is {np.exp(np.median(r[off])):.2f} times what '
                    f'the other runs suggest, as if these rows alone were in {kind}')]
  if len(o) <= 2000 and (high := _in_two_units(o, basis, r)) is not None:
    return [Finding('mixed_units', True, f'{_names(o.rows, high)}: loss is 1.44 times what the other {(~high).sum()} '
                    'rows suggest, as if these were in bits and those in nats; expected one unit')]
  far = r > max(0.15, 10.0 * usual)
  if far.any() and far.mean() < 0.2:
    return [Finding('diverged', False, f'{_names(o.rows, far)}: loss is {np.exp(r[far].max()):.2f} times what the other '
                    'runs suggest; diverged? drop such rows with --where, or fit a robust --loss')]
  return []


def _settings(o: Observations, runs: Runs) -> list[Finding]:
  out = []
  steps = runs.numbers.get('steps')
  if steps is not None and (steps < STEPS).any():
    worst = int(np.nanargmin(steps))
    out.append(Finding('few_steps', True, f'{_names(o.rows, steps < STEPS)}: under {STEPS} optimiser steps (least '
                       f'{steps[worst]:g}); such cells are still warming up and bend the law'))
  for column in ('schedule',):
    kinds = sorted(set(runs.texts.get(column, ())))
    if len(kinds) > 1:
      odd = min(kinds, key=runs.texts[column].count)
      keep = np.array([kind == odd for kind in runs.texts[column]])
      out.append(Finding('mixed_schedules', True, f'schedules {", ".join(kinds)} in one table, {odd} in '
                         f'{_names(o.rows, keep)}; expected one'))
  return out + _edges(o, runs)


def _edges(o: Observations, runs: Runs) -> list[Finding]:
  """Cells whose best rate or batch is the least or the greatest of three or more."""
  out = []
  label = cells(o)
  groups = np.split(np.argsort(label, kind='stable'), np.cumsum(np.bincount(label))[:-1])
  for name, what, code in (('lr', 'learning rate', 'rate_edge'), ('batch', 'batch', 'batch_edge')):
    if name not in runs.numbers:
      continue
    tried = runs.numbers[name]
    for group in groups:
      here = group[np.isfinite(tried[group])]
      if len(here) >= 3 and len(np.unique(tried[here])) >= 3:
        best = group[np.argmin(o.loss[group])]  # of a rate that is not known, it is at no edge
        if tried[best] in (tried[here].min(), tried[here].max()):
          out.append(Finding(code, code == 'rate_edge', f'{o.rows[best]}: the best {what} {tried[best]:g} of '
                             f'N={o.N[best]:.4g}, D={o.D[best]:.4g} is at the edge of the sweep '
                             f'[{tried[here].min():g}, {tried[here].max():g}]'))
          break
  return out


def lint(runs: Runs, counting: Counting = Counting(), uninformed: float | None = None,
         reads: Sequence[Column] = ()) -> list[Finding]:
  """Everything doubtful about a table, refusals first. uninformed: ln(vocabulary) in nats, if known. reads: see
  Runs.observe."""
  o = runs.observe(counting, reads)
  units = _units(o, uninformed)
  compute = _compute(o, runs.numbers.get('C', runs.numbers.get('flops_train_exact')))
  named = [f for f in compute if 'expected about 1' not in f.message]  # a known slip explains more than a wrong unit
  out = named + units + [f for f in compute if f not in named] + _cells(o, runs) + _settings(o, runs)
  if not any(f.refuses for f in units):  # a range means little in a wrong unit
    out += _shape(o) + _off_the_others(o)
  out += said(runs.warnings)
  return sorted(out, key=lambda f: not f.refuses)


def check_codes(allow: Iterable[str]) -> tuple[str, ...]:
  """The codes. Raises ConfigError for one that is none."""
  if isinstance(allow, str):
    raise ConfigError(f'allow is the text {allow!r}; expected a list of codes, nearest is [{allow!r}]')
  for code in allow:
    if code not in CODES:
      raise ConfigError(f'allow: {code!r} is not one of {", ".join(CODES)}{nearest(str(code), CODES)}')
  return tuple(allow)


def check_design(o: Observations, allow: Iterable[str]) -> None:
  """Raises ConfigError if runs of these N, D and C would be refused for them, whatever their losses."""
  o = dataclasses.replace(o, loss=(o.N * o.D) ** -0.01)
  shape = [f for f in _shape(o) if f.code in ('few_sizes', 'few_tokens', 'short_range')]
  for finding in [*_units(o, None), *_compute(o, o.C), *shape]:
    if finding.refuses and finding.code not in allow:
      raise ConfigError(f'{o.source}: {finding} (or {finding.code!r} among what is allowed)')


def said(warnings: Iterable[str]) -> list[Finding]:
  """What a table says of itself, 'code: message', as findings."""
  return [Finding(w.partition(': ')[0], False, w.partition(': ')[2]) for w in warnings]


def check(runs: Runs, counting: Counting = Counting(), allow: Iterable[str] = (), uninformed: float | None = None,
          reads: Sequence[Column] = ()) -> tuple[Observations, list[Finding]]:
  """Observations and the warnings; raises ConfigError of the first refusal whose code is not in `allow`."""
  allow = check_codes(allow)
  findings = lint(runs, counting, uninformed, reads)
  for finding in findings:
    if finding.refuses and finding.code not in allow:
      raise ConfigError(f'{runs.source}: {finding} (override with --allow={finding.code})')
  return runs.observe(counting, reads), findings


def selected(runs: Runs, counting: Counting = Counting(), allow: Iterable[str] = (), uninformed: float | None = None,
             reads: Sequence[Column] = ()) -> tuple[Observations, list[Finding]]:
  """As `check`, with the best rate and batch of each cell alone, and what was dropped for it among the warnings."""
  _, findings = check(runs, counting, allow, uninformed, reads)
  best = best_rate(runs, counting, reads)
  return best.observe(counting, reads), findings + said(best.warnings[len(runs.warnings):])
