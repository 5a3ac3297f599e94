"""The five chapters of the quickstart's page, read from the folders that its steps have written."""

import json
import pathlib
from typing import Any

from experiments import folders, forecast, page, sections
from framework import config as config_lib
from framework import files

FITS = ('envelope', 'contours', 'residuals')  # of a sweep's report, those that a newcomer should see


def needed(path: pathlib.Path) -> Any:
  """A JSON object that a step has written. Raises ConfigError if it is gone."""
  value = folders.read(path)
  if value is None:
    raise config_lib.ConfigError(f'{path} is gone; delete the steps.json beside its folder to make it again')
  return value


def figure(path: pathlib.Path, caption: str, here: pathlib.Path) -> page.Figure:
  return page.Figure(path.read_text(encoding='utf-8'), caption, folders.relative(path, here))


def perplexity(ladder: pathlib.Path, here: pathlib.Path) -> page.Section:
  """Every predictor on the same held-out tokens."""
  rows = needed(ladder / 'ladder.json')['rows']
  best = {kind: min((row for row in rows if row['kind'] == kind), key=lambda row: row['bits_per_byte'])
          for kind in ('counts', 'compressor', 'network')}
  network, counts, compressor = best['network'], best['counts'], best['compressor']
  others = min(counts['bits_per_byte'], compressor['bits_per_byte'])
  won = 'less than' if network['bits_per_byte'] < others else 'no less than'
  words = (f"On the same {network['targets']:,} held-out tokens the decoder needs {network['bits_per_byte']:.3f} bits "
           f"a byte, {won} the best that counts ({counts['name']}, {counts['bits_per_byte']:.3f}) and the best that "
           f"compresses ({compressor['name']}, {compressor['bits_per_byte']:.3f}).")
  table = page.Table(['predictor', 'kind', 'bits/byte', 'bits/token', 'perplexity'],
                     [[row['name'], row['kind'], row['bits_per_byte'], row['bits_per_token'],
                       2 ** row['bits_per_token']] for row in rows],
                     folders.relative(ladder / 'ladder.json', here))
  return page.Section('1. Perplexity: how well can text be predicted?',
                      [words, figure(ladder / 'ladder.svg', 'Bits a byte of every predictor.', here), table])


def attention(run: pathlib.Path, here: pathlib.Path) -> page.Section:
  """The decoder: how it learnt, what it attends to, what it writes."""
  result, rows = needed(run / 'result.json'), files.read_rows(run / 'evaluations.jsonl')
  words = (f"A decoder of {result['params_total']:,} parameters read {result['tokens']:,} tokens in "
           f"{result['seconds']:.0f} seconds and predicts held-out text at {result['bits_per_byte']:.3f} bits a byte.")
  keys = ('window', 'stride', 'bits_per_byte', 'bits_per_token', 'perplexity', 'targets')
  return page.Section('2. Attention: a decoder learns to read', [
      words,
      figure(run / 'loss.svg', 'Loss while it learnt.', here),
      figure(run / 'attention.svg', 'What each token (row) reads (column), in every layer and head.', here),
      figure(run / 'loss_by_position.svg', 'The more it has read, the better it predicts.', here),
      page.Table(keys, [[row[key] for key in keys] for row in rows], folders.relative(run / 'evaluations.jsonl', here)),
      'What it writes:', page.Text((run / 'sample.txt').read_text(encoding='utf-8'),
                                   folders.relative(run / 'sample.txt', here))])


def gemm(folder: pathlib.Path, here: pathlib.Path) -> page.Section:
  """Traffic of a blocked product, and the measured roofline."""
  return sections.section(folder, needed(folder / 'section.json') | {'title': '3. GEMM: load a block, use it often'},
                          here)


def chinchilla(sweep: pathlib.Path, here: pathlib.Path) -> page.Section:
  """The law of a small sweep, and what it said of the largest run before that began."""
  blocks: list[Any] = [
      'The loss of small runs, as a law of parameters N and tokens D. The largest run was predicted before it began:',
      page.Text('\n'.join(forecast.compared(sweep)), folders.relative(sweep / forecast.LEDGER, here))]
  blocks += [figure(path, name.capitalize() + '.', here) for name in FITS
             if (path := sweep / 'report' / f'{name}.svg').exists()]
  runs = folders.collect([sweep / 'cells'])
  blocks.append(page.Details('All runs of the sweep', page.Table(
      ['run', 'parameters', 'tokens', 'FLOPs', 'nats/token'],
      [[run['name'], *(run['result'].get(key) for key in ('params_total', 'tokens', 'flops_train_exact',
                                                          'loss_nats_per_token'))] for run in runs],
      f"result.json of each folder of {folders.relative(sweep / 'cells', here)}")))
  return page.Section('4. Chinchilla: what to train next', blocks)


def rasp(folder: pathlib.Path, here: pathlib.Path) -> page.Section:
  """An adder written by hand, compiled to weights and run in the decoder."""
  said = (folder / 'adder.txt').read_text(encoding='utf-8')
  return page.Section('5. RASP: what could a transformer compute?', [
      'A program of selectors and aggregates adds two numbers; it was compiled to the weights of the same decoder, '
      'which then read the sum and wrote the answer:',
      page.Text(said, folders.relative(folder / 'adder.txt', here)),
      figure(folder / 'adder.svg', 'Each step of the program, on another sum.', here)])


def thinking(study: pathlib.Path, here: pathlib.Path) -> page.Section:
  """The tiered model on a word problem that the plain decoder cannot solve."""
  verdict = json.loads((study / 'verdict.json').read_text(encoding='utf-8'))
  section = sections.study(study, verdict, here)
  return page.Section('Thinking in text: the tiered model', section.blocks)
