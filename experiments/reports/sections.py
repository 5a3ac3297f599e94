"""What a page shows of runs and studies; every number comes from a file that is named beside it."""

import collections
import json
import logging
import pathlib
from typing import Any

from experiments.reports import figures
from experiments.reports import runs as folders
from experiments.reports.runs import relative
from foundation import chart
from foundation import figures as style
from foundation import files, outputs, page, reading
from foundation.errors import one_line
from foundation.printable import printable
from framework import config as config_lib

log = logging.getLogger(__name__)

# What a run's row shows beside the settings in which runs differ: heading, and key of result.json.
RESULTS = (('bits/byte', 'bits_per_byte'), ('nats/token', 'loss_nats_per_token'), ('parameters', 'params_total'),
           ('tokens', 'tokens'), ('epochs', 'epochs'), ('FLOPs', 'flops_train_exact'), ('seconds', 'seconds'),
           ('devices', 'devices'))
# What another program's section.json holds, see reading.misfit.
SECTION = {'title': str, 'paragraphs': ([str], None),
           'tables': ([{'columns': [str], 'rows': [list], 'source': (str, None)}], None),
           'figures': ([{'file': str, 'caption': str}], None)}


def differing(runs: list[dict[str, Any]]) -> list[str]:
  """The settings that are not the same in all runs, in the order of the config."""
  keys = dict.fromkeys(key for run in runs for key in run['settings'])
  return [key for key in keys if len({json.dumps(run['settings'].get(key)) for run in runs}) > 1]


def sentence(runs: list[dict[str, Any]], studies: list[dict[str, Any]]) -> str:
  """What the page says, in one or two sentences."""
  words = []
  done = [run for run in runs if run['result'].get('bits_per_byte') is not None]
  if done:
    best = min(done, key=lambda run: run['result']['bits_per_byte'])
    r = best['result']
    of = f'Best of {len(done)} runs: {best["name"]} with' if len(done) > 1 else f'{best["name"]}:'
    words.append(f"{of} {r['bits_per_byte']:.3f} bits/byte on held-out text after "
                 f"{page.number(r.get('tokens'))} tokens ({page.number(r.get('params_total'))} parameters).")
  if len(done) < len(runs):
    words.append(f'{len(runs) - len(done)} of {_count(len(runs), "run", "runs")} without a result yet.')
  verdicts = collections.Counter(printable(study.get('verdict', 'no verdict'), 60) for study in studies)
  if studies:
    words.append(f"{_count(len(studies), 'study', 'studies')}: {', '.join(f'{n} {v}' for v, n in verdicts.items())}.")
  return ' '.join(words) or 'Results below.'


def _count(n: int, one: str, many: str) -> str:
  return f'{n} {one if n == 1 else many}'


