"""The chapters of the quickstart's page, read from the folders that its steps have written.

Each is a section and the clause that says in the page's first sentence what came of it.
"""

from collections.abc import Sequence
import pathlib
from numbers import Real
from typing import Any

from experiments.reports import runs as folders
from experiments.reports import sections
from experiments.shared.pipeline import Step
from experiments.sweeping import forecast
from foundation import files, page, reading
from framework import config as config_lib
from scaling import ledger

Chapter = tuple[str, page.Section]
# Of the figures of a sweep's report, those that a newcomer should see.
FITS = {'envelope': 'Loss by the FLOPs of training: the runs, and the least that the law allows.',
        'contours': 'Lines of equal loss by compute and parameters, the runs, and the best size for each compute.',
        'residuals': 'What the law leaves unexplained of each run.'}


# What the chapters ask of the files of the steps, see reading.misfit.
LADDER = {'rows': [{'name': str, 'kind': str, 'bits_per_byte': float, 'bits_per_token': float, 'targets': int}]}
DECODER = dict.fromkeys(('params_total', 'tokens'), int) | dict.fromkeys(('seconds', 'bits_per_byte'), float)
LAW = {'formula': str, 'values': {str: Real}, 'runs': int, 'rms_percent': float}
VERDICT = {'numbers': {'rollouts': [float], 'decoder': [float]}}


def needed(path: pathlib.Path, kind: Any = dict) -> Any:
  """A JSON object that a step has written. Raises ConfigError if it is gone, or not of the kind."""
  value = folders.read(path, kind)
  if value is None:
    raise _gone(path)
  return value


def text(path: pathlib.Path) -> str:
  """What a step has written."""
  try:
    return reading.text(path)
  except FileNotFoundError:
    raise _gone(path) from None


def _gone(path: pathlib.Path) -> config_lib.ConfigError:
  return config_lib.ConfigError(f'{path} is gone; delete the steps.json beside its folder to make it again')


def first(values: Sequence[Any], path: pathlib.Path, what: str) -> Any:
  if not values:
    raise config_lib.ConfigError(f'{path} has no {what}; expected one')
  return values[0]


def figure(path: pathlib.Path, caption: str, here: pathlib.Path) -> page.Figure:
  return page.Figure(text(path), caption, folders.relative(path, here))


def perplexity(ladder: pathlib.Path, here: pathlib.Path) -> Chapter:
  """Every predictor on the same held-out tokens."""
  path = ladder / 'ladder.json'
  rows = needed(path, LADDER)['rows']
  best = {kind: first(sorted((row for row in rows if row['kind'] == kind), key=lambda row: row['bits_per_byte']), path,
                      f"row of kind '{kind}'") for kind in ('counts', 'compressor', 'network')}
  network, counts, compressor = best['network'], best['counts'], best['compressor']
  def beside(other: dict[str, Any], does: str) -> str:
    than = 'less' if network['bits_per_byte'] < other['bits_per_byte'] else 'no less'
    return f"{than} than the best that {does} ({other['name']}, {other['bits_per_byte']:.3f})"
  words = (f"On the same {network['targets']:,} held-out tokens the decoder needs {network['bits_per_byte']:.3f} bits "
           f"a byte, {beside(counts, 'counts')} and {beside(compressor, 'compresses')}.")
  table = page.Table(['predictor', 'kind', 'bits/byte', 'bits/token', 'perplexity'],
                     [[row['name'], row['kind'], row['bits_per_byte'], row['bits_per_token'],
                       2 ** min(row['bits_per_token'], 1000)] for row in rows], folders.relative(path, here))
  return (f"a decoder predicts held-out text at {network['bits_per_byte']:.2f} bits a byte",
          page.Section('1. Perplexity: how well can text be predicted?',
                       [words, figure(ladder / 'ladder.svg', 'Bits a byte of every predictor.', here), table]))


def attention(run: pathlib.Path, here: pathlib.Path) -> Chapter:
  """The decoder: how it learnt, what it attends to, what it writes."""
  result, rows = needed(run / 'result.json', DECODER), files.read_rows(run / 'evaluations.jsonl')
  words = (f"A decoder of {result['params_total']:,} parameters read {result['tokens']:,} tokens in "
           f"{result['seconds']:.0f} seconds and predicts held-out text at {result['bits_per_byte']:.3f} bits a byte.")
  keys = ('window', 'stride', 'bits_per_byte', 'bits_per_token', 'perplexity', 'targets')
  return f"it learnt that in {result['seconds']:.0f} seconds", page.Section('2. Attention: a decoder learns to read', [
      words,
      figure(run / 'loss.svg', 'Loss while it learnt.', here),
      figure(run / 'attention.svg', 'What each token (row) reads (column), in every layer and head.', here),
      figure(run / 'loss_by_position.svg', 'The more it has read, the better it predicts.', here),
      page.Table(keys, [[row.get(key) for key in keys] for row in rows],
                 folders.relative(run / 'evaluations.jsonl', here)),
      'What it writes:', page.Text(text(run / 'sample.txt'), folders.relative(run / 'sample.txt', here))])


