"""How many tokens should a window predict? Statistical batch is not computational batch.

A window of L tokens costs the same whether all of its targets are scored or the last S. Fewer targets have more
context each and come from more places of the text, but cost L / S times as much each. The same decoder is trained with
strides from L to L/10 in two ways: with as many predicted tokens, in all and a step, which costs L / S times the FLOPs;
and with as many windows, in all and a step, which costs the same FLOPs and predicts S / L times the tokens. All are
evaluated at one stride, L / 8.

The targets of one window are told by one text, so their gradients agree more than those of targets far apart. How many
independent predictions a window is worth: the variance of the gradient of one target over that of a window's mean
(its trace; the gradient noise scale of McCandlish et al. 2018, arXiv:1812.06162).
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import text_training as text
from framework import config as config_lib
from framework import cross_entropy
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.training import setup

CLAIM = ('With as many predicted tokens a stride of half the window learns more than a stride of the window; at equal '
         'FLOPs the window or nine tenths of it is best; targets of a shorter block are less alike.')
SOURCE = 'Foster and Madeka 2023, "TCS for LLMs" (window L, stride S; PaLM with L=2000, S=1800)'
RULE = ('Held-out bits a byte at the evaluation stride L/8, in every seed: (1) at equal predicted tokens S = L/2 is '
        'below S = L; (2) at equal FLOPs the least is at S = L or .9 L, and S = L/4 is above S = L; (3) independent '
        'predictions a target are more at S = L/10 than at S = L. Supported if all three hold.')

DEVICES = 0  # one a core
SCALES = {
    'cpu': dict(window=128, strides=(128, 115, 64, 32, 13), layers=2, width=64, heads=4, windows=16, steps=150,
                learning_rate=3e-3, evaluated=2048, gradients=256, tokenizer='bytes'),
    'gpu': dict(window=512, strides=(512, 460, 256, 128, 51), layers=6, width=384, heads=6, windows=64, steps=10000,
                learning_rate=1e-3, evaluated=0, gradients=1024, tokenizer='bpe'),
    'paper': dict(window=2000, strides=(2000, 1800, 1000, 500, 200), layers=12, width=768, heads=12, windows=128,
                  steps=50000, learning_rate=6e-4, evaluated=0, gradients=1024, tokenizer='bpe'),
}


def settings(part: str, s: dict[str, Any], seed: int) -> config_lib.Config:
  way, stride = part.split()[0], int(part.split()[1])
  L, B, steps = s['window'], s['windows'], s['steps']
  if way == 'tokens':
    B = 2 * round(B * L / stride / 2)
    steps = round(steps * s['windows'] * L / (B * stride))
  return config_lib.resolve(config_lib.Config(
      model=config_lib.Model(layers=s['layers'], width=s['width'], heads=s['heads']),
      data=config_lib.Data(window=L, stride=stride, tokenizer=s['tokenizer']),
      optimizer=config_lib.Optimizer(learning_rate=s['learning_rate'], final_learning_rate=s['learning_rate'] / 10,
                                     warmup_steps=steps // 10),
      training=config_lib.Training(steps=steps, batch=B, seed=seed),
      evaluation=config_lib.Evaluation(windows=s['evaluated'], stride=L // 8, batch=64)))


def parts(s: dict[str, Any]) -> list[str]:
  """S = L is the same run at equal tokens and at equal FLOPs."""
  L, *less = s['strides']
  return [f'both {L}'] + [f'{way} {S}' for way in ('tokens', 'flops') for S in less]


def independent(module, params: Any, corpus: corpus_lib.Corpus, d: config_lib.Data, count: int, seed: int) -> float:
  """Independent predictions a target of a window: Var(one target) / Var(mean of the block's) / S."""
  total = windows.count(corpus.train.tokens, d.stride) - 1  # without the last, which may be short
  picked = np.arange(d.window // d.stride + 1, total)[windows.indices(
      total - d.window // d.stride - 1, count, seed, 10**6)]
  batch = windows.Windows(corpus.train, corpus.tokenizer.end, d.window, d.stride, d.packed).batch(picked)
  chosen = d.window - 1 - np.random.default_rng(seed).integers(d.stride, size=count)
  one = np.zeros_like(batch['weights'])
  one[np.arange(count), chosen] = 1

  def gradient(params, row):
    def loss(params):
      x = module.hidden(params, {name: x[None] for name, x in row.items()})
      return cross_entropy.sum_nats(x, module.head(params), row['targets'][None], row['weights'][None]) / row[
          'weights'].sum()
    return jax.grad(loss)(params)

  @jax.jit
  def moments(params, batch):
    """Sums of gradients and of their squares, so that no more than 8 are held at once."""
    parts = jax.tree.map(lambda x: x.reshape(-1, 8, *x.shape[1:]), batch)
    def add(carry, part):
      found = jax.vmap(gradient, (None, 0))(params, part)
      return (jax.tree.map(lambda a, x: a + x.sum(0), carry[0], found),
              carry[1] + sum((x**2).sum() for x in jax.tree.leaves(found))), None
    zero = jax.tree.map(jnp.zeros_like, params)
    (total, squares), _ = jax.lax.scan(add, (zero, jnp.zeros(())), parts)
    mean = sum(((x / count)**2).sum() for x in jax.tree.leaves(total))
    return (squares - count * mean) / (count - 1)

  return float(moments(params, batch | {'weights': one}) / moments(params, batch) / d.stride)


def run(part: str, seed: int, s: dict[str, Any], show, folder: pathlib.Path) -> dict[str, Any]:
  c = settings(part, s, seed)
  corpus = corpus_lib.prepare(c.data)
  result = text.train(c, folder, corpus)
  trained = setup.load(folder)
  out = {key: result[key] for key in ('bits_per_byte', 'tokens', 'flops_train_exact', 'loss_by_position')}
  params = jax.device_put(trained.params, jax.devices()[0])
  return out | {'independent': independent(trained.setup.module, params, corpus, c.data, s['gradients'], seed)}


def verdict(results: dict[str, dict[int, Any]]) -> dict[str, Any]:
  L = max(int(part.split()[1]) for part in results)
  strides = sorted({int(part.split()[1]) for part in results}, reverse=True)
  seeds = sorted(results[f'both {L}'])
  def of(way: str, stride: int, key: str) -> list[float]:
    return [results[f'both {L}' if stride == L else f'{way} {stride}'][seed][key] for seed in seeds]
  bits = {way: {S: np.array(of(way, S, 'bits_per_byte')) for S in strides} for way in ('tokens', 'flops')}
  alike = {S: np.array(of('tokens', S, 'independent')) for S in strides}
  whole, nine, half, quarter, tenth = strides
  holds = {
      'equal tokens: S = L/2 below S = L': bool((bits['tokens'][half] < bits['tokens'][whole]).all()),
      'equal FLOPs: L or .9 L best, L/4 above L': bool(
          (np.minimum(bits['flops'][whole], bits['flops'][nine]) < np.min([bits['flops'][S] for S in (
              half, quarter, tenth)], axis=0)).all() and (bits['flops'][quarter] > bits['flops'][whole]).all()),
      'more independent predictions a target at L/10': bool((alike[tenth] > alike[whole]).all())}
  numbers: dict[str, Any] = {'holds': holds}
  for way, words in (('tokens', 'equal predicted tokens'), ('flops', 'equal FLOPs')):
    numbers[f'bits a byte, {words}'] = {f'S={S}': [round(float(x), 4) for x in bits[way][S]] for S in strides}
  numbers['independent predictions a target'] = {f'S={S}': [round(float(x), 4) for x in alike[S]] for S in strides}
  return {'numbers': numbers, 'verdict': 'supported' if all(holds.values()) else 'not supported'}


def figure(results: dict[str, dict[int, Any]], axes) -> None:
  """Held-out bits a byte by S / L: a point a seed, a line through the means."""
  L = max(int(part.split()[1]) for part in results)
  for way, words in (('tokens', 'equal predicted tokens'), ('flops', 'equal FLOPs')):
    mine = {int(part.split()[1]): seeds for part, seeds in results.items() if part.split()[0] in (way, 'both')}
    strides = sorted(mine)
    values = np.array([[run['bits_per_byte'] for run in mine[S].values()] for S in strides])
    line, = axes.plot([S / L for S in strides], values.mean(1), label=words)
    axes.plot([S / L for S in strides], values, 'o', color=line.get_color(), markersize=3)
  axes.set_xlabel('stride / window')
  axes.set_ylabel('bits a byte')
  axes.legend(fontsize=8)