def ranked(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The best result first, those without one last."""
  def rank(run: dict[str, Any]) -> tuple[bool, float, str]:
    value = run['result'].get('bits_per_byte')
    return value is None, value or 0.0, run['name']
  return sorted(runs, key=rank)


def overview(runs: list[dict[str, Any]], here: pathlib.Path) -> page.Section:
  """All runs in one table, the best first, with the settings and results in which they differ, and their losses."""
  several = len(runs) > 1
  keys = differing(runs) if several else []
  results = [(heading, key) for heading, key in RESULTS
             if not several or len({json.dumps(run['result'].get(key)) for run in runs if run['result']}) > 1]
  rows = [[run['name'], *(_setting(run['settings'].get(key)) for key in keys),
           *(_setting(run['result'].get(key)) for _, key in results), folders.state(run)] for run in runs]
  which = 'each run' if several else relative(runs[0]['folder'], here)
  columns = ['run', *keys, *(heading for heading, _ in results), 'status']
  blocks: list[Any] = [page.Table(columns, rows, f'config.json and result.json of {which}',
                                  'bits/byte' if several and 'bits/byte' in columns else '')]
  if several:
    blocks += _shared(runs, [pair for pair in RESULTS if pair not in results])
  with_rows = [run for run in runs if run['rows']]
  if with_rows:
    svg = style.svg(figures.losses({run['name']: run['rows'] for run in with_rows}))
    blocks.append(chart.Chart(
        {run['name']: curves(run) for run in with_rows}, ('tokens', 'step', 'FLOPs', 'seconds'),
        ('loss of batches', 'held-out loss', 'held-out bits/byte', 'learning rate', 'gradient norm'),
        ('tokens', 'FLOPs'), svg, 'Loss on training batches and on held-out text: the pointer tells the lines apart.',
        f'metrics.jsonl and timing.jsonl of {which}'))
  by_position = {run['name']: run['result']['loss_by_position'] for run in runs
                 if run['result'].get('loss_by_position')}
  if by_position:
    svg = style.svg(figures.positions(by_position))
    lines = {name: {'position': list(range(1, len(losses) + 1)), 'nats/token': losses}
             for name, losses in by_position.items()}
    blocks.append(chart.Chart(lines, ('position',), ('nats/token',), ('position',), svg,
                              'Held-out loss by position in the window.', "result.json, field 'loss_by_position'"))
  return page.Section('Runs' if several else f'Run {runs[0]["name"]}', blocks)


def _shared(runs: list[dict[str, Any]], results: list[tuple[str, str]]) -> list[page.Details]:
  """What is the same in all runs, closed."""
  rows = [[heading, _setting(next((run['result'].get(key) for run in runs if run['result']), None))]
          for heading, key in results]
  rows = [row for row in rows if row[1] is not None]
  differ = set(differing(runs))
  settings = [[key, _setting(value)] for key, value in runs[0]['settings'].items() if key not in differ]
  rows += settings
  return [page.Details('The same in all runs', page.Table(['what', 'value'], rows))] if rows else []


def curves(run: dict[str, Any]) -> dict[str, list[float | None]]:
  """The columns of a run's chart, of a few hundred of its rows at most."""
  rows, result = run['rows'], run['result']
  held_out = [i for i, row in enumerate(rows) if row.get('validation_loss') is not None]
  picked = [rows[i] for i in chart.thinned(len(rows), held_out)]
  timing = {row['step']: row.get('seconds') for row in run['timing']}
  flops, steps = result.get('flops_train_exact'), result.get('steps') or (rows and rows[-1]['step'])
  def column(key: str) -> list[float | None]:
    return [row[key] if isinstance(row.get(key), (int, float)) else None for row in picked]
  return {'tokens': column('tokens'), 'step': column('step'), 'seconds': [timing.get(row['step']) for row in picked],
          'FLOPs': [flops / steps * row['step'] if flops and steps else None for row in picked],
          'loss of batches': column('loss'), 'held-out loss': column('validation_loss'),
          'held-out bits/byte': column('validation_bits_per_byte'), 'learning rate': column('learning_rate'),
          'gradient norm': column('gradient_norm')}


def _setting(value: Any) -> Any:
  return value if value is None or isinstance(value, (int, float, str)) else json.dumps(value)


def details(run: dict[str, Any], here: pathlib.Path) -> page.Section:
  """One run: command, hardware, versions, later evaluations, and all its settings."""
  config, folder = run['config'], relative(run['folder'], here)
  versions = ', '.join(f'{name} {v}' for name, v in (config.get('versions') or {}).items())
  blocks: list[Any] = [
      f"Command: {' '.join(map(str, config.get('command') or []))}\nVersions: {versions}\n"
      f"Git commit: {config.get('git_commit') or 'none'}\nDevices: {_setting(run['result'].get('devices'))}; "
      f"XLA_FLAGS: {config.get('xla_flags') or 'none'}"]
  evaluations = files.read_rows(run['folder'] / 'evaluations.jsonl')
  if evaluations:
    keys = [k for k in evaluations[0] if not isinstance(evaluations[0][k], (list, dict))]
    blocks.append(page.Table(keys, [[row.get(k) for k in keys] for row in evaluations],
                             f'{folder}/evaluations.jsonl'))
  settings = [[key, _setting(value)] for key, value in run['settings'].items()]
  blocks.append(page.Details('All settings', page.Table(['setting', 'value'], settings, f'{folder}/config.json')))
  return page.Section(run['name'], blocks)


def study(folder: pathlib.Path, verdict: dict[str, Any], here: pathlib.Path) -> page.Section:
  """A study's page: verdict and claim first, then how it was decided, the numbers and the figures."""
  where = relative(folder, here)
  fields = ('verdict', 'claim', 'source', 'setting', 'rule', 'measure', 'seeds', 'cost')
  words = [f'{key.capitalize()}: {_setting(verdict[key])}' for key in fields if verdict.get(key) is not None]
  blocks: list[Any] = ['\n'.join(words)]
  numbers = verdict.get('numbers')
  if isinstance(numbers, dict):
    blocks.append(page.Table(['quantity', 'value'], [[key, _setting(v)] for key, v in _flat(numbers)],
                             f'{where}/verdict.json'))
  captions = {'figure': verdict.get('figure')}
  blocks += [page.Figure(reading.text(path), str(captions.get(path.stem) or path.stem.replace('_', ' ')),
                         f'{where}/{path.name}') for path in sorted(folder.glob('*.svg'))]
  return page.Section(printable(verdict.get('name', folder.name), 120), blocks)


def _flat(numbers: dict[str, Any], before: str = '') -> list[tuple[str, Any]]:
  out = []
  for key, value in numbers.items():
    out += _flat(value, f'{before}{key} ') if isinstance(value, dict) else [(before + key, value)]
  return out


def section(folder: pathlib.Path, part: dict[str, Any], here: pathlib.Path) -> page.Section:
  """A section that another program has written. Raises ConfigError if it has not the form of one."""
  where, path = relative(folder, here), folder / 'section.json'
  if wrong := reading.misfit(part, SECTION):
    raise config_lib.ConfigError(f'{printable(path)}: {wrong} (expected title, paragraphs, tables of columns and '
                                 'rows, figures of file and caption)')
  blocks: list[Any] = list(part.get('paragraphs') or [])
  blocks += [page.Table(t['columns'], t['rows'], t.get('source') or f'{where}/section.json')
             for t in part.get('tables') or []]
  for figure in part.get('figures') or []:
    try:
      svg = reading.text(folder / figure['file'], folder)
    except FileNotFoundError:
      raise config_lib.ConfigError(f"{printable(path)} names {printable(figure['file'], 120)}, which does not exist; "
                                   'expected a file of its folder') from None
    blocks.append(page.Figure(svg, figure['caption'], f"{where}/{figure['file']}"))
  return page.Section(part['title'], blocks)


def contents(roots: list[pathlib.Path], here: pathlib.Path) -> tuple[str, list[page.Section], list[str]]:
  """(the first sentence of the page about everything below `roots`, its sections, what had to be left out and why).

  Raises:
    ConfigError: there is nothing to show.
  """
  studies, sections = [], []
  runs, wrong = folders.gather(roots)
  runs = ranked(runs)
  for folder in folders.find(roots):
    try:
      part, verdict = folders.read(folder / 'section.json'), folders.read(folder / 'verdict.json')
      if part is not None:
        sections.append(section(folder, part, here))
      if verdict is not None:
        sections.append(study(folder, verdict, here))
        studies.append(verdict)
    except config_lib.ConfigError as error:
      wrong.append(one_line(error))
  if runs:
    sections += [overview(runs, here)]
  for run in runs:
    try:
      sections.append(details(run, here))
    except config_lib.ConfigError as error:
      wrong.append(one_line(error))
  if not sections:
    raise config_lib.ConfigError(wrong[0] if wrong else f'nothing below {printable(roots[0])} can be read')
  words = sentence(runs, studies)
  if wrong:
    sections.insert(0, page.Section('Left out', ['\n'.join(wrong)]))
    words += f" {_count(len(wrong), 'folder', 'folders')} left out, which could not be read: see below."
  return words, sections, wrong


def render(roots: list[pathlib.Path], here: pathlib.Path, title: str, refresh: int = 0) -> str:
  """The page about everything below `roots`, for a file in the folder `here`.

  Raises:
    ConfigError: there is nothing to show.
  """
  words, sections, _ = contents(roots, here)
  return page.render(title, words, sections, refresh)


def write(roots: list[pathlib.Path], output: pathlib.Path, title: str) -> pathlib.Path:
  """Writes the page about everything below `roots` to `output`; the log says what had to be left out.

  Raises:
    ConfigError: nothing to show, or `output` holds something that is not such a page.
  """
  outputs.check_page('--output', output)
  words, sections, wrong = contents(roots, output.parent)
  text = page.render(title, words, sections)
  for line in wrong:
    log.warning('left out: %s', line)
  output.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(output, text)
  return output
