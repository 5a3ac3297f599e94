"""One command trains tiers: killed in each stage it ends with the same bytes; sampled and evaluated as users do."""

import functools
import json
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from foundation import files
from framework import config as config_lib
from framework.tiered import stages
from tests import commands
from tests.commands import ROOT, environment, write_documents

STEPS = {1: 30, 2: 40, 3: 20}


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return write_documents(tmp_path_factory.mktemp('text'))


def command(text, workdir, tiers, *more):
  numbers = lambda values: ','.join(map(str, values))
  return [sys.executable, '-m', 'experiments.train', '--config=experiments/configs/tiered_text.py',
          f'--workdir={workdir}', f'--config.data.path={text}', f'--config.data.cache={text.parent / "cache"}',
          '--config.model.width=32', '--config.model.layers=1', '--config.model.heads=2',
          f'--config.tiered.tiers={tiers}', f'--config.tiered.widths={numbers([16, 32, 32][:tiers])}',
          f'--config.tiered.layers={numbers([1] * tiers)}',
          f'--config.tiered.steps={numbers([STEPS[t + 1] for t in range(tiers)])}', '--config.tiered.memorisation=0.05',
          '--config.data.window=32', '--config.tiered.period=12', '--config.tiered.rollout=4',
          '--config.training.batch=8', '--config.optimizer.warmup_steps=5', '--config.training.log_every=2',
          '--config.checkpoint.every_steps=5', '--config.evaluation.windows=8', '--config.evaluation.every_steps=0',
          '--resume', *more]


