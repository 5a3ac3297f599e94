"""Does thinking in text help on ordinary text, and against what?

A rollout says nothing that the text before it does not (Xu et al. 2020, arXiv:2002.10689): it can only compute. So the
tiered model is held against decoders that spend as much otherwise: as many training tokens as its top tier, as many
training FLOPs as all of its tiers and rollouts, as many FLOPs a token where it is used, as many parameters; and against
itself with a learned filler or the rollouts of another row in the places of its own.

Differences are paired: every model is scored on the same held-out targets, and whole documents are drawn again for the
interval, in all seeds at once. The gain is also told by the distance from the last start, where rollouts are freshest.
"""

import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from experiments.shared import text_training as text
from framework import config as config_lib
from framework import cross_entropy, models
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.models import contract
from framework.models.decoder import Decoder
from framework.tiered import model as tiered
from framework.training import run as run_lib
from framework.training import setup

CLAIM = ('On ordinary text a tiered model predicts better than a decoder with as many training tokens, training FLOPs, '
         'inference FLOPs or parameters, and better than itself without the content of its rollouts.')
SOURCE = 'Foster and Madeka 2023, "TCS for LLMs"; Xu et al. 2020, arXiv:2002.10689 (a rollout adds computation alone)'
RULE = ('Held-out bits a byte: against each of the six others, the 95 % interval of the difference in the mean over '
        'seeds (paired bootstrap of documents) lies below zero. Supported if all six do; otherwise not supported.')

DEVICES = 0  # one a core
SCALES = {
    'quick': dict(window=128, layers=2, width=64, lower_width=32, heads=4, period=32, rollout=8, batch=16, first=150,
                  second=200, learning_rate=1e-2, evaluated=512, tokenizer='bytes'),
    'cpu': dict(window=128, layers=4, width=128, lower_width=64, heads=4, period=64, rollout=16, batch=16, first=400,
                second=500, learning_rate=1e-2, evaluated=2048, tokenizer='bytes'),
    'gpu': dict(window=512, layers=8, width=512, lower_width=256, heads=8, period=64, rollout=16, batch=64, first=20000,
                second=20000, learning_rate=5e-3, evaluated=0, tokenizer='bpe'),
    'paper': dict(window=1024, layers=12, width=768, lower_width=384, heads=12, period=64, rollout=16, batch=256,
                  first=100000, second=100000, learning_rate=5e-3, evaluated=0, tokenizer='bpe'),
}
CONTENTS = ('tiered', 'filler', 'shuffled')
EQUAL = ('tokens', 'training', 'inference', 'parameters')
RESAMPLES = 2000


def settings(s: dict[str, Any], seed: int, content: str = 'tiered') -> config_lib.Config:
  """The tiered model, or with a control's content."""
  return config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=s['layers'], width=s['width'], heads=s['heads']),
      data=config_lib.Data(window=s['window'], tokenizer=s['tokenizer']),
      optimizer=config_lib.Optimizer(name='muon', learning_rate=s['learning_rate'], warmup_steps=50,
                                     final_learning_rate=s['learning_rate'] / 100),
      training=config_lib.Training(steps=s['second'], batch=s['batch'], seed=seed),
      tiered=config_lib.Tiered(tiers=2, widths=f"{s['lower_width']},{s['width']}", steps=f"{s['first']},{s['second']}",
                               period=s['period'], rollout=s['rollout'],
                               content='own' if content == 'tiered' else content),
      evaluation=config_lib.Evaluation(windows=s['evaluated'], batch=64)))


def decoder(equal: str, s: dict[str, Any], seed: int, vocabulary: int) -> config_lib.Config:
  """A decoder that has as much of something as the tiered model; more layers or more steps, all else its top tier's."""
  t, default = settings(s, seed), config_lib.flatten(config_lib.Config())
  plain = {key: value for key, value in default.items() if key.startswith('tiered.')}
  def with_layers(layers: int) -> config_lib.Config:
    return config_lib.changed(t, {'model.name': 'decoder', 'model.layers': layers} | plain)
  def model(layers: int) -> contract.Model:
    return models.build(with_layers(layers), vocabulary)
  c = with_layers(s['layers'])
  if equal == 'training':
    stages = [(stage.config.training.steps, models.build(stage.config, vocabulary)) for stage in models.stages(t)]
    total = sum(steps * built.flops().train for steps, built in stages)
    return config_lib.changed(c, {'training.steps': round(total / model(s['layers']).flops().train)})
  if equal == 'inference':
    return with_layers(nearest(lambda n: model(n).flops().forward, models.build(t, vocabulary).flops().forward))
  if equal == 'parameters':
    tiers = tiered.tier_models(t)
    sizes = [contract.counts(Decoder(m, vocabulary, s['window']))['total'] for m in tiers]
    return with_layers(nearest(lambda n: contract.counts(model(n))['total'], sum(sizes)))
  return c


def nearest(of, wanted: float) -> int:
  """The number of layers, at least 1, for which `of`, which is linear in them, is nearest to `wanted`."""
  one = of(1)
  return max(1, round(1 + (wanted - one) / (of(2) - one)))


def parts(s: dict[str, Any]) -> list[str]:
  return [*CONTENTS, *(f'decoder {equal}' for equal in EQUAL)]


