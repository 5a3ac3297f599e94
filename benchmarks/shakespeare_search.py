"""The search behind experiments/configs/shakespeare_cpu.py: which decoder predicts Tiny Shakespeare best in the time
that nanoGPT's CPU setting takes in PyTorch.

  python -m benchmarks.shakespeare_search --output=search.csv

The cost of a step is CPU time, of one core with half of the batch, in steps of nanoGPT's setting in Lemma: other work
on the machine changes it by a tenth. Each candidate gets as many steps as cost as much as PyTorch's 2000, unless it
names its own. It is trained on the first 81 % of the text and chosen by the 9 % after them; the last tenth, on which
results are reported, takes no part. Rows that the table has are kept, so the search can be stopped and continued. The
table of the search as it was made is shakespeare_search.csv.
"""

import csv
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks import shakespeare
from experiments.configs import shakespeare_nanogpt
from foundation import files
from framework import config as config_lib
from framework.data import windows

OUTPUT = flags.DEFINE_string('output', 'search.csv', 'the table; new, or one to continue')
ONE = flags.DEFINE_string('one', None, 'internal: what to do, measure or train, and the settings of a candidate')
# CPU time that fits in the time of PyTorch's 2000 steps, in steps of its setting here: 500 steps of the first candidate
# took 64.4 s by the wall where PyTorch took 65.0 (benchmarks.shakespeare), since two devices wait for each other.
NANOGPT = 500 * 3.80

BASE = {'model.heads': 2, 'model.activation': 'relu', 'data.tokenizer': 'chars', 'data.window': 128,
        'optimizer.name': 'muon', 'optimizer.learning_rate': 0.01, 'optimizer.final_learning_rate': 0.0,
        'optimizer.schedule': 'linear', 'optimizer.warmup_steps': 20, 'training.batch': 16, 'evaluation.batch': 64,
        'training.devices': 1, 'checkpoint.every_steps': 0}
# What changes how much a step teaches, but not how long it takes.
FREE = ('learning_rate', 'final_learning_rate', 'schedule', 'warmup_steps', 'weight_decay', 'decay_fraction', 'beta1',
        'beta2', 'epsilon', 'seed', 'rope_base', 'steps')

CANDIDATES = [
    {},
    {'data.window': 64, 'training.batch': 32},
    {'optimizer.learning_rate': 0.02},
    {'optimizer.learning_rate': 0.007},
    {'model.layers': 3},
    {'model.layers': 3, 'data.window': 64, 'training.batch': 32},
    {'model.layers': 2},
    {'model.layers': 3, 'model.width': 96},
    {'model.layers': 3, 'model.width': 96, 'data.window': 64, 'training.batch': 32},
    {'model.layers': 3, 'model.width': 64, 'data.window': 64, 'training.batch': 32},
    {'model.layers': 3, 'model.width': 96, 'optimizer.learning_rate': 0.02},
    {'model.layers': 3, 'model.width': 96, 'optimizer.learning_rate': 0.006},
    {'model.layers': 3, 'model.width': 96, 'training.batch': 8, 'optimizer.learning_rate': 0.006},
    {'model.layers': 3, 'model.width': 96, 'training.batch': 32, 'optimizer.learning_rate': 0.008},
    {'model.layers': 3, 'model.width': 96, 'optimizer.learning_rate': 0.004},
    # From here on with the faster Muon of optimizer.py, before its AdamW was Nesterov's, and the steps that fit by the
    # wall.
    *({'model.layers': 3, 'model.width': 96, 'training.steps': 1500} | more for more in (
        {},
        {'model.rope_base': 1000.0},
        {'optimizer.weight_decay': 0.0})),
    *({'model.layers': 3, 'model.width': 96, 'model.activation': 'relu2', 'training.steps': 1500} | more for more in (
        {},
        {'optimizer.learning_rate': 0.006},
        {'model.rope_base': 1000.0, 'optimizer.weight_decay': 0.3},
        {'model.rope_base': 1000.0, 'optimizer.weight_decay': 0.2, 'optimizer.learning_rate': 0.008},
        {'model.rope_base': 1000.0, 'optimizer.weight_decay': 0.5, 'optimizer.learning_rate': 0.008},
        {'model.rope_base': 1000.0, 'optimizer.weight_decay': 0.8, 'optimizer.learning_rate': 0.008},
        {'model.rope_base': 1000.0, 'optimizer.weight_decay': 0.4, 'optimizer.learning_rate': 0.005},
        {'model.rope_base': 200.0, 'optimizer.weight_decay': 0.6, 'optimizer.learning_rate': 0.006})),
]

