"""Somebody else's weights as a run: adopted, evaluated, sampled, tuned, exported, on the ladder; killed and done twice."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip('safetensors.numpy')

from foundation import sealed
from framework.config import ConfigError, Model
from framework.models import huggingface
from framework.training import adoption, setup
from tests import commands, foreign

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Place:
  """A folder with text and a folder of weights, and commands in it."""
  path: pathlib.Path
  launch: Callable

  def __truediv__(self, name):
    return self.path / name

  def __str__(self):
    return str(self.path)


@pytest.fixture(scope='module')
def place(tmp_path_factory, quick):
  folder = tmp_path_factory.mktemp('adopt')
  foreign.write_folder(folder / 'hf', foreign.write_text(folder / 'text'))
  made = Place(folder, quick)
  done = adopt(made)
  assert done['code'] == 0, done['err']
  return made


def adopt(place, *more, source='hf', run='a'):
  return place.launch('adopt', f'--folder={place}/{source}', f'--workdir={place}/runs/{run}', f'--path={place}/text', *more)


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_run_says_where_it_comes_from_and_does_not_change(place):
  run = place / 'runs/a'
  assert sorted(path.name for path in run.iterdir()) == ['checkpoints', 'config.json', 'source.json', 'tokenizer.json']
  source = adoption.read_source(run)
  assert (source['family'], source['folder'], source['longest']) == ('llama', str(place / 'hf'), 64)
  before = contents(run)
  again = adopt(place)
  assert again['code'] == 0 and 'was adopted from these weights before; nothing was changed' in again['err']
  assert contents(run) == before
  other = adopt(place, run='copy')
  assert other['code'] == 0 and f'{run} has the very same weights, adopted from {place}/hf' in other['err']
  trained = setup.load(run)
  assert trained.tokenizer.size == foreign.VOCABULARY and (trained.tokenizer.begin, trained.tokenizer.end) == (0, 1)
  loaded = huggingface.load(place / 'hf')[3]
  np.testing.assert_array_equal(trained.params['blocks']['up']['weight'], loaded['blocks']['up']['weight'])


def test_every_command_takes_it_and_export_gives_the_bits_back(place):
  run, out = place / 'runs/a', place / 'out'
  done = place.launch('evaluate', f'--workdir={run}', f'--output={out}', '--all_steps')
  assert done['code'] == 0 and (out / 'along_training.svg').exists(), done['err']
  row = json.loads((out / 'evaluations.jsonl').read_text())
  held = sum(len(path.read_bytes()) for path in (place / 'text').iterdir())
  assert row['step'] == 0 and 0 < row['bytes'] < held / 4 and row['bits_per_byte'] > 1
  done = place.launch('generate', f'--workdir={run}', '--tokens=5', '--temperature=0', '--prompt=abc')
  assert done['code'] == 0 and done['out'].startswith('abc')
  done = place.launch('verify', f'--workdir={run}')
  assert done['code'] == 0 and 'nothing differs' in done['out']
  for said in ('llama of', 'holds these weights already; nothing was changed'):
    done = place.launch('export', f'--workdir={run}', f'--folder={place}/again')
    assert done['code'] == 0 and said in done['err'], done['err']
  ours, theirs = ((place / name / 'model.safetensors').read_bytes() for name in ('again', 'hf'))
  assert ours == theirs
  assert json.loads((place / 'again/tokenizer.json').read_text()) == json.loads((place / 'hf/tokenizer.json').read_text())
  config = json.loads((place / 'again/config.json').read_text())
  assert (config['bos_token_id'], config['eos_token_id'], config['max_position_embeddings']) == (0, 1, 64)
  card = (place / 'again/README.md').read_text()
  assert 'library_name: transformers' in card and str(place / 'hf') in card
  assert place.launch('export', f'--workdir={run}', f'--folder={place}/hf')['code'] == 2
  done = place.launch('export', f'--workdir={run}', f'--folder={place}/new', '--family=gpt2')
  assert done['code'] == 2 and "model.position is 'rope' (gpt2 needs 'learned')" in done['err']
  assert not (place / 'new').exists() and not list(place.path.glob('.new*'))


def tune(place, start, run, *more):
  return place.launch(
      'train', f'--start={place}/runs/{start}', f'--config={ROOT}/experiments/configs/finetune.py',
      f'--workdir={place}/runs/{run}', f'--config.data.path={place}/text', '--config.data.window=32',
      '--config.training.steps=12', '--config.optimizer.warmup_steps=2', '--config.optimizer.learning_rate=0.01',
      '--config.checkpoint.every_steps=6', '--config.training.devices=1', '--resume', *more)


def test_training_starts_with_the_weights_and_goes_on_exactly(place):
  done = tune(place, 'a', 'tuned')
  assert done['code'] == 0, done['err']
  assert sorted(path.name for path in (place / 'runs/tuned/checkpoints').iterdir()) == ['0', '12', '6']
  np.testing.assert_array_equal(setup.load(place / 'runs/tuned', 0).params['embedding'],
                                setup.load(place / 'runs/a').params['embedding'])
  about = json.loads((place / 'runs/tuned/start.json').read_text())
  assert about['run'] == str(place / 'runs/a') and about['longest'] == 64
  done = place.launch('verify', f'--workdir={place}/runs/tuned')
  assert done['code'] == 0, done['out']
  before = contents(place / 'runs/tuned')
  assert tune(place, 'a', 'tuned')['code'] == 0
  assert contents(place / 'runs/tuned') == before
  done = tune(place, 'tuned', 'tuned2', '--config.model.layers=3')
  assert done['code'] == 2 and 'the config expects [3,' in done['err'], done['err']
  other = tune(place, 'tuned', 'tuned')
  assert other['code'] == 2 and 'holds a run that began from' in other['err'], other['err']
  adoption.check_begun(place / 'runs/tuned')
  (place / 'runs/early').mkdir()  # killed before it had read the weights
  for name in ('config.json', 'tokenizer.json'):
    shutil.copy(place / 'runs/tuned' / name, place / 'runs/early')
  with pytest.raises(ConfigError, match='has not read them; expected --start=.*runs/a'):
    adoption.check_begun(place / 'runs/early')
  assert tune(place, 'a', 'early')['code'] == 0
  assert contents(place / 'runs/early')[pathlib.Path('metrics.jsonl')] == before[pathlib.Path('metrics.jsonl')]


@pytest.mark.slow
def test_a_run_of_ones_own_on_somebody_elses_tokenizer(place, tmp_path):
  """With settings of a family besides: trained, evaluated, sampled; the file may move, and not change."""
  shutil.copy(place / 'hf/tokenizer.json', tmp_path)
  shutil.copy(place / 'hf/tokenizer_config.json', tmp_path)
  def train(tokenizer):
    return place.launch(
        'train', f'--config={ROOT}/experiments/configs/bytes_small.py', f'--workdir={place}/runs/own', '--resume',
        f'--config.data.path={place}/text', f'--config.data.tokenizer={tokenizer}', '--config.data.window=32',
        '--config.model.width=16', '--config.model.layers=2', '--config.model.heads=2', '--config.model.norm_place=both',
        '--config.model.query_norm=head', '--config.model.sliding_window=8', '--config.model.global_every=2',
        '--config.model.scan', '--config.model.activation=geglu', '--config.training.steps=4', '--config.training.batch=4',
        '--config.optimizer.warmup_steps=1', '--config.evaluation.windows=4', '--config.training.devices=1')
  assert (done := train(tmp_path / 'tokenizer.json'))['code'] == 0, done['err']
  result = json.loads((place / 'runs/own/result.json').read_text())
  assert 1 < result['bits_per_byte'] < 8 and result['status'] == 'complete'
  (tmp_path / 'tokenizer.json').rename(tmp_path / 'moved.json')
  assert (done := train(tmp_path / 'moved.json'))['code'] == 0, done['err']
  done = place.launch('generate', f'--workdir={place}/runs/own', '--tokens=3', '--temperature=0', '--prompt=abc')
  assert done['code'] == 0 and done['out'].startswith('abc'), done['err']
  model = json.loads((tmp_path / 'moved.json').read_text())
  (tmp_path / 'moved.json').write_text(json.dumps(model | {'added_tokens': model['added_tokens'][:1]}))
  done = train(tmp_path / 'moved.json')
  assert done['code'] == 2 and 'holds a run on corpus' in done['err'], done['err']


@pytest.mark.slow
def test_the_ladder_takes_runs_on_other_tokens(place):
  done = place.launch('ladder', f'--config={ROOT}/experiments/configs/bytes_small.py', f'--config.data.path={place}/text',
                         f'--output={place}/ladder', f'--runs={place}/runs/a', '--orders=2', '--tokens=3000')
  assert done['code'] == 0, done['err']
  rows = json.loads((place / 'ladder/ladder.json').read_text())['rows']
  row, = [row for row in rows if row['kind'] == 'network']
  whole = json.loads((place / 'ladder/ladder.json').read_text())
  assert not row['same_tokens'] and row['targets'] < whole['targets'] and row['bytes'] == whole['bytes']
  assert '+ on tokens of its own' in done['out']


@pytest.mark.slow
@pytest.mark.kill
def test_killed_it_leaves_no_run_and_the_next_one_cleans_up(place):
  """Killed at moments that are spread over the whole command."""
  took = time.monotonic()
  assert adopt(place, run='timed')['code'] == 0
  took = time.monotonic() - took
  for share in (0.5, 0.8, 0.9, 0.95):
    process = subprocess.Popen([sys.executable, '-m', 'experiments.adopt', f'--folder={place}/hf', f'--path={place}/text',
                                f'--workdir={place}/runs/killed'], cwd=ROOT, env=commands.environment(),
                               stderr=subprocess.DEVNULL)
    time.sleep(share * took)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = place / 'runs/killed'
    assert not run.exists() or {path.name for path in run.iterdir()} == {
        'checkpoints', 'config.json', 'source.json', 'tokenizer.json'}
  assert adopt(place, run='killed')['code'] == 0
  assert not [path for path in (place / 'runs').iterdir() if path.name.startswith('.killed')]
  assert setup.load(place / 'runs/killed').step == 0


@pytest.mark.parametrize('change, words', [
    (lambda folder: ['--end=<eot>'], "no special token '<eot>'; expected one of <bos>, <eos>"),
    (lambda folder: (folder / 'hf2/tokenizer.json').unlink(), 'does not exist; expected one of tokenizer.json'),
    (lambda folder: (folder / 'hf2/model.safetensors').write_bytes(b'x' * 20), 'model.safetensors cannot be read'),
    (lambda folder: change_config(folder, vocab_size=319), "embed_tokens.weight' has shape [320, 32]; expected [319, 32]"),
    (lambda folder: change_config(folder, attention_sink=4), 'attention_sink 4, which is unknown'),
])
def test_what_is_wrong_is_one_line_and_leaves_nothing(place, change, words, tmp_path):
  text = place / 'text'
  foreign.write_folder(tmp_path / 'hf2', text)
  more = change(tmp_path)
  done = place.launch('adopt', f'--folder={tmp_path}/hf2', f'--workdir={tmp_path}/runs/x',
                         *(more if isinstance(more, list) else []))
  assert done['code'] == 2 and words in done['err'] and 'Traceback' not in done['err'], done['err']
  assert not (tmp_path / 'runs').exists() or not list((tmp_path / 'runs').iterdir())


def change_config(folder, **values):
  path = folder / 'hf2/config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow
def test_learned_positions_are_cut_to_the_window_and_never_stretched(place, tmp_path):
  model = Model(layers=1, width=16, heads=2, position='learned', norm='layernorm', bias=True)
  foreign.write_folder(tmp_path / 'hf', place / 'text', model)
  done = place.launch('adopt', f'--folder={tmp_path}/hf', f'--workdir={tmp_path}/runs/a', '--window=20')
  assert done['code'] == 0, done['err']
  assert setup.load(tmp_path / 'runs/a').params['position'].shape == (20, 16)
  done = place.launch('adopt', f'--folder={tmp_path}/hf', f'--workdir={tmp_path}/runs/b', '--window=65')
  assert done['code'] == 2 and 'the model has 64 positions: expected at most so many' in done['err']


def test_a_moved_run_finds_its_tokenizer_and_a_changed_source_is_refused(place, tmp_path):
  shutil.copytree(place / 'runs/a', tmp_path / 'moved')
  shutil.copytree(place / 'runs/a', tmp_path / 'changed')
  from framework.training import run
  assert run.read_config(tmp_path / 'moved').data.tokenizer == str(tmp_path / 'moved/tokenizer.json')
  source = json.loads((tmp_path / 'changed/source.json').read_text()) | {'folder': 'elsewhere'}
  (tmp_path / 'changed/source.json').write_text(json.dumps(source))
  with pytest.raises(ConfigError):
    adoption.read_source(tmp_path / 'changed')
  assert sealed.KEY in source


def test_weights_alone_are_no_run_to_go_on_with(place):
  """The config of an adopted run, given to train with --resume."""
  trained = setup.load(place / 'runs/a')
  from framework.training import checkpoint
  reader = checkpoint.Checkpoints(place / 'runs/a/checkpoints', read_only=True)
  with pytest.raises(checkpoint.OtherShape, match='holds weights alone; expected a new run.*--start'):
    reader.restore(trained.setup.like())
  reader.close()
