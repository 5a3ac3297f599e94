"""Studies: their parts, rules and files; a small one is run, interrupted and continued."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import study
from experiments.studies import fit, one_way, tiered_word_problem
from framework import config as config_lib
from framework.data.tasks.one_way import Task

ROOT = pathlib.Path(__file__).parents[2]


def test_every_study_says_what_it_claims():
  assert {'tiered_word_problem', 'one_way'} <= set(study.names())
  for name in study.names():
    module = study.study_of(name)
    assert all(len(text) > 40 for text in (module.CLAIM, module.SOURCE, module.RULE))
    assert {'cpu', 'gpu', 'paper'} <= set(module.SCALES) and all(module.parts(s) for s in module.SCALES.values())


def test_an_unknown_study_names_the_nearest():
  with pytest.raises(config_lib.ConfigError, match="'one_wy'.*did you mean 'one_way'"):
    study.study_of('one_wy')


def word_results(**changes):
  one = {name: {'accuracy': 0.2, 'bits': 2.3} for name in (
      'decoder', 'filler', 'shuffled', 'decoder_for_as_long', 'decoder_twice_as_deep', 'read_with_shuffled',
      'read_with_oracle')} | {'rollouts': {'accuracy': 0.995, 'bits': 0.1}, 'rollouts_end_right': 0.99}
  return {'main': {0: one, 1: one | {name: {'accuracy': x, 'bits': 1} for name, x in changes.items()}}}


@pytest.mark.parametrize('changes,expected', [
    ({}, 'supported'), ({'rollouts': 0.98}, 'not supported'), ({'filler': 0.3}, 'not supported'),
    ({'shuffled': 0.9}, 'not supported'), ({'decoder': 0.26}, 'not supported')])
def test_the_rule_of_the_word_problem_needs_every_seed(changes, expected):
  assert tiered_word_problem.verdict(word_results(**changes))['verdict'] == expected


@pytest.mark.parametrize('changes,expected', [
    ({}, 'supported'), ({('right_to_left_scan', '64'): 0.5}, 'not supported'),
    ({('right_to_left_scan', '16'): 0.5}, 'not supported'), ({('bidirectional', '16'): 0.7}, 'not supported'),
    ({('bidirectional', '64'): 0.7}, 'supported')])
def test_the_rule_of_one_way(changes, expected):
  readers = ('decoder 2', 'bidirectional', 'right_to_left_scan')
  results = {f'cube {r}': {seed: {'accuracy': {n: changes.get((r, n), 0.95 if 'scan' in r else 0.3)
                                               for n in ('4', '16', '64')}} for seed in range(2)} for r in readers}
  assert one_way.verdict(results)['verdict'] == expected


def test_batches_of_one_way_end_with_the_answer():
  """Against Task.block: the answer after the last `maps` maps is the block's own derivation at that place."""
  task = Task(steps=6)
  batch = jax.device_get(one_way.rows(task, jax.random.key(0), 64))
  lengths = set()
  for tokens, target, segments in zip(batch['tokens'], batch['targets'][:, -1], batch['segments']):
    maps = int(segments.sum()) - 3
    lengths.add(maps)
    b = int(tokens[task.start - 1])
    for t in reversed(range(task.steps - maps, task.steps)):
      b = int(task.table[tokens[1 + t] - task.p, b])
    assert b == target and tokens[-1] == task.equals
    assert (segments[-maps - 3:] == 1).all() and (segments[:-maps - 3] == 0).all() and tokens[-maps - 3] == task.end
  assert lengths == set(range(1, 7))
  assert batch['weights'].sum() == 64 and (batch['weights'][:, -1] == 1).all()


def test_batches_of_a_task_score_what_follows_its_start():
  task = Task(steps=4)
  batch = jax.device_get(fit.rows(task, jax.random.key(0), 8, 3))
  assert batch['tokens'].shape == (8, task.length - 1)
  assert (batch['tokens'][:, task.start] == task.equals).all() and (batch['starts'] == task.start).all()
  first = batch['weights'].argmax(1)
  assert (first == task.start).all() and (batch['weights'].sum(1) == task.length - 1 - task.start).all()
  other = jax.device_get(fit.rows(task, jax.random.key(0), 8, 4))
  assert not set(batch['start']) & set(other['start'])


@pytest.mark.slow
def test_the_word_problem_runs_and_changes_only_the_top():
  s = dict(tiered_word_problem.SCALES['cpu'], width=16, layers=1, heads=2, batch=16, first=100, second=50, tests=1)
  task = Task(steps=3)
  shown = []
  model, bottom, losses = tiered_word_problem.train_bottom(task, s, 0, lambda *x: shown.append(x))
  top, params, _ = tiered_word_problem.train_top(task, s, 0, bottom, 'own', lambda *x: None)
  assert len(losses) == 2 and losses[1] < losses[0] and shown[-1][:2] == (100, 100)
  jax.tree.map(np.testing.assert_array_equal, params['tier_1'], bottom['tier_1'])
  found = fit.answers(top, params, tiered_word_problem.test_rows(task, s, 0), task.hard)
  assert found['answers'] == 16 and 0 <= found['accuracy'] <= 1
  oracle = tiered_word_problem.with_content(top, task, s, 0, 'oracle')
  assert oracle.settings.content == 'oracle' and oracle.tiers[0].decoder == top.tiers[0].decoder


def test_a_finished_part_is_not_done_again_and_another_setting_is_refused(tmp_path):
  """A folder whose parts are all there ends with its verdict at once."""
  s = json.loads(json.dumps({'study': 'one_way', 'scale': 'cpu'} | one_way.SCALES['cpu']))
  folder = tmp_path / 'run' / 'parts'
  folder.mkdir(parents=True)
  for part in one_way.parts(one_way.SCALES['cpu']):
    good = 0.95 if 'scan' in part else 0.2
    (folder / f'{part.replace(" ", "_")}_0.json').write_text(json.dumps(
        {'setting': s, 'numbers': {'losses': [1.0], 'accuracy': {n: good for n in ('4', '8', '32')}}, 'seconds': 2.0}))
  def launch(*more):
    env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    return subprocess.run([sys.executable, '-m', 'experiments.study', '--name=one_way', '--seeds=1',
                           f'--workdir={tmp_path / "run"}', *more], cwd=ROOT, env=env, capture_output=True, text=True)
  done = launch()
  assert done.returncode == 0, done.stderr
  verdict = json.loads((tmp_path / 'run' / 'verdict.json').read_text())
  assert verdict['verdict'] == 'supported' and verdict['rule'] == one_way.RULE and verdict['seeds'] == 1
  assert (tmp_path / 'run' / 'figure.svg').read_text().startswith('<?xml')
  refused = launch('--scale=gpu')
  assert refused.returncode == 2 and 'was made in the setting' in refused.stderr
  assert launch('--help').stdout.count('python -m experiments.study --name=') == 2
