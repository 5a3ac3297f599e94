"""Do more rollouts find the way that a decoder trained on right ways never learns to look for?

On a path-star graph (framework.data.tasks.path_star) the first node of the way to the goal takes a look ahead along a
whole arm. Tier 1 is trained on right paths before its eyes: it learns to walk from node to node, and takes the first
step at random. Its rollouts from the centre are such walks, and show where they end: tier 2 reads K of them. Who sees K
walks has at best the accuracy of `Task.with_rollouts(K)`: the goal's arm is among them, or those seen are ruled out.

Tier 2 is scored on the first step alone, all else tier 1 knows. Readers of more rollouts begin as the reader of fewer:
the look that finds a node among one walk's also finds it among four. Controls begin as the reader of one, and read as
many nodes as the reader of most: a learned filler in place of the rollouts, or the rollouts of another row.
"""

import pathlib
from typing import Any

import jax

from experiments.shared import task_training as fit
from framework import config as config_lib
from framework.data.tasks.path_star import Task
from framework.models import contract
from framework.tiered import model as tiered

CLAIM = ('A decoder guesses the first step on a path-star graph; a reader of K of its rollouts takes the right one as '
         'often as K random walks allow.')
SOURCE = ('Foster and Madeka 2023, "TCS for LLMs"; Bachmann and Nagarajan 2024, "The pitfalls of next-token '
          'prediction", arXiv:2403.06963')
RULE = ('Accuracy on the first step among d arms, in every seed: each reader of K rollouts at least the formula less '
        '.05; the decoder alone, filler and shuffled rollouts each at most 1/d + .05. Otherwise not supported.')

CONTROLS = ('filler', 'shuffled')
SCALES = {
    'cpu': dict(arms=3, nodes_of_arm=3, width=64, layers=2, heads=4, batch=64, first=1200, second=1000, more=500,
                tests=32, samples=(1, 2, 4)),
    'gpu': dict(arms=5, nodes_of_arm=5, width=256, layers=4, heads=8, batch=256, first=20000, second=10000, more=5000,
                tests=128, samples=(1, 2, 4, 8)),
    'paper': dict(arms=10, nodes_of_arm=5, width=384, layers=6, heads=6, batch=512, first=50000, second=25000,
                  more=10000, tests=128, samples=(1, 2, 4, 8, 16)),
}


def task_of(s: dict[str, Any]) -> Task:
  return Task(s['arms'], s['nodes_of_arm'])


def settings(s: dict[str, Any], seed: int, samples: int = 1, content: str = 'own') -> config_lib.Config:
  """Two tiers; a rollout is a walk along a whole arm. The goal's own node reads the rollouts.

  Without positions: edges come in any order, and a look learnt at one distance is to work at others, also ahead.
  """
  task = task_of(s)
  return config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=s['layers'], width=s['width'], heads=s['heads'], position='none'),
      data=config_lib.Data(window=task.length - 1), training=config_lib.Training(seed=seed),
      tiered=config_lib.Tiered(tiers=2, period=task.length - 1, rollout=task.nodes_of_arm + 1, samples=samples,
                               layout='stamp', content=content, rollout_dropout=0.0)))


