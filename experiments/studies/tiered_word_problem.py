"""Does thinking in text inside training solve what the same decoder cannot?

The word problem of S_5 as cubes over F_5, told answer first (framework.data.tasks.one_way): `end f_0 .. f_{T-1} b_T =
b_0 ; b_{T-1} .. b_0`. A decoder of few layers must say b_0 before it has derived it. Tier 1 learns to derive; its
rollout from '=' holds a guess of b_0 and then the derivation; tier 2 reads the rollout and says b_0.

Five readers of equal size and equal numbers of steps tell thinking from computing: rollouts, a learned filler in their
place, rollouts of another row, no rollouts at all for as long, and no rollouts at twice the depth.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from experiments.shared import task_training as fit
from framework import config as config_lib
from framework.data.tasks.one_way import Task
from framework.models import contract
from framework.tiered import model as tiered

CLAIM = ('A decoder that reads its own rollout solves the answer-first word problem of S_5, where the decoder alone, a '
         'reader of filler and a reader of foreign rollouts stay at chance.')
SOURCE = 'Foster and Madeka 2023, "TCS for LLMs"; Merrill and Sabharwal 2023, arXiv:2207.00729 (depth of transformers)'
RULE = ('With T=8 and in every seed: accuracy of the reader of rollouts on b_0 at least .99; the decoder alone, filler '
        'and shuffled rollouts each at most .25, where chance is .20. Otherwise the claim is not supported.')

CONTROLS = ('filler', 'shuffled', 'decoder_for_as_long', 'decoder_twice_as_deep')
# 'quick' trains no controls: it is a first look.
SCALES = {
    'quick': dict(width=64, layers=2, heads=4, batch=64, first=1500, second=800, tests=32, lengths=(), depths=(),
                  controls=False),
    'cpu': dict(width=64, layers=2, heads=4, batch=64, first=1500, second=800, tests=64, lengths=(), depths=()),
    'gpu': dict(width=64, layers=2, heads=4, batch=256, first=20000, second=10000, tests=256, lengths=(4, 16, 32),
                depths=(1, 2, 4, 8)),
    'paper': dict(width=128, layers=2, heads=4, batch=512, first=50000, second=25000, tests=512,
                  lengths=(4, 16, 32, 64), depths=(1, 2, 4, 8, 16)),
}


def settings(task: Task, s: dict[str, Any], seed: int, content: str = 'own', layers: int = 0) -> config_lib.Config:
  """The two tiers; a rollout holds the guess, the semicolon and the derivation."""
  return config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=layers or s['layers'], width=s['width'], heads=s['heads']),
      data=config_lib.Data(window=task.length - 1), training=config_lib.Training(seed=seed),
      tiered=config_lib.Tiered(tiers=2, period=task.length - 1, rollout=task.steps + 2, content=content,
                               rollout_dropout=0.0)))


def optimizer(steps: int) -> config_lib.Optimizer:
  return config_lib.Optimizer(learning_rate=3e-3, final_learning_rate=3e-4, warmup_steps=min(200, steps // 10),
                              weight_decay=0.01)


def rollout_accuracy(model: tiered.Tiered, params: Any, batches: list[dict[str, jax.Array]]) -> float:
  """How often the derivation in a rollout ends at the right answer."""
  @jax.jit
  def one(params, batch):
    said = model.write(params, batch, batch['starts'])[0].tokens_BxGxKxR
    return said[:, 0, 0, -1] == batch['targets'][:, -1]
  return float(np.mean([np.mean(one(params, batch)) for batch in batches]))


def train_bottom(task: Task, s: dict[str, Any], seed: int, show, layers: int = 0, steps: int = 0):
  model = tiered.build(settings(task, s, seed, layers=layers), len(task.alphabet) + 1, tiers=1)
  draw = lambda key, number: fit.rows(task, key, s['batch'], number)
  steps = steps or s['first']
  params, losses = fit.train(model, draw, steps=steps, seed=seed, settings=optimizer(steps), show=show,
                             what=f'seed {seed}, T={task.steps}, tier 1, {layers or s["layers"]} layers')
  return model, params, losses


def train_top(task: Task, s: dict[str, Any], seed: int, bottom: Any, content: str, show):
  """Tier 2, a copy of tier 1 at first, on `content`."""
  model = tiered.build(settings(task, s, seed, content), len(task.alphabet) + 1)
  params = contract.init(model, jax.random.key(seed + 100)) | bottom
  params = tiered.warm_start(params, 2)
  draw = lambda key, number: fit.rows(task, key, s['batch'], number + s['first'])
  return model, *fit.train(model, draw, steps=s['second'], seed=seed + 10, settings=optimizer(s['second']),
                           params=params, only='tier_2', show=show, what=f'seed {seed}, T={task.steps}, {content}')


def test_rows(task: Task, s: dict[str, Any], seed: int) -> list[dict[str, jax.Array]]:
  """Blocks of keys that no training uses."""
  key = jax.random.key(10**6 + seed)
  return [fit.rows(task, jax.random.fold_in(key, n), s['batch'], 10**6 + n) for n in range(s['tests'])]


def with_content(model: tiered.Tiered, task: Task, s: dict[str, Any], seed: int, content: str) -> tiered.Tiered:
  return tiered.build(settings(task, s, seed, content), model.tiers[0].vocabulary)


def parts(s: dict[str, Any]) -> list[str]:
  """The names of the parts of a seed, in order."""
  return ['main'] + [f'length {T}' for T in s['lengths']] + [f'depth {n}' for n in s['depths']]


def run(part: str, seed: int, s: dict[str, Any], show, folder: pathlib.Path) -> dict[str, Any]:
  """One part of one seed, as numbers."""
  name, _, value = part.partition(' ')
  task = Task(steps=int(value) if name == 'length' else 8)
  tests = test_rows(task, s, seed)
  if name == 'depth':
    model, params, losses = train_bottom(task, s, seed, show, layers=int(value), steps=s['first'] + s['second'])
    return {'decoder': fit.answers(model, params, tests, task.hard), 'losses': losses}
  model, bottom, losses = train_bottom(task, s, seed, show)
  out: dict[str, Any] = {'decoder': fit.answers(model, bottom, tests, task.hard), 'loss_curves': {'tier 1': losses}}
  top, params, losses = train_top(task, s, seed, bottom, 'own', show)
  out['rollouts'] = fit.answers(top, params, tests, task.hard)
  out['rollouts_end_right'] = rollout_accuracy(top, params, tests)
  out['loss_curves']['rollouts'] = losses
  for content in ('shuffled', 'oracle'):
    reader = with_content(top, task, s, seed, content)
    out[f'read_with_{content}'] = fit.answers(reader, params, tests, task.hard)
  if name == 'main' and s.get('controls', True):
    for content in ('filler', 'shuffled'):
      reader, params, losses = train_top(task, s, seed, bottom, content, show)
      out[content] = fit.answers(reader, params, tests, task.hard)
      out['loss_curves'][content] = losses
    model, params, losses = train_bottom(task, s, seed, show, steps=s['first'] + 2 * s['second'])
    out['decoder_for_as_long'] = fit.answers(model, params, tests, task.hard)
    model, params, losses = train_bottom(task, s, seed, show, layers=2 * s['layers'], steps=s['first'] + s['second'])
    out['decoder_twice_as_deep'] = fit.answers(model, params, tests, task.hard)
  return out


def verdict(results: dict[str, dict[int, Any]]) -> dict[str, Any]:
  """The numbers that the rule names, and whether it is met."""
  main = results['main']
  numbers = {name: [main[seed][name]['accuracy'] for seed in sorted(main)] for name in
             ('rollouts', 'decoder', *CONTROLS, 'read_with_shuffled', 'read_with_oracle')
             if name in main[min(main)]}
  numbers['rollouts_end_right'] = [main[seed]['rollouts_end_right'] for seed in sorted(main)]
  numbers['bits_with_rollouts'] = [main[seed]['rollouts']['bits'] for seed in sorted(main)]
  supported = min(numbers['rollouts']) >= 0.99 and max(
      numbers['decoder'] + numbers.get('filler', []) + numbers.get('shuffled', [])) <= 0.25
  words = 'supported' if 'filler' in numbers else 'supported as far as it was tried: no control was trained'
  for part, seeds in results.items():
    if part != 'main':
      for name in ('rollouts', 'decoder'):
        if name in seeds[min(seeds)]:
          numbers[f'{part}: {name}'] = [seeds[seed][name]['accuracy'] for seed in sorted(seeds)]
  return {'numbers': numbers, 'verdict': words if supported else 'not supported'}


def figure(results: dict[str, dict[int, Any]], axes) -> None:
  """Accuracy on b_0 of every reader, a point a seed."""
  main = results['main']
  names = [name for name in ('decoder', *CONTROLS, 'read_with_shuffled', 'rollouts') if name in main[min(main)]]
  for x, name in enumerate(names):
    values = [main[seed][name]['accuracy'] for seed in sorted(main)]
    axes.plot([x] * len(values), values, 'o', alpha=0.6)
  axes.axhline(0.2, color='grey', linewidth=1)
  axes.set_xticks(range(len(names)), [name.replace('_', '\n') for name in names], fontsize=8)
  axes.set_ylim(0, 1.02)
  axes.set_ylabel('accuracy on the answer, chance .2')
