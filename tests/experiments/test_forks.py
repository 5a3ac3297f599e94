"""Forks outside the package, one file each, go through every command; half of one is refused by what it lacks."""

import json
import pathlib
import shutil

import jax
import pytest

from framework import config as config_lib
from framework import models
from framework.models import contract

FORKS = pathlib.Path(__file__).parents[1] / 'forks'
CONFIG = '''from framework.config import *
def get_config():
  return Config(
      model=Model(layers=2, width=16, heads=2), data=Data(task='zipf_pairs', window=24),
      optimizer=Optimizer(warmup_steps=1), training=Training(steps=4, batch=4, devices=1, log_every=1),
      evaluation=Evaluation(windows=8), checkpoint=Checkpoint(every_steps=2, keep=3))
'''


@pytest.fixture
def config(tmp_path):
  (tmp_path / 'config.py').write_text(CONFIG)
  return f'--config={tmp_path}/config.py'


def well(reply):
  assert reply['code'] == 0, reply['err'][-800:]
  return reply['out']


def refused(reply, *words):
  line = reply['err'].splitlines()[-1]
  assert reply['code'] == 2 and line.startswith('error: ') and 'Traceback' not in reply['err'], reply
  assert all(word in line for word in words), line


def through(quick, words, run):
  """Train, evaluate, and train again from the middle to the same bytes."""
  well(quick('train', *words, f'--workdir={run}'))
  metrics = (run / 'metrics.jsonl').read_bytes()
  assert 'bits/byte' in well(quick('evaluate', f'--workdir={run}'))
  shutil.rmtree(run / 'checkpoints' / '4')
  well(quick('train', *words, f'--workdir={run}', '--resume'))
  assert (run / 'metrics.jsonl').read_bytes() == metrics
  return json.loads((run / 'result.json').read_text())


@pytest.mark.parametrize('name,writes', [('parallel_block', True), ('bag_of_words', False)])
def test_a_model_is_one_file(quick, config, tmp_path, name, writes):
  path, run = FORKS / f'{name}.py', tmp_path / 'run'
  words = [config, f'--config.model.name={path}']
  result = through(quick, words, run)
  built = models.build(config_lib.resolve(config_lib.Config(model=config_lib.Model(
      name=str(path), layers=2, width=16, heads=2), data=config_lib.Data(window=24))), 193)
  assert result['flops_train_exact'] == 4 * 4 * built.flops().train
  assert result['params_total'] == sum(x.size for x in jax.tree.leaves(contract.shapes(built)))
  for command, more in (('generate', ['--tokens=30']), ('attention', []), ('compress', [path])):
    reply = quick(command, f'--workdir={run}', *more, *([f'--output={tmp_path}/out'] if command == 'compress' else []))
    if command == 'compress' and writes:
      refused(reply, 'the text has the character')  # of a synthetic language, no text: the model itself is taken
    elif writes:
      well(reply)
    else:
      refused(reply, str(path), command)
  (tmp_path / 'sweep.py').write_text(CONFIG + f'''
from experiments.sweeping.cells import Sweep, over
def get_sweep():
  base = get_config()
  base.model.name = {str(path)!r}
  return Sweep(base, over('training.steps', [3]), allow=('few_steps',))
''')
  well(quick('sweep', f'--sweep={tmp_path}/sweep.py', f'--workdir={tmp_path}/w', '--cells=steps3'))
  well(quick('report', f'--runs={run},{tmp_path}/w'))


def test_a_block_variant_takes_fifteen_lines():
  lines = [line for line in (FORKS / 'parallel_block.py').read_text().splitlines()[1:] if line.strip()]
  assert len(lines) <= 15


@pytest.mark.parametrize('setting,name', [('optimizer.name', 'sgd'), ('optimizer.schedule', 'inverse_root'),
                                          ('training.loss', 'squared_error'), ('data.task', 'repeat')])
