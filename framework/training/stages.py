"""Trains the tiers of a tiered model one after the other, each a run of its own that can be killed and resumed.

Tier n is trained in the folder tier_<n> of the run, as the top of a model of n tiers; those below it are frozen and
write its rollouts as it goes. What a tier has learnt by heart it reproduces on its own training text and not on other
text; a tier above would learn to copy it (stacking: Wolpert 1992, section 2). So the rollouts' accuracy is measured on
text that the tier was trained on and on held-out text, and the next tier is refused if they differ too much.
"""

import copy
import json
import pathlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework import files
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.models import tiered
from framework.training import loop, run, setup

WINDOWS = 512  # of each text, for the memorisation gap


def stage(config: config_lib.Config, tier: int) -> config_lib.Config:
  """The checked config of the run that trains tier `tier`: a model of that many tiers, of which it is the top."""
  c = copy.deepcopy(config)
  t, m, T = c.tiered, c.model, c.tiered.tiers
  widths = config_lib.per_tier('tiered.widths', t.widths, T, m.width)
  layers = config_lib.per_tier('tiered.layers', t.layers, T, m.layers)
  steps = config_lib.per_tier('tiered.steps', t.steps, T, c.training.steps)
  m.feedforward = tiered.feedforward(m, widths[tier - 1])
  m.width, m.layers, c.training.steps = widths[tier - 1], layers[tier - 1], steps[tier - 1]
  t.tiers, t.steps = tier, ''
  t.widths, t.layers = (','.join(map(str, sizes[:tier])) for sizes in (widths, layers))
  if tier < T:
    t.content = 'own'  # the control is the top tier's
  return config_lib.check(c)


def check(config: config_lib.Config, corpus: corpus_lib.Corpus) -> None:
  """Raises ConfigError for what is wrong in any of the stages."""
  for tier in range(1, config.tiered.tiers + 1):
    loop.check(stage(config, tier), corpus)


def train(config: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains all tiers that are not yet complete in `workdir`.

  Returns the result of the last one begun, with `tiers`: the results of all. A signal stops between two steps.

  Raises:
    ConfigError: the memorisation gap of a tier is too large for the next.
  """
  results, T = [], config.tiered.tiers
  for tier in range(1, T + 1):
    folder, c = setup.stage_folder(workdir, tier), stage(config, tier)
    run.open_folder(folder, c, corpus, resume=True)
    path = folder / 'result.json'
    found = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    if found.get('status') != 'complete':
      logging.info('tier %d of %d: %d steps', tier, T, c.training.steps)
      begin = first_params(config, corpus, workdir, tier) if tier > 1 else None
      found = loop.train(c, corpus, folder, begin)
    results.append(found)
    if found['status'] != 'complete':
      break
  totals = {key: sum(r[key] for r in results) for key in ('flops_train_exact', 'seconds')}
  result = results[-1] | totals | {'run': workdir.name, 'tiers': results}
  if jax.process_index() == 0:
    files.write_json(workdir / 'result.json', result)
  return result


def first_params(config: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path, tier: int) -> Any:
  """The parameters that the run of `tier` begins with: those of the tiers below as trained, its own as a copy or new."""
  below = setup.load(setup.stage_folder(workdir, tier - 1))
  c = stage(config, tier)
  made = setup.set_up(c, corpus.tokenizer.size)
  refuse_memorisation(c, corpus, made, below, setup.stage_folder(workdir, tier - 1))
  params = jax.jit(made.module.init)(jax.random.key(c.training.seed))['params'] | below.params
  return tiered.warm_start(params, tier) if c.tiered.warm_start else params


def refuse_memorisation(c: config_lib.Config, corpus: corpus_lib.Corpus, made: setup.Setup, below: setup.Trained,
                        folder: pathlib.Path) -> None:
  """Measures the gap of the tier below, writes memorisation.json, raises ConfigError if it is too large."""
  b = below.setup.config
  count = windows.count(corpus.train.tokens, b.data.stride)
  steps = np.unique(np.linspace(0, b.training.steps - 1, WINDOWS).astype(int))
  trained = np.concatenate([windows.indices(count, b.training.batch, b.training.seed, int(s)) for s in steps])
  trained = np.unique(trained)[np.linspace(0, len(np.unique(trained)) - 1, WINDOWS).astype(int)]
  held = windows.count(corpus.validation.tokens, b.data.stride)
  other = np.unique(np.linspace(0, held - 1, WINDOWS).astype(int))
  measured = {name: accuracy(c, made, below.params, corpus, split, picked)
              for name, split, picked in (('training', corpus.train, np.unique(trained)),
                                          ('held_out', corpus.validation, other))}
  gap = measured['training']['accuracy'] - measured['held_out']['accuracy']
  files.write_json(folder / 'memorisation.json', measured | {'gap': gap})
  logging.info('rollouts of tier %d: %.2f %% right on text it was trained on, %.2f %% on held-out text',
               c.tiered.tiers - 1, *(100 * measured[name]['accuracy'] for name in ('training', 'held_out')))
  if gap > c.tiered.memorisation:
    raise config_lib.ConfigError(
        f'rollouts of tier {c.tiered.tiers - 1} are {100 * gap:.1f} points more accurate on its training text than on '
        f'held-out text; expected at most {100 * c.tiered.memorisation:.1f} (tiered.memorisation): train it on more text '
        'or for fewer steps')


def accuracy(c: config_lib.Config, made: setup.Setup, params: Any, corpus: corpus_lib.Corpus, split: corpus_lib.Split,
             picked: np.ndarray) -> dict[str, float]:
  """How many tokens of the rollouts of the tier below the top are those of the text, over some windows of a split."""
  module = made.module
  @jax.jit
  def right(params, batch):
    starts_BxG = module.starts(params, batch)
    said = module.write(params, batch, starts_BxG)[-1].tokens_BxGxKxR
    L, R = batch['tokens'].shape[1], said.shape[-1]
    ahead = starts_BxG[:, :, None] + 1 + jnp.arange(R)
    inside = ahead < L
    index = jnp.clip(ahead, 0, L - 1).reshape(len(said), -1)
    true = jnp.take_along_axis(batch['tokens'], index, axis=1).reshape(ahead.shape)
    segment = jnp.take_along_axis(batch['segments'], index, axis=1).reshape(ahead.shape)
    own = jnp.take_along_axis(batch['segments'], jnp.clip(starts_BxG, 0, L - 1), axis=1)[:, :, None]
    counted = inside & (segment == own)
    return ((said == true[:, :, None]) & counted[:, :, None]).sum(), counted.sum() * said.shape[2]
  hits = tokens = 0
  B = c.evaluation.batch
  for first in range(0, len(picked), B):
    rows = picked[np.minimum(np.arange(first, first + B), len(picked) - 1)]
    batch = windows.batch(split, corpus.tokenizer.end, rows, c.data.window, c.data.stride, c.data.packed)
    n, of = right(params, batch)
    hits, tokens = hits + int(n), tokens + int(of)
  return {'accuracy': hits / max(1, tokens), 'tokens': tokens}
