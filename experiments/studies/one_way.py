"""Which reader computes a function that is easy from right to left and hard from left to right?

b_t = f_t(b_{t+1}) over F_5, told as `f_0 .. f_{T-1} b_T =`; the one token predicted is b_0, see
framework.data.tasks.one_way. A causal decoder meets b_T last, when all maps have passed. Readers: causal decoders by
depth, and, in front of a decoder of one layer, a bidirectional encoder, right-to-left attention and a right-to-left
recurrence. All see the same blocks, of 1 to T maps in equal shares, for the same number of steps, and are tested on T
maps and on lengths they never saw.

Control: affine maps over F_5, a solvable group, whose word problem constant depth can solve; cubes generate S_5.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared import task_training as fit
from framework import config as config_lib
from framework import models
from framework.data.tasks.one_way import Task

CLAIM = ('A right-to-left recurrent encoder computes b_0 of the one-way recurrence for every trained length and for '
         'four times as many maps; causal decoders and attention encoders of a few layers do not reach the trained '
         'length.')
SOURCE = 'Foster and Madeka 2023, "TCS for LLMs"; Merrill et al. 2024, arXiv:2404.08819 (state and depth)'
RULE = ('Cubes, T of the setting, every seed: the recurrence has an accuracy of at least .90 on T maps and on 4 T '
        'maps; every causal decoder and attention encoder has at most .60 on T maps. Otherwise not supported.')

ENCODERS = ('bidirectional', 'right_to_left', 'right_to_left_scan')
SCALES = {
    'cpu': dict(T=8, width=64, heads=4, depths=(2, 4), encoders=('bidirectional', 'right_to_left_scan'),
                encoder_layers=2, batch=64, steps=1500, tests=16, lengths=(4, 8, 32)),
    'gpu': dict(T=32, width=128, heads=4, depths=(1, 2, 4, 8), encoders=ENCODERS, encoder_layers=4, batch=256,
                steps=20000, tests=64, lengths=(1, 2, 4, 8, 16, 32, 64, 128)),
    'paper': dict(T=64, width=256, heads=8, depths=(1, 2, 4, 8, 16), encoders=ENCODERS, encoder_layers=8, batch=512,
                  steps=100000, tests=64, lengths=(1, 2, 4, 8, 16, 32, 64, 128, 256)),
}


def rows(task: Task, key: jax.Array, count: int, maps: int = 0) -> dict[str, jax.Array]:
  """Blocks up to '=', of `maps` maps or of 1 to T; what is left out at the left is a segment that nobody reads."""
  one, two = jax.random.split(key)
  block_BxT = jax.vmap(lambda u: task.spell(u, jnp))(jax.random.uniform(one, (count, task.draws))).astype(jnp.int32)
  T, L = task.steps, task.start + 1
  length_B = jnp.full(count, maps) if maps else jax.random.randint(two, (count,), 1, T + 1)
  answer_B = jnp.take_along_axis(block_BxT, (task.start + 2 + length_B)[:, None], axis=1)[:, 0]  # b after so many maps
  index = jnp.arange(L)
  tokens_BxL = block_BxT[:, :L]
  first_B = T - length_B  # where `end` now opens the block; the maps before stay out
  tokens_BxL = jnp.where(index == first_B[:, None], task.end, tokens_BxL)
  positions_BxL = jnp.maximum(index - first_B[:, None], 0)
  targets_BxL = jnp.concatenate([tokens_BxL[:, 1:], answer_B[:, None]], axis=1)
  weights = (index == L - 1).astype(jnp.float32)
  return {'tokens': tokens_BxL, 'targets': targets_BxL, 'weights': jnp.broadcast_to(weights, (count, L)),
          'segments': (index >= first_B[:, None]).astype(jnp.int32), 'positions': positions_BxL.astype(jnp.int32),
          'rows': jnp.arange(count, dtype=jnp.int32)}


def reader(kind: str, task: Task, s: dict[str, Any], seed: int):
  """`decoder <layers>`, or one of ENCODERS in front of one decoder layer."""
  name, _, depth = kind.partition(' ')
  L = task.start + 1
  c = config_lib.Config(
      model=config_lib.Model(layers=int(depth or 1), width=s['width'], heads=s['heads']),
      data=config_lib.Data(window=L), training=config_lib.Training(seed=seed))
  if name != 'decoder':
    c.model.name, c.data.stride = 'encoder_decoder', 1
    c.encoder = config_lib.Encoder(kind=name, layers=s['encoder_layers'])
  if name == 'right_to_left_scan':
    c.model.position = 'none'  # a recurrence knows the order; learnt distances would end at the trained length
  return models.build(config_lib.resolve(c), len(task.alphabet) + 1)


def parts(s: dict[str, Any]) -> list[str]:
  readers = [f'decoder {n}' for n in s['depths']] + list(s['encoders'])
  return [f'cube {reader}' for reader in readers] + [f'affine decoder {s["depths"][0]}']


def run(part: str, seed: int, s: dict[str, Any], show, folder: pathlib.Path) -> dict[str, Any]:
  kind, _, name = part.partition(' ')
  task = Task(kind=kind, steps=s['T'])
  module = reader(name, task, s, seed)
  settings = config_lib.Optimizer(learning_rate=3e-3, final_learning_rate=3e-4, warmup_steps=min(200, s['steps'] // 10),
                                  weight_decay=0.01)
  params, losses = fit.train(module, lambda key, _: rows(task, key, s['batch']), steps=s['steps'], seed=seed,
                             settings=settings, show=show, what=f'seed {seed}, {part}')
  out: dict[str, Any] = {'losses': losses, 'accuracy': {}}
  for maps in s['lengths']:
    longer = task if maps <= s['T'] else Task(kind=kind, steps=maps)
    key = jax.random.fold_in(jax.random.key(10**6 + seed), maps)
    tests = [rows(longer, jax.random.fold_in(key, n), s['batch'], maps) for n in range(s['tests'])]
    found = fit.answers(reader(name, longer, s, seed), params, tests, longer.start + 1)
    out['accuracy'][str(maps)] = found['accuracy']
  return out


def verdict(results: dict[str, dict[int, Any]]) -> dict[str, Any]:
  numbers = {part: {maps: [seeds[seed]['accuracy'][maps] for seed in sorted(seeds)]
                    for maps in seeds[min(seeds)]['accuracy']} for part, seeds in results.items()}
  lengths = sorted(map(int, numbers['cube right_to_left_scan']))
  trained, farthest = str(lengths[-1] // 4), str(lengths[-1])
  scan = numbers['cube right_to_left_scan']
  others = [a for part, found in numbers.items() if part.startswith('cube') and 'scan' not in part
            for a in found[trained]]
  supported = min(scan[trained] + scan[farthest]) >= 0.9 and max(others) <= 0.6
  return {'numbers': numbers, 'verdict': 'supported' if supported else 'not supported'}


def figure(results: dict[str, dict[int, Any]], axes) -> None:
  """Accuracy by the number of maps, the mean of the seeds; a dotted line is a control."""
  for part, seeds in results.items():
    lengths = sorted(map(int, seeds[min(seeds)]['accuracy']))
    mean = [sum(run['accuracy'][str(n)] for run in seeds.values()) / len(seeds) for n in lengths]
    axes.plot(lengths, mean, 'o:' if part.startswith('affine') else 'o-', label=part, markersize=3)
  axes.axhline(0.2, color='grey', linewidth=1)
  axes.set_xscale('log', base=2)
  axes.set_xlabel('maps')
  axes.set_ylabel('accuracy on b_0, chance .2')
  axes.legend(fontsize=7)