def gemm(folder: pathlib.Path, here: pathlib.Path) -> Chapter:
  """Traffic of a blocked product, and the measured roofline."""
  path = folder / 'section.json'
  part = needed(path, sections.SECTION)
  measured = first((part.get('tables') or [])[1:], path, 'second table')['rows']
  speeds = [row[2] for row in measured if len(row) > 2 and not reading.misfit(row[2], float)]
  fastest = first(sorted(speeds, reverse=True), path, 'GFLOP/s in the third column of its second table')
  return (f"this machine multiplies at {fastest:,.0f} GFLOP/s",
          sections.section(folder, part | {'title': '3. GEMM: load a block, use it often'}, here))


def chinchilla(sweep: pathlib.Path, here: pathlib.Path) -> Chapter:
  """The law of a small sweep, and what it said of the largest run before that began."""
  law, records = needed(sweep / 'report' / 'law.json', LAW), ledger.read(sweep / forecast.LEDGER)
  before: Any  # what has been measured was predicted
  before, after = (next((r for r in records if r['kind'] == kind), None) for kind in ('prediction', 'measurement'))
  if after is None:
    raise config_lib.ConfigError(f'{sweep / forecast.LEDGER} has no prediction with its measurement; expected those '
                                 'of a sweep that has ended')
  values = ', '.join(f'{name} = {value:.3g}' for name, value in law['values'].items())
  blocks: list[Any] = [
      f"Before the largest run of {before['N']:,.0f} parameters and {before['D']:,.0f} tokens began, the law of the "
      f"{before['runs']} smaller ones said that it would end at {before['loss']:.3f} nats a token, and in "
      f"{100 * before['level']:g} % of such cases between {before['low']:.3f} and {before['high']:.3f}. It ended at "
      f"{after['measured']:.3f}, {'inside' if after['inside'] else 'outside'} of that.",
      page.Text('\n'.join(forecast.compared(sweep)), folders.relative(sweep / forecast.LEDGER, here)),
      f"The law of all {law['runs']} runs: loss = {law['formula']}\nN: parameters, D: tokens; {values}. It misses a "
      f"run by {law['rms_percent']:.2f} % (root mean square). Runs so short pin their law down badly: how badly is in "
      'sweep/report/index.html. (From sweep/report/law.json.)',
      page.Details('The fit in full', page.Text(text(sweep / 'law.txt'),
                                                folders.relative(sweep / 'law.txt', here)))]
  blocks += [figure(path, caption, here) for name, caption in FITS.items()
             if (path := sweep / 'report' / f'{name}.svg').exists()]
  runs = folders.collect([sweep / 'cells'])
  blocks.append(page.Details('All runs of the sweep', page.Table(
      ['run', 'parameters', 'tokens', 'FLOPs', 'nats/token'],
      [[run['name'], *(run['result'].get(key) for key in ('params_total', 'tokens', 'flops_train_exact',
                                                          'loss_nats_per_token'))] for run in runs],
      f"result.json of each folder of {folders.relative(sweep / 'cells', here)}")))
  return (f"a law of {before['runs']} small runs said {before['loss']:.3f} nats of a larger one and "
          f"{after['measured']:.3f} came", page.Section('4. Chinchilla: what to train next', blocks))


def rasp(folder: pathlib.Path, here: pathlib.Path) -> Chapter:
  """An adder written by hand, compiled to weights and run in the decoder."""
  printed = text(folder / 'adder.txt')
  return 'an adder that nobody trained adds', page.Section('5. RASP: what could a transformer compute?', [
      'A program of selectors and aggregates adds two numbers; it was compiled to the weights of the same decoder, '
      'which then read the sum and wrote the answer:',
      page.Text(printed, folders.relative(folder / 'adder.txt', here)),
      figure(folder / 'adder.svg', 'Each step of the program, on another sum.', here)])


def thinking(study: pathlib.Path, here: pathlib.Path) -> Chapter:
  """The tiered model on a word problem that the plain decoder cannot solve."""
  path = study / 'verdict.json'
  verdict = needed(path, VERDICT)
  section = sections.study(study, verdict, here)
  rollouts, decoder = (first(verdict['numbers'][key], path, f'number of {key}') for key in ('rollouts', 'decoder'))
  return (f"a decoder that reads its own thoughts answers {rollouts:.1%} of questions, without them {decoder:.1%}",
          page.Section('Thinking in text: the tiered model', section.blocks))


def made(root: pathlib.Path, steps: Sequence[Step]) -> page.Section:
  """What was run to make the page: the commands, how long each took, and on what."""
  took = needed(root / 'steps.json', {str: float})
  rows = [[step.title, took.get(step.command), f'python -m {step.command}'] for step in steps]
  blocks: list[Any] = [page.Table(['step', 'seconds', 'command'], rows, 'steps.json')]
  config = folders.read(root / 'decoder' / 'config.json', {'versions': {str: str}})
  if config:
    versions = ', '.join(f'{name} {version}' for name, version in config['versions'].items())
    blocks.append(f"Versions: {versions}; git commit {config.get('git_commit') or 'none'} (from decoder/config.json)")
  return page.Section('How this page was made', blocks)
