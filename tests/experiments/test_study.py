"""Studies: their parts, rules and files; a small one is run, interrupted and continued."""

import html
import json
import os
import pathlib
import types

import jax
import numpy as np
import pytest

from experiments import study
from experiments.reports import sections
from experiments.shared import task_training as fit
from experiments.studies import arrow_of_time, one_way, stride, tiered_path_star, tiered_text, tiered_word_problem
from framework import config as config_lib
from framework import models
from framework.data.tasks.one_way import Task
from framework.models import contract
from framework.tiered import model as tiered
from tests import commands


def test_every_study_says_what_it_claims():
  assert study.names() == ['arrow_of_time', 'one_way', 'stride', 'tiered_path_star', 'tiered_text',
                           'tiered_word_problem']
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


def stride_results(**changes):
  """Bits a byte that support the claim, and independent predictions a target that rise as S falls."""
  bits = {'both 128': 2.5, 'tokens 115': 2.49, 'tokens 64': 2.45, 'tokens 32': 2.44, 'tokens 13': 2.44,
          'flops 115': 2.48, 'flops 64': 2.52, 'flops 32': 2.55, 'flops 13': 2.7}
  return {part: {seed: {'bits_per_byte': (changes.get(part, bits[part]) if seed else bits[part]),
                        'independent': changes.get('independent', 1 / int(part.split()[1])) if seed else 1 / int(
                            part.split()[1])} for seed in range(2)} for part in bits}


@pytest.mark.parametrize('changes,expected', [
    ({}, [True] * 3), ({'tokens 64': 2.51}, [False, True, True]), ({'flops 64': 2.4}, [True, False, True]),
    ({'flops 32': 2.49}, [True, False, True]), ({'independent': 0.1}, [True, True, False])])
def test_the_rule_of_stride(changes, expected):
  found = stride.verdict(stride_results(**changes))
  json.dumps(found)  # as it is written
  assert list(found['numbers']['holds'].values()) == expected
  assert found['verdict'] == ('supported' if all(expected) else 'not supported')


def test_strides_have_equal_tokens_or_equal_flops():
  s = stride.SCALES['cpu']
  first = stride.settings('both 128', s, 0)
  for S in s['strides'][1:]:
    tokens, cost = stride.settings(f'tokens {S}', s, 0), stride.settings(f'flops {S}', s, 0)
    for same in (tokens, first):
      assert same.training.batch * same.data.stride == pytest.approx(16 * 128, rel=0.03)
    assert tokens.training.steps * tokens.training.batch * S == pytest.approx(s['steps'] * 16 * 128, rel=0.01)
    assert (cost.training.batch, cost.training.steps) == (first.training.batch, first.training.steps)
    assert {c.evaluation.stride for c in (first, tokens, cost)} == {16} and cost.data.stride == tokens.data.stride == S


def test_the_rule_of_the_arrow_needs_every_seed():
  def results(last):
    return {'forwards': {n: {'bits_per_byte': 2.0} for n in range(3)},
            'backwards': {n: {'bits_per_byte': x} for n, x in enumerate((2.1, 2.01, last))}}
  assert arrow_of_time.verdict(results(2.001))['verdict'] == 'supported'
  assert arrow_of_time.verdict(results(2.0))['verdict'] == 'not supported'


def test_backwards_is_every_document_turned_round():
  class Text:
    """end 1 2 end 3 4 5 end"""
    words = np.array([9, 1, 2, 9, 3, 4, 5, 9])
    tokens, starts, bytes, documents = 8, np.array([0, 3]), 5, 2
    def rows(self, starts, length):
      return np.stack([self.words[s:s + length] for s in starts])
  turned = arrow_of_time.Backwards(Text())
  np.testing.assert_array_equal(turned.rows(np.array([0, 3]), 5), [[9, 5, 4, 3, 9], [3, 9, 2, 1, 9]])
  assert turned.starts.tolist() == [0, 4] and all(turned.rows(turned.starts, 1) == 9)
  twice = arrow_of_time.Backwards(turned)
  np.testing.assert_array_equal(twice.rows(np.array([1]), 7), Text().rows(np.array([1]), 7))
  np.testing.assert_array_equal(twice.starts, Text.starts)


def star_results(**changes):
  one = {'arms': 4, 'steps': [1.0, 0.99], 'loss_curves': {}} | {name: {'accuracy': a} for name, a in (
      ('decoder', 0.25), ('filler', 0.25), ('shuffled', 0.24), ('rollouts 1', 0.49), ('rollouts 4', 0.9))}
  return {'walks': {0: one, 1: one | {name: {'accuracy': a} for name, a in changes.items()}}}


