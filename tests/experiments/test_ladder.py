"""A ladder of runs of every model, a file compressed and restored under them, and what the launchers refuse."""

import json
import random
import re

import pytest


@pytest.fixture(scope='module')
def place(launch, tmp_path_factory):
  """A folder with a corpus, and with runs of an LSTM, a two-sided model and an n-gram."""
  folder = tmp_path_factory.mktemp('ladder')
  rng = random.Random(1)
  words = [''.join(rng.choices('abcdé', k=rng.randint(1, 5))) for _ in range(30)]
  (folder / 'texts').mkdir()
  for n in range(30):
    (folder / 'texts' / f'{n}.txt').write_text(' '.join(rng.choices(words, k=200)), encoding='utf-8')
  for name, settings in (('lstm', ['--config.training.partition=mesh']), ('birnn', [])):
    done = launch('train', *config(folder), f'--workdir={folder / name}', f'--config.model.name={name}', *settings)
    assert done.returncode == 0, done.stderr
  done = launch('count', *config(folder), f'--workdir={folder / "counts"}', '--order=4')
  assert done.returncode == 0, done.stderr
  return folder


def config(folder):
  return ['--config=experiments/configs/bytes_small.py', f'--config.data.path={folder / "texts"}',
          f'--config.data.cache={folder / "cache"}', '--config.data.window=32', '--config.model.width=32',
          '--config.model.layers=1', '--config.training.batch=8', '--config.training.steps=120',
          '--config.evaluation.every_steps=0', '--config.checkpoint.every_steps=0', '--config.evaluation.windows=0']


def test_ladder(launch, place):
  done = launch('ladder', *config(place), f'--output={place / "out"}', '--orders=3',
                f'--runs={place / "lstm"},{place / "birnn"}', '--tokens=3000')
  assert done.returncode == 0, done.stderr
  ladder = json.loads((place / 'out' / 'ladder.json').read_text())
  rows = {row['name']: row for row in ladder['rows']}
  assert set(rows) == {'uniform', 'unigram', 'bigram', '3-gram, Kneser-Ney', '3-gram, back-off', 'gzip', 'bz2', 'xz',
                       'lstm', 'birnn'}
  assert all(row['targets'] == 2999 and row['bytes'] == ladder['bytes'] for row in rows.values())
  bits = {name: row['bits_per_token'] for name, row in rows.items()}
  assert bits['uniform'] > bits['unigram'] > bits['bigram'] > bits['3-gram, Kneser-Ney']
  assert abs(bits['uniform'] - 8.0056) < 1e-3 and bits['lstm'] < bits['unigram']
  assert rows['lstm']['guessing_lower'] < rows['lstm']['guessing_upper']
  lines = done.stdout.splitlines()
  assert re.fullmatch(r'2,999 held-out tokens, 2,99\d bytes, \d documents', lines[0])
  assert any(line.startswith('birnn *') for line in lines) and any(line.split()[-1] == '15.0' for line in lines)
  assert (place / 'out' / 'ladder.svg').read_text().startswith('<?xml')
  assert 'lstm' in (place / 'out' / 'positions.svg').read_text()
  alone = launch('ladder', *config(place), f'--output={place / "alone"}', '--orders=', '--tokens=3000')
  assert alone.returncode == 0 and not (place / 'alone' / 'positions.svg').exists(), alone.stderr