def run(part: str, seed: int, s: dict[str, Any], show, folder: pathlib.Path) -> dict[str, Any]:
  content = part in CONTENTS
  corpus = corpus_lib.prepare(settings(s, seed).data)
  c = settings(s, seed, part) if content else decoder(part.split()[1], s, seed, corpus.tokenizer.size)
  if part in CONTENTS[1:]:  # on the same bottom tier
    source, target = folder.with_name(f'tiered_{seed}') / 'tier_1', folder / 'tier_1'
    run_lib.open_folder(folder, c, corpus, resume=True)
    if source.exists() and not target.exists():
      shutil.copytree(source, folder / '.tier_1', dirs_exist_ok=True)
      (folder / '.tier_1').rename(target)
  result = text.train(c, folder, corpus)
  trained = setup.load(folder)
  bytes_per_token = corpus.validation.bytes / (corpus.validation.tokens - 1)
  return {'bits_per_byte': result['bits_per_byte'], 'steps': c.training.steps, 'layers': c.model.layers,
          'flops_train': result['flops_train_exact'], 'parameters': result['params_total'],
          'flops_inference': trained.setup.module.flops().forward, 'bytes_per_token': bytes_per_token,
          } | scored(trained, corpus, s, seed)


def scored(trained: setup.Trained, corpus: corpus_lib.Corpus, s: dict[str, Any], seed: int) -> dict[str, Any]:
  """Nats and targets of the held-out windows by document, and by distance from the last start."""
  module, split = trained.setup.module, corpus.validation
  starter = tiered.build(settings(s, seed), corpus.tokenizer.size)
  @jax.jit
  def nats(params, batch):
    return cross_entropy.token_nats(module.hidden(params, batch), module.head(params), batch['targets'])
  places = jax.jit(lambda batch: starter.starts(None, batch))
  params = jax.device_put(trained.params, jax.devices()[0])
  by_document, by_distance = (np.zeros((2, n)) for n in (len(split.starts), s['period'] + 1))
  for batch in windows.Windows(split, corpus.tokenizer.end, s['window'], s['window']).each(64, s['evaluated']):
    weights_BxL = batch['weights'].astype(float)
    both = np.stack([np.asarray(nats(params, batch), float) * weights_BxL, weights_BxL])
    at_BxL = batch['start'].astype(np.int64)[:, None] + np.arange(s['window'])  # of the inputs, in the split
    starts_BxG = np.asarray(places(batch))
    since = np.arange(s['window'])[None, :, None] - starts_BxG[:, None]
    distance_BxL = np.where(since >= 0, since, s['period']).min(-1)  # the last place: before the first start
    # A rollout is read in its own document alone.
    begin_BxL = np.arange(s['window']) - batch['positions']
    distance_BxL = np.where(np.arange(s['window']) - distance_BxL >= begin_BxL, distance_BxL, s['period'])
    document_BxL = np.searchsorted(split.starts, at_BxL, side='right') - 1
    for table, index in ((by_document, document_BxL), (by_distance, np.minimum(distance_BxL, s['period']))):
      for row, values in zip(table, both):
        np.add.at(row, index.ravel(), values.ravel())
  return {'by_document': by_document.tolist(), 'by_distance': by_distance.tolist()}


def interval(ours: np.ndarray, theirs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
  """The mean difference in nats a target and its 95 % interval; nats [seeds, documents], targets [documents]."""
  difference = (ours - theirs).mean(0)
  rng = np.random.default_rng(0)
  drawn = rng.integers(len(targets), size=(RESAMPLES, len(targets)))
  means = difference[drawn].sum(1) / targets[drawn].sum(1)
  return difference.sum() / targets.sum(), *np.quantile(means, [0.025, 0.975])


def verdict(results: dict[str, dict[int, Any]]) -> dict[str, Any]:
  seeds = sorted(results['tiered'])
  def nats(part: str) -> np.ndarray:
    return np.array([results[part][seed]['by_document'][0] for seed in seeds])
  first = results['tiered'][seeds[0]]
  targets = np.array(first['by_document'][1])
  to_bits = 1 / math.log(2) / first['bytes_per_token']
  numbers: dict[str, Any] = {
      f'bits a byte, {part}': [found[seed]['bits_per_byte'] for seed in seeds] for part, found in results.items()}
  below = {}
  for part in results:
    if part != 'tiered':
      mean, low, high = (to_bits * x for x in interval(nats('tiered'), nats(part), targets))
      numbers[f'tiered less {part}'] = [round(mean, 5), round(low, 5), round(high, 5)]
      below[part] = bool(high < 0)
  for key in ('flops_train', 'flops_inference', 'parameters'):
    numbers[key] = {part: found[seeds[0]][key] for part, found in results.items()}
  numbers['below'] = below
  return {'numbers': numbers, 'verdict': 'supported' if all(below.values()) else 'not supported'}


def figure(results: dict[str, dict[int, Any]], axes) -> None:
  """By how many bits a byte the tiered model is better, by the distance from the last start; the mean of the seeds."""
  def by_distance(part: str) -> np.ndarray:
    nats, targets = np.array([run['by_distance'] for run in results[part].values()]).sum(0)[:, :-1]
    return nats / np.maximum(targets, 1)
  to_bits = 1 / math.log(2) / next(iter(results['tiered'].values()))['bytes_per_token']
  for part in results:
    if part != 'tiered':
      gain = to_bits * (by_distance(part) - by_distance('tiered'))
      axes.plot(range(1, len(gain) + 1), gain, linewidth=1, label=part)
  axes.axhline(0, color='grey', linewidth=1)
  axes.set_xlabel('tokens from the last start')
  axes.set_ylabel('bits a byte less than')
  axes.legend(fontsize=7)