@pytest.mark.parametrize('changes,expected', [
    ({}, 'supported'), ({'rollouts 1': 0.44}, 'not supported'), ({'rollouts 4': 0.85}, 'not supported'),
    ({'filler': 0.31}, 'not supported'), ({'decoder': 0.4}, 'not supported')])
def test_the_rule_of_path_stars(changes, expected):
  assert tiered_path_star.verdict(star_results(**changes))['verdict'] == expected


def test_the_reader_of_walks_is_scored_on_the_first_node_alone():
  task = tiered_path_star.Task(3, 3)
  batch = fit.rows(task, jax.random.key(0), 5, 7, hard_only=True)
  rows, places = np.nonzero(np.asarray(batch['weights']))
  assert rows.tolist() == [0, 1, 2, 3, 4] and set(places) == {task.hard - 1}
  edges = np.asarray(batch['tokens'][:, 1:1 + task.edges]) - task.names
  first = np.asarray(batch['targets'])[rows, places]
  assert all(v in row for v, row in zip(first, edges))  # pair(0, v), less the names, is v: a neighbour of the centre


def text_results(better):
  rng = np.random.default_rng(0)
  targets = rng.integers(100, 1000, 60).astype(float)
  def run(seed, gain):
    nats = targets * (1.4 + 0.2 * np.random.default_rng(1).normal(size=60) + 0.01 * np.random.default_rng(seed).normal(
        size=60) + gain)
    return {'bits_per_byte': 2.0, 'by_document': [nats.tolist(), targets.tolist()], 'bytes_per_token': 1.0,
            'flops_train': 1.0, 'flops_inference': 1.0, 'parameters': 1}
  return {part: {seed: run(10 * n + seed, 0 if part == 'tiered' else better.get(part, 0.05)) for seed in range(3)}
          for n, part in enumerate(tiered_text.parts({}))}


@pytest.mark.parametrize('better,expected', [
    ({}, 'supported'), ({'filler': 0.0}, 'not supported'), ({'decoder training': -0.05}, 'not supported')])
def test_the_rule_of_text_needs_every_interval_below_zero(better, expected):
  found = tiered_text.verdict(text_results(better))
  json.dumps(found)  # as it is written
  assert found['verdict'] == expected
  for part, is_below in found['numbers']['below'].items():
    mean, low, high = found['numbers'][f'tiered less {part}']
    assert low < mean < high and is_below == (high < 0)
    if part not in better:
      assert mean == pytest.approx(-0.05 / np.log(2), abs=0.01)


def test_decoders_of_the_text_study_have_as_much_of_what_they_name():
  s, V = tiered_text.SCALES['cpu'], 257
  c = tiered_text.settings(s, 0)
  plain = lambda equal: tiered_text.decoder(equal, s, 0, V)
  assert plain('tokens').training.steps == s['second'] and plain('tokens').model.layers == s['layers']
  bottom, top = (models.build(stage.config, V).flops().train for stage in models.stages(c))
  total = s['first'] * bottom + s['second'] * top
  training = plain('training')
  assert training.training.steps * models.build(training, V).flops().train == pytest.approx(total, rel=0.01)
  deep = plain('inference')
  assert models.build(deep, V).flops().forward == pytest.approx(models.build(c, V).flops().forward, rel=0.1)
  size = contract.counts(models.build(c, V))['total']
  assert contract.counts(models.build(plain('parameters'), V))['total'] == pytest.approx(size, rel=0.1)
  assert plain('parameters').model.width == s['width'] and plain('inference').training.steps == s['second']


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
    return commands.launch('study', '--name=one_way', '--seeds=1', f'--workdir={tmp_path / "run"}', *more)
  done = launch()
  assert done.returncode == 0, done.stderr
  verdict = json.loads((tmp_path / 'run' / 'verdict.json').read_text())
  assert verdict['verdict'] == 'supported' and verdict['rule'] == one_way.RULE and verdict['seeds'] == 1
  assert (tmp_path / 'run' / 'figure.svg').read_text().startswith('<?xml')
  page = sections.write([tmp_path / 'run'], tmp_path / 'report.html', 'studies').read_text()
  words = html.unescape(page)
  for key in ('claim', 'source', 'rule', 'verdict', 'cost'):
    assert f'{key.capitalize()}: {verdict[key]}' in words, key
  assert f'Setting: {json.dumps(verdict["setting"])}' in words and 'Seeds: 1' in words
  assert 'cube right_to_left_scan 32' in words and one_way.figure.__doc__ in words and page.count('<img ') == 1
  refused = launch('--scale=gpu')
  assert refused.returncode == 2 and 'was made in the setting' in refused.stderr
  assert launch('--help').stdout.count('python -m experiments.study --name=') == 2