def test_an_optimizer_a_schedule_a_loss_and_a_task_are_one_file(quick, config, tmp_path, setting, name):
  more = ':size=4' if name == 'repeat' else ''
  result = through(quick, [config, f'--config.{setting}={FORKS / name}.py{more}'], tmp_path / 'run')
  assert result['status'] == 'complete'


def test_a_study_is_one_file(quick, tmp_path):
  words = [f'--name={FORKS}/fair_coin.py', f'--workdir={tmp_path}/coin', '--seeds=2']
  assert json.loads(well(quick('study', *words)))['verdict'] == 'supported'
  # Again, and named from another folder: nothing is done twice.
  kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'coin' / 'parts').iterdir()}
  assert well(quick('study', '--name=tests/forks/fair_coin.py', *words[1:]))
  assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / 'coin' / 'parts').iterdir()}
  assert json.loads((tmp_path / 'coin' / 'verdict.json').read_text())['setting']['study'] == f'{FORKS}/fair_coin.py'
  assert 'fair_coin' in (tmp_path / 'coin' / 'figure.svg').read_text()
  well(quick('report', f'--runs={tmp_path}/coin'))


@pytest.mark.parametrize('setting,text,words', [
    ('model.name', 'def built(config, vocabulary): pass\n', ["has no 'build'", 'framework.models']),
    ('model.name', 'def build(config, vocabulary): return object()\n', ["whose model has no 'parameters'"]),
    ('model.name', 'import nothing_like_it\n', ['ModuleNotFoundError']),
    ('optimizer.name', 'def make(c, rate, parameters): pass\n', ["has no 'build'"]),
    ('optimizer.schedule', 'RATE = 1\n', ["has no 'after_warmup'"]),
    ('training.loss', 'def sum_losses(model, params, batch, keys_B): pass\n', ["has no 'sum_loss'"]),
    ('data.task', 'class Task:\n  pass\n', ["has no 'alphabet'"]),
    ('data.task', 'class Text:\n  pass\n', ["has no 'Task'"]),
])
def test_half_of_a_fork_is_refused_by_what_it_lacks(quick, config, tmp_path, setting, text, words):
  (tmp_path / 'half.py').write_text(text)
  refused(quick('train', config, f'--config.{setting}={tmp_path}/half.py', f'--workdir={tmp_path}/run'), *words)
  assert not (tmp_path / 'run').exists()


def test_a_parameter_without_axes_is_refused_by_its_name(quick, config, tmp_path):
  text = (FORKS / 'bag_of_words.py').read_text().replace(
      "    return Norm", "    self.param('secret', nn.initializers.zeros, (3,))\n    return Norm")
  (tmp_path / 'secret.py').write_text(text)
  refused(quick('train', config, f'--config.model.name={tmp_path}/secret.py', f'--workdir={tmp_path}/run'),
          "parameter ['secret'] has no axes and no role")


def test_a_shared_file_beside_the_studies_is_no_study(quick, tmp_path):
  (tmp_path / 'shared.py').write_text('def half(x):\n  return x / 2\n')
  refused(quick('study', f'--name={tmp_path}/shared.py', f'--workdir={tmp_path}/s'), "has no 'CLAIM'")
  half = (FORKS / 'fair_coin.py').read_text().replace('def verdict', 'def judgement')
  (tmp_path / 'half.py').write_text(half)
  refused(quick('study', f'--name={tmp_path}/half.py', f'--workdir={tmp_path}/s'), "has no 'verdict'")


def test_what_a_study_raises_while_it_runs_is_one_line(quick, tmp_path):
  bug = (FORKS / 'fair_coin.py').read_text().replace("  return {'heads'", "  raise KeyError('tails')\n  return {'heads'")
  (tmp_path / 'bug.py').write_text(bug)
  refused(quick('study', f'--name={tmp_path}/bug.py', f'--workdir={tmp_path}/s'), f"--name is '{tmp_path}/bug.py'",
          "fails in run at line 16 (KeyError: 'tails')")