@pytest.mark.parametrize('run', ['lstm', 'counts'])
def test_compress_and_restore(launch, place, run, tmp_path):
  source = tmp_path / 'note.txt'
  source.write_text((place / 'texts' / '3.txt').read_text()[:600])
  packed = tmp_path / 'note.txt.lemma'
  done = launch('compress', f'--workdir={place / run}', source)
  assert done.returncode == 0 and 'bits/byte; the cross-entropy is' in done.stdout, done.stderr
  assert packed.stat().st_size < source.stat().st_size
  again = launch('compress', f'--workdir={place / run}', source)
  assert again.returncode == 0 and again.stdout == done.stdout, again.stderr  # the same result: nothing to do
  back = tmp_path / 'back.txt'
  done = launch('compress', f'--workdir={place / run}', '--restore', f'--output={back}', packed)
  assert done.returncode == 0 and back.read_bytes() == source.read_bytes(), done.stderr
  if run == 'counts':
    return
  other = launch('compress', f'--workdir={place / "counts"}', '--restore', f'--output={tmp_path / "never"}', packed)
  assert other.returncode == 2 and 'was packed under model' in other.stderr and other.stderr.count('\n') <= 3
  damaged = bytearray(packed.read_bytes())
  damaged[-20] ^= 4
  packed.write_bytes(damaged)
  done = launch('compress', f'--workdir={place / run}', '--restore', f'--output={tmp_path / "never"}', packed)
  assert done.returncode == 2 and 'the file is damaged' in done.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == ['back.txt', 'note.txt', 'note.txt.lemma']


@pytest.mark.parametrize('name,arguments,pattern', [
    ('compress', ['--workdir={0}/lstm'], 'the file is missing'),
    ('compress', ['--workdir={0}/lstm', '{0}/nothing'], 'is no file; expected one to compress'),
    ('compress', ['--workdir={0}/lstm', '{0}/a', '{0}/b'], 'unexpected argument'),
    ('compress', ['--workdir={0}/birnn', '{0}/texts/3.txt'], 'since it reads on both sides'),
    ('compress', ['--workdir={0}/lstm', '--restore', '{0}/texts/3.txt'], 'does not end with .lemma'),
    ('compress', ['--workdir={0}/lstm', '--restore', '--output={0}/x', '{0}/texts/3.txt'], 'no file of'),
    ('generate', ['--workdir={0}/birnn', '--prompt=ab'], 'since it reads on both sides'),
    ('analogy', ['--workdir={0}/lstm'], "tokenizer is 'bytes'"),
    ('count', ['{config}', '--workdir={0}/lstm'], "holds a run whose model.name is 'lstm'"),
    ('count', ['{config}', '--workdir={0}/counts'], 'already holds an n-gram model'),
    ('count', ['{config}', '--workdir={0}/other', '--smoothing=kneserney'], "did you mean 'kneser_ney'"),
    ('ladder', ['{config}', '--output={0}/x', '--orders=9'], "--orders has '9'; expected whole numbers from 0 to 8"),
    ('ladder', ['{config}', '--output={0}/x', '--tokens=1'], '--tokens is 1'),
    ('ladder', ['{config}', '--output={0}/texts'], 'holds something else'),
    ('ladder', ['{config}', '--output={0}/x', '--config.data.task=zipf_pairs', '--config.data.path='],
     'data.task is an endless text'),
    ('ladder', ['{config}', '--output={0}/x', '--runs={0}/lstm', '--stride=99'], 'has data.window 32'),
    ('ladder', ['{config}', '--output={0}/x', '--runs={0}/lst'], "did you mean 'lstm'"),
])
@pytest.mark.slow
def test_refusals(launch, place, name, arguments, pattern):
  words = []
  for word in arguments:
    words += config(place) if word == '{config}' else [word.format(place)]
  before = sorted(p.name for p in place.iterdir())
  done = launch(name, *words)
  assert done.returncode == 2 and pattern in done.stderr, done.stderr
  assert len([line for line in done.stderr.splitlines() if line.startswith('error: ')]) == 1
  assert sorted(p.name for p in place.iterdir()) == before


@pytest.mark.parametrize('name', ['compress', 'count', 'ladder', 'analogy'])
def test_help_holds_an_example(launch, name):
  shown = launch(name, '--help')
  assert shown.returncode == 0 and not re.search(r'\S {3}', shown.stdout)
  assert 'Example:' in shown.stdout and f'python -m experiments.{name} --' in shown.stdout