@pytest.mark.parametrize('steps', [1, 60, 100])
def test_small_training_takes_as_many_steps_as_it_is_asked_for(steps):
  task = Task(steps=2)
  c = config_lib.Config(model=config_lib.Model(layers=1, width=8, heads=2), data=config_lib.Data(window=task.length - 1))
  module, shown = models.build(config_lib.resolve(c), len(task.alphabet) + 1), []
  drawn = []
  def draw(key, number):
    jax.debug.callback(lambda n: drawn.append(int(n)), number)
    return fit.rows(task, key, 2, number)
  fit.train(module, draw, steps=steps, seed=0, settings=config_lib.Optimizer(warmup_steps=0),
            show=lambda done, total, what: shown.append((done, total)))
  jax.effects_barrier()
  assert sorted(drawn) == list(range(steps)) and shown[-1] == (steps, steps)


def named(*parts):
  return study.parts_of(types.SimpleNamespace(parts=lambda settings: list(parts)), {}, 'S')


def test_parts_have_files_of_their_own():
  """Plain names keep the names that they had; where two would share a file, both are quoted."""
  assert named('walks', 'cube right_to_left_scan', 'v1.5 50%') == {
      'walks': 'walks', 'cube right_to_left_scan': 'cube_right_to_left_scan', 'v1.5 50%': 'v1.5_50%'}
  assert named('a b', 'a_b', 'c_d') == {'a b': 'a%20b', 'a_b': 'a%5Fb', 'c_d': 'c_d'}
  assert named('a/b', '..', 'a\nb') == {'a/b': 'a%2Fb', '..': '..', 'a\nb': 'a%0Ab'}
  assert named('a/b', 'a%2Fb') == {'a/b': 'a%2Fb', 'a%2Fb': 'a%252Fb'}


@pytest.mark.parametrize('parts,words', [
    (('a', 'a'), ["'a' and 'a'", 'one name']), (('a b', 'a_b', 'a%20b'), ['a%20b', 'one name']), ((), ['gives []']),
    (('',), ['a list of names']), ((1, 2), ['gives [1, 2]'])])
def test_parts_that_are_none_or_not_apart_are_refused(parts, words):
  with pytest.raises(config_lib.ConfigError) as caught:
    named(*parts)
  assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize('value,words', [
    (None, ['run() gives None', 'numbers']), ({'x': np.float32(1)}, ['float32', 'float(x)']),
    ({'x': np.zeros(2)}, ['ndarray', 'float(x)']), ({('a', 'b'): 1}, ['tuple'])])
def test_numbers_that_are_none_or_no_json_are_refused(value, words):
  with pytest.raises(config_lib.ConfigError) as caught:
    study.plain(value, 'S', 'run()')
  assert all(word in str(caught.value) for word in words), caught.value
  assert study.plain({'x': [1.5, (2, None)]}, 'S', 'run()') == {'x': [1.5, [2, None]]}


@pytest.mark.parametrize('outcome', [None, 'supported', {'verdict': 'supported'}, {'numbers': 1, 'verdict': True}])
def test_a_verdict_is_numbers_and_a_word(outcome):
  with pytest.raises(config_lib.ConfigError, match=r"verdict\(results\) gives .*; expected {'numbers'"):
    study.judged(types.SimpleNamespace(verdict=lambda results: outcome), {}, 'S')


def test_a_study_whose_functions_take_other_arguments_is_refused(tmp_path):
  coin = (pathlib.Path(__file__).parents[1] / 'forks' / 'fair_coin.py').read_text()
  for old, new, said in (('run(part, seed, settings, show, folder)', 'run(part, seed)', r'run\(part, seed\) at line 15 is'),
                         ('verdict(results)', 'verdict()', r'verdict\(\) at line 19 is called as verdict\(results\)'),
                         ('figure(results, axes)', 'figure(results)', r'is called as figure\(results, axes\)')):
    (tmp_path / 'coin.py').write_text(coin.replace(old, new))
    os.utime(tmp_path / 'coin.py', (len(old), len(old)))
    with pytest.raises(config_lib.ConfigError, match=said):
      study.study_of(f'{tmp_path}/coin.py')


def test_a_part_that_was_kept_under_a_relative_path_is_still_the_studys(tmp_path):
  path, there = tmp_path / 'tosses_0.json', {'study': 'forks/coin.py', 'scale': 'cpu', 'tosses': 2}
  path.write_text(json.dumps({'setting': there, 'numbers': {'heads': 0.5}, 'seconds': 1.0}))
  full = there | {'study': str(pathlib.Path('forks/coin.py').resolve())}
  assert study.read_part(path, full)['numbers'] == {'heads': 0.5}
  with pytest.raises(config_lib.ConfigError, match='was made in the setting'):
    study.read_part(path, full | {'tosses': 3})