def train(text, workdir, tiers, *more):
  return subprocess.Popen(command(text, workdir, tiers, *more), cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def finish(process, expected=0):
  output, _ = process.communicate(timeout=600)
  assert process.returncode == expected, output
  return output


def kill_after(process, workdir, tier, step):
  """SIGKILL once the tier has logged a later step. Whether the process was still running."""
  path = workdir / f'tier_{tier}' / 'metrics.jsonl'
  while process.poll() is None:
    rows = [json.loads(line) for line in path.read_text().splitlines()[:-1]] if path.exists() else []
    if rows and rows[-1]['step'] > step:
      break
    time.sleep(0.005)
  running = process.poll() is None
  process.send_signal(signal.SIGKILL)
  process.communicate(timeout=60)
  return running


def arrays(folder, step):
  with ocp.CheckpointManager(folder / 'checkpoints', options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
    assert manager.latest_step() == step
    state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def check_the_same(one, other, tiers, steps=STEPS):
  for tier in range(1, tiers + 1):
    a, b = one / f'tier_{tier}', other / f'tier_{tier}'
    assert (a / 'metrics.jsonl').read_bytes() == (b / 'metrics.jsonl').read_bytes()
    found, expected = arrays(a, steps[tier]), arrays(b, steps[tier])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
      np.testing.assert_array_equal(found[name], array, err_msg=name)


def killed_in_every_stage(text, folder, tiers):
  whole, killed = folder / 'whole', folder / 'killed'
  finish(train(text, whole, tiers))
  for tier in range(1, tiers + 1):
    assert kill_after(train(text, killed, tiers), killed, tier, 10), f'tier {tier} was over before the kill'
  finish(train(text, killed, tiers))
  check_the_same(killed, whole, tiers)
  return whole


@pytest.fixture(scope='module')
def two(text, tmp_path_factory):
  return killed_in_every_stage(text, tmp_path_factory.mktemp('two'), 2)


launch = functools.partial(commands.launch, timeout=600)


def test_killed_in_both_stages_ends_the_same(two):
  result = json.loads((two / 'result.json').read_text())
  assert result['status'] == 'complete' and [t['steps'] for t in result['tiers']] == [STEPS[1], STEPS[2]]
  assert result['flops_train_exact'] == sum(t['flops_train_exact'] for t in result['tiers'])
  gap = json.loads((two / 'tier_1' / 'memorisation.json').read_text())
  assert gap['gap'] == gap['training']['accuracy'] - gap['held_out']['accuracy'] and gap['held_out']['tokens'] > 100
  assert gap['gap_error'] == pytest.approx(np.hypot(gap['training']['error'], gap['held_out']['error'])) and (
      0.001 < gap['gap_error'] < 0.1)
  last = files.read_rows(two / 'tier_2' / 'metrics.jsonl')
  assert last[-1]['loss'] < last[0]['loss']


def test_lower_tiers_are_frozen(two):
  below, above = arrays(two / 'tier_1', STEPS[1]), arrays(two / 'tier_2', STEPS[2])
  shared = [name for name in below if name.startswith(".params['tier_1']") or name.startswith("['params']['tier_1']")]
  assert len(shared) > 5
  for name in shared:
    np.testing.assert_array_equal(above[name], below[name], err_msg=name)
  assert not [name for name in above if 'optimizer' in name and 'tier_1' in name]


def test_generate_shows_rollouts(two):
  shown = launch('generate', f'--workdir={two}', '--prompt=ab cd', '--tokens=40', '--show_rollouts', '--seed=3')
  assert shown.returncode == 0, shown.stderr
  assert shown.stdout.startswith('ab cd') and shown.stdout.count('[[1: ') >= 2
  plain = launch('generate', f'--workdir={two}', '--prompt=ab cd', '--tokens=40', '--seed=3')
  assert '[[' not in plain.stdout and plain.stdout.strip()
  kept = shown.stdout
  while '[[1: ' in kept:
    before, _, rest = kept.partition('[[1: ')
    kept = before + rest.partition(']]')[2]
  assert kept == plain.stdout


def test_evaluate_gives_the_loss_of_the_run(two):
  done = launch('evaluate', f'--workdir={two}', '--windows=8')
  assert done.returncode == 0, done.stderr
  row = json.loads((two / 'evaluations.jsonl').read_text().splitlines()[0])
  result = json.loads((two / 'result.json').read_text())
  assert row['nats_per_token'] == pytest.approx(result['loss_nats_per_token'], rel=1e-5)


@pytest.mark.slow
def test_rollouts_from_disk_train_the_same_model(text, two, tmp_path):
  """Losses as with rollouts on the fly; the FLOPs of writing are paid once."""
  finish(train(text, tmp_path / 'run', 2, '--config.tiered.cached=true'))
  found, expected = ([row['loss'] for row in files.read_rows(folder / 'tier_2' / 'metrics.jsonl')]
                     for folder in (tmp_path / 'run', two))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  other = json.loads((tmp_path / 'run' / 'tier_2' / 'rollouts' / 'rollouts.json').read_text())
  assert other['period'] == 12 and len(other['params']) == 1
  last = finish(train(text, tmp_path / 'run', 2, '--config.tiered.cached=true', '--config.tiered.temperature=0.5'), 2)
  assert "whose tiered.temperature is 1.0; this config has 0.5" in last


@pytest.mark.slow
def test_cross_fitting_killed_in_every_run_ends_the_same(text, tmp_path):
  whole, killed, folds = tmp_path / 'whole', tmp_path / 'killed', '--config.tiered.folds=2'
  finish(train(text, whole, 2, folds))
  for stage in ('1', '1/fold_0', '1/fold_1', '2'):
    assert kill_after(train(text, killed, 2, folds), killed, stage, 10), f'tier {stage} was over before the kill'
  finish(train(text, killed, 2, folds))
  check_the_same(killed, whole, 2)
  for name in ('tier_1/fold_0/metrics.jsonl', 'tier_1/fold_1/metrics.jsonl', 'tier_2/rollouts/rollouts.bin',
               'tier_2/rollouts/rollouts.json'):
    assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
  one, other = (files.read_rows(whole / 'tier_1' / f'fold_{n}' / 'metrics.jsonl')[-1]['loss'] for n in (0, 1))
  result = json.loads((whole / 'result.json').read_text())
  assert one != other and len(result['folds']) == 2 and result['flops_train_exact'] > sum(
      found['flops_train_exact'] for found in result['tiers'] + result['folds'])


def train_by_heart(folder, workdir, *more):
  """A text whose every document is told twice, in training so long that it is known by heart."""
  folder.mkdir()
  rng = random.Random(1)
  for n in range(20):
    (folder / f'{n:02d}.txt').write_text(''.join(rng.choices('abcdefgh', k=60)) * 2)
  return train(folder, workdir, 2, '--config.tiered.steps=400,20', '--config.data.window=100',
               '--config.model.layers=2', '--config.tiered.layers=2,2', '--config.tiered.widths=64,32',
               '--config.tiered.temperature=0', '--config.checkpoint.every_steps=0',
               '--config.optimizer.learning_rate=0.03', *more)


@pytest.mark.slow
def test_memorisation_refuses_the_next_tier(tmp_path):
  last = finish(train_by_heart(tmp_path / 'text', tmp_path / 'run'), 2).strip().splitlines()[-1]
  assert last.startswith('error: rollouts of tier 1 are ') and 'expected at most 5.0' in last
  gap = json.loads((tmp_path / 'run' / 'tier_1' / 'memorisation.json').read_text())
  assert gap['gap'] - 2 * gap['gap_error'] > 0.05
  assert not (tmp_path / 'run' / 'tier_2' / 'metrics.jsonl').exists()


@pytest.mark.slow
def test_cross_fitting_cures_memorisation(tmp_path):
  """The same training: what a tier is given to read was not written by one that knew it by heart."""
  finish(train_by_heart(tmp_path / 'text', tmp_path / 'run', '--config.tiered.folds=4'))
  gap = json.loads((tmp_path / 'run' / 'tier_1' / 'memorisation.json').read_text())
  assert gap['gap'] < 0.05 and gap['training']['tokens'] > 300


def test_a_stage_is_a_smaller_run_of_tiers():
  c = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', width=64, heads=2, layers=3), data=config_lib.Data(window=64),
      tiered=config_lib.Tiered(tiers=3, widths='16,32,64', layers='1,2,3', steps='200,300,400', content='filler')))
  one, two, three = (stages.stage(c, n) for n in (1, 2, 3))
  assert [s.training.steps for s in (one, two, three)] == [200, 300, 400]
  assert (two.model.width, two.model.layers, two.model.feedforward) == (32, 2, 128)
  assert (two.tiered.widths, two.tiered.layers, two.tiered.tiers) == ('16,32', '1,2', 2)
  assert [s.tiered.content for s in (one, two, three)] == ['own', 'own', 'filler'] and c.tiered.tiers == 3