def optimizer(steps: int) -> config_lib.Optimizer:
  """Muon: with AdamW the looks from node to node take several times as many steps to be learnt."""
  return config_lib.Optimizer(name='muon', learning_rate=1e-2, final_learning_rate=1e-3,
                              warmup_steps=min(200, steps // 10), weight_decay=0.01)


def parts(s: dict[str, Any]) -> list[str]:
  return ['walks']


def run(part: str, seed: int, s: dict[str, Any], show, folder: pathlib.Path) -> dict[str, Any]:
  """Tier 1, then every reader of it, as accuracies on the first step."""
  task = task_of(s)
  vocabulary = len(task.alphabet) + 1
  key = jax.random.key(10**6 + seed)
  tests = [fit.rows(task, jax.random.fold_in(key, n), s['batch'], 10**6 + n) for n in range(s['tests'])]
  bottom = tiered.build(settings(s, seed), vocabulary, tiers=1)
  below, losses = fit.train(bottom, lambda key, n: fit.rows(task, key, s['batch'], n), steps=s['first'], seed=seed,
                            settings=optimizer(s['first']), show=show, what=f'seed {seed}, tier 1')
  out: dict[str, Any] = {'arms': s['arms'], 'decoder': fit.answers(bottom, below, tests, task.hard),
                         'loss_curves': {'tier 1': losses}}
  # The gate of everything else: does tier 1 walk along edges?
  out['steps'] = [fit.answers(bottom, below, tests, task.hard + n)['accuracy'] for n in range(1, task.nodes_of_arm + 1)]
  draw = lambda key, n: fit.rows(task, key, s['batch'], n + s['first'], hard_only=True)
  def reader(content: str, samples: int, begin: Any, steps: int) -> Any:
    name = f'rollouts {samples}' if content == 'own' else content
    model = tiered.build(settings(s, seed, samples, content), vocabulary)
    params, losses = fit.train(model, draw, steps=steps, seed=seed + 10, settings=optimizer(steps), params=begin,
                               only='tier_2', show=show, what=f'seed {seed}, {name}')
    out[name] = fit.answers(model, params, tests, task.hard)
    out['loss_curves'][name] = losses
    return params
  fewest, *others = s['samples']
  fresh = contract.init(tiered.build(settings(s, seed), vocabulary), jax.random.key(seed + 100)) | below
  first = last = reader('own', fewest, tiered.warm_start(fresh, 2), s['second'])
  for samples in others:
    last = reader('own', samples, last, s['more'])
  for content in CONTROLS:
    reader(content, s['samples'][-1], first, s['more'])
  return out


def verdict(results: dict[str, dict[int, Any]]) -> dict[str, Any]:
  runs = [results['walks'][seed] for seed in sorted(results['walks'])]
  names = [name for name in runs[0] if name.startswith('rollouts ')]
  formula = {name: Task(runs[0]['arms']).with_rollouts(int(name.split()[1])) for name in names}
  accuracy = {name: [run[name]['accuracy'] for run in runs] for name in ('decoder', *CONTROLS, *names)}
  supported = all(min(accuracy[name]) >= formula[name] - 0.05 for name in names) and max(
      sum((accuracy[name] for name in ('decoder', *CONTROLS)), [])) <= 1 / runs[0]['arms'] + 0.05
  numbers = {f'accuracy of {name}': values for name, values in accuracy.items()} | {
      f'formula of {name}': round(value, 4) for name, value in formula.items()} | {
          'least accuracy of a step after the first': [min(run['steps']) for run in runs]}
  return {'numbers': numbers, 'verdict': 'supported' if supported else 'not supported'}


def figure(results: dict[str, dict[int, Any]], axes) -> None:
  """Accuracy on the first step by the number of rollouts, a point a seed, and the formula."""
  runs = list(results['walks'].values())
  samples = [int(name.split()[1]) for name in runs[0] if name.startswith('rollouts ')]
  formula = [Task(runs[0]['arms']).with_rollouts(K) for K in [0, *samples]]
  axes.plot([0, *samples], formula, color='grey', label='formula')
  for run in runs:
    axes.plot([0, *samples], [run['decoder']['accuracy'], *(run[f'rollouts {K}']['accuracy'] for K in samples)], 'o',
              color='C0')
    for marker, name in zip('x+', CONTROLS):
      axes.plot(samples[-1:], [run[name]['accuracy']], marker, color='C1', label=name if run is runs[0] else None)
  axes.set_ylim(0, 1.02)
  axes.set_xlabel('rollouts')
  axes.set_ylabel('accuracy on the first step')
  axes.legend(fontsize=8)
