"""Every file of a run, damaged at random: what is read from it is refused, older, or the same numbers; never others."""

import collections
import pathlib
import random
import shutil

import jax
import numpy as np
import pytest

from foundation.errors import ConfigError
from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Training, flatten, resolve
from framework.data import corpus
from framework.training import checkpoint, loop, manifest, result, run, setup, writer
from framework import models

STEPS = 12


def config(folder):
  return resolve(Config(
      model=Model(layers=1, width=16, heads=2), optimizer=Optimizer(warmup_steps=2),
      data=Data(path=str(folder / 'text.txt'), cache=str(folder / 'cache'), tokenizer='chars', window=16),
      training=Training(steps=STEPS, batch=4, log_every=2, devices=1), checkpoint=Checkpoint(every_steps=4),
      evaluation=Evaluation(windows=8, every_steps=4)))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mutations')
  rng = random.Random(0)
  (folder / 'text.txt').write_text(' '.join(rng.choice('to be or not that is the question'.split()) for _ in range(900)))
  c = config(folder)
  text = corpus.prepare(c.data)
  run.open_folder(folder / 'run', c, text, resume=False)
  loop.train(c, text, folder / 'run')
  return folder, c, text, Readings(folder / 'run', c, text)


def same(one, other):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


class Readings:
  """What every command reads of a run: each road gives a value, or raises ConfigError."""

  def __init__(self, folder, c, text):
    self.like = setup.set_up(c, text.tokenizer.size).like()
    self.c, self.text = c, text
    self.states = {}
    reader = checkpoint.Checkpoints(folder / 'checkpoints', read_only=True)
    for step in reader.steps():
      self.states[step] = jax.device_get(reader.read(step, self.like))
    reader.close()
    self.result, self.rows = result.read(folder), (folder / 'metrics.jsonl').read_bytes()
    self.timing = (folder / 'timing.jsonl').read_bytes()

  def evaluated(self, folder):
    """evaluate, generate, compress, attention."""
    trained = setup.load(folder)
    assert flatten(trained.setup.config) == flatten(self.c)
    assert trained.tokenizer.digest == self.text.tokenizer.digest
    assert same(trained.params, self.states[trained.step][0].params)
    return trained.step

  def resumed(self, folder):
    """train --resume."""
    run.open_folder(folder, self.c, self.text, resume=True)
    if outcome := loop.finished(folder, self.c):
      assert outcome == self.result
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', self.c.checkpoint)
    try:
      restored = checkpoints.restore(self.like, lambda record: writer.check_rows(folder, record))
      if not restored:
        return 0
      state, record = restored
    finally:
      checkpoints.close()
    assert same(state, self.states[record['step']][0]) and record == self.states[record['step']][1]
    writer.Writer(folder, record, STEPS, True, False).close()
    assert self.rows.startswith((folder / 'metrics.jsonl').read_bytes())
    return record['step']

  def reported(self, folder):
    """sweep, report, scaling."""
    assert result.read(folder) == self.result
    result.check_rows(folder)
    assert (folder / 'metrics.jsonl').read_bytes() == self.rows
    assert (folder / 'timing.jsonl').read_bytes() == self.timing
    return STEPS


def bit(rng, data):
  place = rng.randrange(len(data))
  return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1:]


def digit(rng, data):
  places = [i for i, byte in enumerate(data) if 48 <= byte <= 57] or [0]
  place = rng.choice(places)
  return data[:place] + bytes([48 + (data[place] - 48 + rng.randint(1, 9)) % 10]) + data[place + 1:]


def cut(rng, data):
  return data[:rng.randrange(len(data))]


def zeros(rng, data):
  place = rng.randrange(len(data))
  return data[:place] + bytes(min(512, len(data) - place)) + data[place + 512:]


def line_lost(rng, data):
  lines = data.splitlines(True)
  del lines[rng.randrange(len(lines))]
  return b''.join(lines)


def line_doubled(rng, data):
  lines = data.splitlines(True)
  place = rng.randrange(len(lines))
  return b''.join(lines[:place + 1] + lines[place:])


def swapped(rng, data):
  one, other = sorted(rng.randrange(len(data)) for _ in range(2))
  return data[:one] + data[other:other + 1] + data[one + 1:other] + data[one:one + 1] + data[other + 1:]


def emptied(rng, data):
  return b''


MUTATIONS = [bit, bit, digit, digit, cut, zeros, line_lost, line_doubled, swapped, emptied]


def mutate(folder: pathlib.Path, rng: random.Random) -> str:
  """Damages a file of the run, every one as likely as the others of its kind; what was done."""
  files = sorted(p for p in folder.rglob('*') if p.is_file() and p.stat().st_size and p.name != '.lock')
  own = [p for p in files if p.parent == folder or p.name == 'metadata']
  path, mutation = rng.choice(own if rng.random() < 0.5 else files), rng.choice(MUTATIONS)
  data = path.read_bytes()
  changed = mutation(rng, data)
  path.write_bytes(changed)
  return f'{mutation.__name__} in {path.relative_to(folder)}' + ('' if changed != data else ', the same bytes')


def outcomes(made, numbers, folder):
  counted = collections.Counter()
  readings = made[3]
  for number in numbers:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made[0] / 'run', folder)
    what = mutate(folder, random.Random(number))
    for road in (readings.evaluated, readings.reported, readings.resumed):  # the last one writes
      try:
        step = road(folder)
        counted[road.__name__, 'harmless' if step == STEPS else 'older'] += 1
      except ConfigError as error:
        assert '\n' not in str(error), f'mutation {number}, {what}: {error}'
        counted[road.__name__, 'refused'] += 1
      except Exception as error:
        raise AssertionError(f'mutation {number}, {what}, {road.__name__}: {type(error).__name__} {error}') from error
  return counted


def test_no_damage_is_silent(made, tmp_path):
  counted = outcomes(made, range(60), tmp_path / 'run')
  assert sum(counted.values()) == 180 and {kind for _, kind in counted} == {'refused', 'older', 'harmless'}


@pytest.mark.slow
def test_no_damage_of_a_thousand_is_silent(made, tmp_path, capsys):
  counted = outcomes(made, range(1000, 2000), tmp_path / 'run')
  with capsys.disabled():
    print('\n' + '\n'.join(f'{road}: {kind} {count}' for (road, kind), count in sorted(counted.items())))
  assert sum(counted.values()) == 3000


def test_the_unharmed_run_is_proved(made, tmp_path):
  folder, c, text, _ = made
  findings = list(manifest.prove(models.stages(c)[0], text, folder / 'run', folder / 'run'))
  assert [finding for finding in findings if not finding.sound] == []
  assert {'row 10', 'evaluation', 'checkpoint 8', 'checkpoint 12'} <= {finding.what for finding in findings}


@pytest.mark.parametrize('name, what', [
    ('config.json', 'config.json'), ('tokenizer.json', 'tokenizer.json'), ('result.json', 'result.json'),
    ('metrics.jsonl', 'metrics.jsonl and timing.jsonl'), ('checkpoints/12/record/metadata', 'checkpoint 12')])
def test_each_kind_of_damage_is_named(made, tmp_path, name, what):
  folder, c, text, _ = made
  shutil.copytree(folder / 'run', tmp_path / 'run')
  path = tmp_path / 'run' / name
  path.write_bytes(digit(random.Random(3), path.read_bytes()))
  findings = list(manifest.prove(models.stages(c)[0], text, tmp_path / 'run', tmp_path / 'run'))
  assert what in [finding.what for finding in findings if finding.sound is False]