@pytest.mark.slow
def test_three_tiers_killed_in_every_stage_end_the_same(text, tmp_path):
  whole = killed_in_every_stage(text, tmp_path, 3)
  shown = launch('generate', f'--workdir={whole}', '--prompt=ab cd', '--tokens=30', '--show_rollouts')
  assert shown.stdout.count('[[1: ') == shown.stdout.count('[[2: ') >= 2, shown.stderr


@pytest.mark.slow
def test_the_shipped_config_killed_in_both_stages_ends_the_same(tmp_path):
  """At its own size, on the standard library's sources."""
  def start(workdir):
    return subprocess.Popen([sys.executable, '-m', 'experiments.train', '--config=experiments/configs/tiered_text.py',
                             f'--workdir={workdir}', '--resume'], cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  process = start(whole)
  assert process.communicate(timeout=3600) and process.returncode == 0
  for tier in (1, 2):
    assert kill_after(start(killed), killed, tier, 150), f'tier {tier} was over before the kill'
  process = start(killed)
  assert process.communicate(timeout=3600) and process.returncode == 0
  check_the_same(killed, whole, 2, {1: 300, 2: 500})
  shown = launch('generate', f'--workdir={whole}', '--prompt=def main(', '--tokens=200', '--show_rollouts')
  assert shown.stdout.startswith('def main(') and shown.stdout.count('[[1: ') >= 2, shown.stderr
