"""What a page shows of runs and studies; every number comes from a file that is named beside it."""

import collections
import json
import pathlib
from typing import Any

from experiments.reports import figures
from experiments.reports import runs as folders
from experiments.reports.runs import relative
from foundation import figures as style
from foundation import files, page
from framework import config as config_lib

# What a run's row shows beside the settings in which runs differ: heading, and key of result.json.
RESULTS = (('bits/byte', 'bits_per_byte'), ('nats/token', 'loss_nats_per_token'), ('parameters', 'params_total'),
           ('tokens', 'tokens'), ('epochs', 'epochs'), ('FLOPs', 'flops_train_exact'), ('seconds', 'seconds'),
           ('devices', 'devices'))


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
  verdicts = collections.Counter(str(study.get('verdict', 'no verdict')) for study in studies)
  if studies:
    words.append(f"{_count(len(studies), 'study', 'studies')}: {', '.join(f'{n} {v}' for v, n in verdicts.items())}.")
  return ' '.join(words) or 'Results below.'


def _count(n: int, one: str, many: str) -> str:
  return f'{n} {one if n == 1 else many}'


def overview(runs: list[dict[str, Any]], here: pathlib.Path) -> page.Section:
  """All runs in one table, with the settings in which they differ, and their losses in one figure."""
  keys = differing(runs) if len(runs) > 1 else []
  rows = [[run['name'], *(_setting(run['settings'].get(key)) for key in keys),
           *(run['result'].get(key) for _, key in RESULTS), folders.state(run)] for run in runs]
  which = 'each run' if len(runs) > 1 else relative(runs[0]['folder'], here)
  blocks: list[Any] = [page.Table(['run', *keys, *(heading for heading, _ in RESULTS), 'status'], rows,
                       f'config.json and result.json of {which}')]
  with_rows = [run for run in runs if run['rows']]
  if with_rows:
    svg = style.svg(figures.losses({run['name']: run['rows'] for run in with_rows}))
    blocks.append(page.Figure(svg, 'Loss on training batches (lines) and on held-out text (points) by tokens read.',
                              f'metrics.jsonl of {which}'))
  by_position = {run['name']: run['result']['loss_by_position'] for run in runs
                 if run['result'].get('loss_by_position')}
  if by_position:
    blocks.append(page.Figure(style.svg(figures.positions(by_position)), 'Held-out loss by position in the window.',
                              "result.json, field 'loss_by_position'"))
  return page.Section('Runs' if len(runs) > 1 else f'Run {runs[0]["name"]}', blocks)


def _setting(value: Any) -> Any:
  return value if value is None or isinstance(value, (int, float, str)) else json.dumps(value)


def details(run: dict[str, Any], here: pathlib.Path) -> page.Section:
  """One run: command, hardware, versions, later evaluations, and all its settings."""
  config, folder = run['config'], relative(run['folder'], here)
  versions = ', '.join(f'{name} {v}' for name, v in config.get('versions', {}).items())
  blocks: list[Any] = [
      f"Command: {' '.join(map(str, config.get('command', [])))}\nVersions: {versions}\n"
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
  blocks += [page.Figure(path.read_text(encoding='utf-8'), str(captions.get(path.stem) or path.stem.replace('_', ' ')),
                         f'{where}/{path.name}') for path in sorted(folder.glob('*.svg'))]
  return page.Section(str(verdict.get('name', folder.name)), blocks)


def _flat(numbers: dict[str, Any], before: str = '') -> list[tuple[str, Any]]:
  out = []
  for key, value in numbers.items():
    out += _flat(value, f'{before}{key} ') if isinstance(value, dict) else [(before + key, value)]
  return out


def section(folder: pathlib.Path, part: dict[str, Any], here: pathlib.Path) -> page.Section:
  """A section that another program has written. Raises ConfigError if it has not the form of one."""
  where = relative(folder, here)
  try:
    blocks: list[Any] = [str(text) for text in part.get('paragraphs', [])]
    blocks += [page.Table(t['columns'], t['rows'], t.get('source', f'{where}/section.json'))
               for t in part.get('tables', [])]
    blocks += [page.Figure((folder / f['file']).read_text(encoding='utf-8'), f['caption'], f"{where}/{f['file']}")
               for f in part.get('figures', [])]
    return page.Section(str(part['title']), blocks)
  except (KeyError, TypeError, AttributeError, OSError) as error:
    raise config_lib.ConfigError(f"{folder / 'section.json'}: {type(error).__name__} {error}; expected title, "
                                 'paragraphs, tables (columns, rows) and figures (file, caption)') from error


def render(roots: list[pathlib.Path], here: pathlib.Path, title: str, refresh: int = 0) -> str:
  """The page about everything below `roots`, for a file in the folder `here`.

  Raises:
    ConfigError: nothing to show, or a damaged file.
  """
  studies, sections = [], []
  for folder in folders.find(roots):
    part, verdict = folders.read(folder / 'section.json'), folders.read(folder / 'verdict.json')
    if part is not None:
      sections.append(section(folder, part, here))
    if verdict is not None:
      studies.append(verdict)
      sections.append(study(folder, verdict, here))
  runs = folders.collect(roots)
  if runs:
    sections += [overview(runs, here)] + [details(run, here) for run in runs]
  return page.render(title, sentence(runs, studies), sections, refresh)


def write(roots: list[pathlib.Path], output: pathlib.Path, title: str) -> pathlib.Path:
  """Writes the page about everything below `roots` to `output`.

  Raises:
    ConfigError: nothing to show, a damaged file, or `output` holds something that is not such a page.
  """
  if output.exists() and (not output.is_file() or page.MARK not in output.read_text('utf-8', errors='replace')[:500]):
    raise config_lib.ConfigError(f'--output {output} exists and is not a report; expected a new file')
  text = render(roots, output.parent, title)
  output.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(output, text)
  return output
