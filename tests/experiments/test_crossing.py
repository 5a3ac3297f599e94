"""Every task and every model of the registries through every command that a run meets."""

import json
import shutil

import pytest

from experiments.sweeping import cells as cells_lib
from foundation import entries
from framework import config as config_lib
from framework import models
from framework.data import corpus, tasks

TASKS = entries.names(tasks, 'Task')
MODELS = [name for name in entries.names(models, 'build') if name != 'ngram']  # counted, not trained
WRITES = {'decoder', 'lstm', 'markov', 'rnn', 'tiered'}
TEXT = ''.join(f'{n} is the square of {n * n}, and {n * n} that of {n}.\n' for n in range(800))
CONFIG = '''from framework.config import *
def get_config():
  return Config(
      model=Model(layers=2, width=16, heads=2), data=Data({data}, cache={cache!r}, tokenizer='chars', window={window}),
      optimizer=Optimizer(name='muon', warmup_steps=1), training=Training(steps=4, batch=4, devices=1, log_every=1),
      evaluation=Evaluation(windows=8, batch=4), checkpoint=Checkpoint(every_steps=2, keep=3),
      tiered=Tiered(widths='8,16', period=8, rollout=4, memorisation=1.0))
'''


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('crossing')
  (root / 'text.txt').write_text(TEXT)
  cache = str(root / 'cache')
  (root / 'text.py').write_text(CONFIG.format(data=f"path={str(root / 'text.txt')!r}", cache=cache, window=16))
  (root / 'task.py').write_text(CONFIG.format(data="task='zipf_pairs'", cache=cache, window=64))
  return root


def well(reply):
  assert reply['code'] == 0, reply['err'][-600:]
  return reply['out']


def refused(reply, *words):
  lines = reply['err'].splitlines()
  assert reply['code'] == 2 and lines[-1].startswith('error: ') and 'Traceback' not in reply['err'], reply
  assert all(word in lines[-1] for word in words), lines[-1]


def test_there_are_tasks_and_models():
  assert {'addition', 'k_hop', 'one_way', 'path_star', 'zipf_pairs'} <= set(TASKS)
  assert WRITES | {'birnn', 'masked', 'encoder_decoder'} == set(MODELS)


@pytest.mark.parametrize('task', TASKS)
def test_every_task_trains_and_is_evaluated(quick, root, tmp_path, task):
  run = tmp_path / 'run'
  well(quick('train', f'--config={root}/task.py', f'--config.data.task={task}', '--config.training.steps=3',
              f'--workdir={run}'))
  assert json.loads((run / 'result.json').read_text())['status'] == 'complete'
  assert 'bits/byte' in well(quick('evaluate', f'--workdir={run}', '--windows=4'))


@pytest.mark.parametrize('name', MODELS)
def test_every_model_goes_through_every_command(quick, root, tmp_path, name):
  """A sweep's worker trains all of its stages, and the run costs what the sweep took it to cost."""
  settings = {'model.name': name} | ({'data.stride': 4, 'evaluation.stride': 4} if name == 'encoder_decoder' else {})
  (tmp_path / 'sweep.py').write_text((root / 'text.py').read_text() + f'''
from experiments.sweeping.cells import Sweep, over, product
def get_sweep():
  return Sweep(get_config(), product([{settings!r}], over('training.steps', [4])), allow=('few_steps',))
''')
  sweep = cells_lib.load(tmp_path / 'sweep.py')
  text = corpus.prepare(sweep.base.data)
  cell, = cells_lib.with_costs(cells_lib.expand(sweep), lambda config: text)
  well(quick('sweep', f'--sweep={tmp_path}/sweep.py', f'--workdir={tmp_path}/w', f'--cells={cell.name}'))
  run = tmp_path / 'w' / 'cells' / cell.name
  result = json.loads((run / 'result.json').read_text())
  assert result['status'] == 'complete' and result['flops_train_exact'] == pytest.approx(cell.whole_cost)
  assert len(result.get('tiers', [])) == (2 if name == 'tiered' else 0)

  metrics = {path.relative_to(run): path.read_bytes() for path in run.rglob('metrics.jsonl')}
  for folder in [path.parent for path in run.rglob('checkpoints')]:  # as if it had been killed at step 2
    shutil.rmtree(folder / 'checkpoints' / '4')
    (folder / 'result.json').unlink()
  words = [f'--config.{key}={value}' for key, value in settings.items()]
  well(quick('train', f'--config={root}/text.py', *words, f'--workdir={run}', '--resume'))
  assert {path.relative_to(run): path.read_bytes() for path in run.rglob('metrics.jsonl')} == metrics

  shown = well(quick('evaluate', f'--workdir={run}'))
  assert 'nats/token' in shown and ('draws' in shown) == (name == 'tiered')
  reply = quick('generate', f'--workdir={run}', '--prompt=12', '--tokens=20', *['--show_rollouts'] * (name == 'tiered'))
  if name in WRITES:
    assert well(reply).startswith('12') and ('[[1: ' in reply['out']) == (name == 'tiered')
  else:
    refused(reply, f"model.name is '{name}'", 'empty_cache', 'experiments.generate')
  if name != 'tiered':
    refused(quick('generate', f'--workdir={run}', '--show_rollouts'), f"model.name is '{name}'")
  if name not in WRITES - {'tiered'}:
    refused(quick('compress', f'--workdir={run}', root / 'text.txt'), f"model.name is '{name}'", 'experiments.compress')
  reply = quick('attention', f'--workdir={run}')
  if name == 'decoder':
    assert (run / 'attention.svg').exists() and well(reply)
  else:
    refused(reply, f"model.name is '{name}'", 'experiments.attention')


def test_a_resolved_config_is_frozen_and_the_written_one_stays():
  written = config_lib.Config()
  written.model.width = 64
  first = config_lib.resolve(written)
  assert first.model.feedforward == 256 and written.model.feedforward == 0
  written.model.width = 256
  assert config_lib.resolve(written).model.feedforward == 1024 and first.model.feedforward == 256
  for section in (first, first.model, first.data):
    with pytest.raises(AttributeError, match='of a resolved config'):
      setattr(section, 'model' if section is first else 'width' if section is first.model else 'window', 1)
  assert hash(first) == hash(config_lib.resolve(first)) and first == config_lib.resolve(first)