COLUMNS = ('candidate', 'cost', 'steps', 'epochs', 'parameters', 'nats', 'nats_overlapping')


def name(candidate: dict) -> str:
  return ' '.join(f'{key}={value}' for key, value in candidate.items()) or 'base'


def cost(candidate: dict) -> dict:
  """The settings on which the cost of a step depends."""
  return {key: value for key, value in candidate.items() if key.split('.')[1] not in FREE}


def cpu_seconds(config: config_lib.Config) -> float:
  """CPU seconds of a step with half of the batch on one core, the least of 4 rounds of 4 steps."""
  config.training.batch //= 2
  one, _, wait = shakespeare.lemma(config)
  def steps():
    for _ in range(4):
      one()
    wait()
  steps()
  rounds = []
  for _ in range(4):
    begin = time.process_time()
    steps()
    rounds.append((time.process_time() - begin) / 4)
  return min(rounds)


def measure(settings: dict) -> dict:
  """The cost of a step."""
  config = config_lib.resolve(config_lib.from_flat(BASE | settings))
  return {'seconds': cpu_seconds(config)}


def train(settings: dict) -> dict:
  """Trains a candidate and evaluates it: every character once, with windows side by side and with overlapping ones."""
  config = config_lib.resolve(config_lib.from_flat(BASE | settings))
  from experiments.shared import launch
  launch.start_jax(config)
  from framework.data import corpus as corpus_lib
  from framework.training import evaluation, loop, run, setup
  text = corpus_lib.prepare(config.data)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder) / 'run'
    run.open_folder(folder, config, text, False)
    result = loop.train(config, text, folder)
    s = setup.load(folder)
  overlapping = evaluation.evaluate(
      evaluation.compile_nats(s.setup.module, s.setup.mesh), s.params,
      windows.Windows(text.validation, text.tokenizer.end, config.data.window, config.data.window // 4), text.tokenizer,
      s.setup.mesh, batch=config.evaluation.batch)
  return {'steps': config.training.steps, 'epochs': round(result['epochs'], 2), 'parameters': result['params_total'],
          'nats': round(result['loss_nats_per_token'], 4),
          'nats_overlapping': round(overlapping['nats_per_token'], 4)}


def ask(what: str, settings: dict) -> dict:
  """What `measure` or `train` says, in a process of its own."""
  words = [sys.executable, '-m', 'benchmarks.shakespeare_search', f'--one={json.dumps([what, settings])}']
  return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main(_) -> None:
  if ONE.value:
    what, settings = json.loads(ONE.value)
    print(json.dumps({'measure': measure, 'train': train}[what](settings)))
    return
  path = pathlib.Path(OUTPUT.value)
  rows = {row['candidate']: row for row in csv.DictReader(path.open())} if path.exists() else {}
  with tempfile.TemporaryDirectory() as folder:
    text = pathlib.Path(folder) / 'text.txt'
    whole = pathlib.Path(shakespeare.TEXT.value).read_text()
    text.write_text(whole[:len(whole) * 9 // 10])
    here = {'data.path': str(text)}
    nanogpt, unit = config_lib.flatten(shakespeare_nanogpt.get_config()), None
    costs = {name(cost(c)): rows[name(c)]['cost'] for c in CANDIDATES if name(c) in rows}
    for candidate in CANDIDATES:
      row = rows.setdefault(name(candidate), {'candidate': name(candidate)})
      if row.get('nats'):
        continue
      shape = name(cost(candidate))
      if shape not in costs:
        unit = unit or ask('measure', nanogpt | here)['seconds']
        costs[shape] = round(ask('measure', here | cost(candidate))['seconds'] / unit, 2)
      row['cost'] = costs[shape]
      row |= ask('train', here | {'training.steps': int(NANOGPT / float(row['cost']))} | candidate)
      print(row, flush=True)
      out = io.StringIO()
      table = csv.DictWriter(out, COLUMNS, lineterminator='\n')
      table.writeheader()
      table.writerows(row for row in rows.values() if row.get('nats'))
      files.write_atomically(path, out.getvalue())


if __name__ == '__main__':
  app.run(main)
