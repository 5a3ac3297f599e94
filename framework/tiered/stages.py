"""Trains the tiers of a tiered model one after the other, each a run of its own that can be killed and resumed.

Tier n is trained in the folder tier_<n> of the run, as the top of a model of n tiers; those below it are frozen and
write its rollouts as it goes, or beforehand to disk (`tiered.cached`, framework.tiered.store).

What a tier has learnt by heart it reproduces on its own training text and not on other text; a tier above would learn
to copy it (stacking: Wolpert 1992, section 2). So the accuracy of the rollouts that it would be trained on is compared
with theirs on held-out text, and the tier is refused if they differ too much. Cross-fitting is the cure: with F folds
every tier but the top is trained F times more, in tier_<n>/fold_<f>, each time without a fold of the documents, whose
rollouts it then writes. Where the model is used, the tier that was trained on all of the text writes.
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
from foundation import files
from framework.models import flops
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.tiered import model as tiered
from framework.tiered import store as written
from framework.training import loop, run, setup

WINDOWS = 1024  # of each text, for the memorisation gap
BLOCKS = 32  # of neighbouring windows, for its standard error


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


def fold(config: config_lib.Config, tier: int, number: int) -> config_lib.Config:
  """The checked config of the run that trains `tier` without fold `number`."""
  c = stage(config, tier)
  c.data.folds, c.data.left_out = config.tiered.folds, number
  return config_lib.check(c)


def fold_folder(workdir: pathlib.Path, tier: int, number: int) -> pathlib.Path:
  return setup.stage_folder(workdir, tier) / f'fold_{number}'


def check(config: config_lib.Config, corpus: corpus_lib.Corpus) -> None:
  """Raises ConfigError for what is wrong in any of the stages."""
  for tier in range(1, config.tiered.tiers + 1):
    loop.check(stage(config, tier), corpus)
  for number in range(config.tiered.folds):
    loop.check(fold(config, 1, number), corpus)


def train(config: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains all tiers that are not yet complete in `workdir`.

  Returns the result of the last one begun, with `tiers`: the results of all, `folds`: of all runs without a fold, and
  the FLOPs and seconds of everything. A signal stops between two steps.

  Raises:
    ConfigError: the memorisation gap of a tier is too large for the next.
  """
  tiers, folds, T, F = [], [], config.tiered.tiers, config.tiered.folds
  to_disk = 0.0  # FLOPs
  for tier in range(1, T + 1):
    c = stage(config, tier)
    if tier > 1 and c.tiered.cached:
      to_disk += windows.count(corpus.train.tokens, c.data.stride) * flops.write_window(c, corpus.tokenizer.size)
    tiers.append(train_one(config, corpus, workdir, tier, c, setup.stage_folder(workdir, tier)))
    for number in range(F if tier < T and tiers[-1]['status'] == 'complete' else 0):
      folds.append(train_one(config, corpus, workdir, tier, fold(config, tier, number),
                             fold_folder(workdir, tier, number)))
      if folds[-1]['status'] != 'complete':
        break
    if any(found['status'] != 'complete' for found in tiers + folds):
      break
  status = next((found['status'] for found in tiers + folds if found['status'] != 'complete'), 'complete')
  totals = {key: sum(found[key] for found in tiers + folds) for key in ('flops_train_exact', 'seconds')}
  totals['flops_train_exact'] += to_disk
  result = tiers[-1] | totals | {'run': workdir.name, 'status': status, 'tiers': tiers, 'folds': folds}
  if jax.process_index() == 0:
    files.write_json(workdir / 'result.json', result)
  return result


def train_one(config: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path, tier: int,
              c: config_lib.Config, folder: pathlib.Path) -> dict[str, Any]:
  """The result of the run of `tier` in `folder`, trained now unless it is complete; `c` is its own config."""
  run.open_folder(folder, c, corpus, resume=True)
  path = folder / 'result.json'
  found = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
  if found.get('status') == 'complete':
    return found
  logging.info('tier %d of %d%s: %d steps', tier, config.tiered.tiers,
               f' without fold {c.data.left_out} of {c.data.folds}' if c.data.folds else '', c.training.steps)
  begin = more = None
  if tier > 1:
    made = setup.set_up(stage(config, tier), corpus.tokenizer.size)
    below = setup.load(setup.stage_folder(workdir, tier - 1))
    if c.tiered.cached:
      more = written.prepare(stage(config, tier), corpus, made.module, writers(config, workdir, tier, below.params),
                             setup.stage_folder(workdir, tier) / 'rollouts')
    if not c.data.folds:
      refuse_memorisation(c, corpus, made, below, setup.stage_folder(workdir, tier - 1), more)
    params = jax.jit(made.module.init)(jax.random.key(c.training.seed))['params'] | below.params
    begin = tiered.warm_start(params, tier) if c.tiered.warm_start else params
  return loop.train(c, corpus, folder, begin, more)


def writers(config: config_lib.Config, workdir: pathlib.Path, tier: int, below: Any) -> list[Any]:
  """The parameters of the tiers below `tier` that write its training text's rollouts: one entry, or one a fold."""
  if not config.tiered.folds:
    return [below]
  return [{f'tier_{n}': setup.load(fold_folder(workdir, n, number)).params[f'tier_{n}'] for n in range(1, tier)}
          for number in range(config.tiered.folds)]


def refuse_memorisation(c: config_lib.Config, corpus: corpus_lib.Corpus, made: setup.Setup, below: setup.Trained,
                        folder: pathlib.Path, more: written.Rollouts | None) -> None:
  """Measures the gap of the tier below, writes memorisation.json, raises ConfigError if it is surely too large.

  Texts differ in how easy they are, the more the fewer documents are held out: the gap has to exceed what is allowed by
  two standard errors.

  `more`: the rollouts of the training text, if they are on disk.
  """
  b = below.setup.config
  count = windows.count(corpus.train.tokens, b.data.stride, b.data.random_phase)
  steps = np.unique(np.linspace(0, b.training.steps - 1, WINDOWS).astype(int))
  trained = np.concatenate([windows.indices(count, b.training.batch, b.training.seed, int(s)) for s in steps])
  trained = np.unique(trained)[np.linspace(0, len(np.unique(trained)) - 1, WINDOWS).astype(int)]
  held = windows.count(corpus.validation.tokens, b.data.stride)
  other = np.unique(np.linspace(0, held - 1, WINDOWS).astype(int))
  measured = {'training': accuracy(c, made, below.params, corpus, corpus.train, np.unique(trained), more),
              'held_out': accuracy(c, made, below.params, corpus, corpus.validation, other)}
  gap = measured['training']['accuracy'] - measured['held_out']['accuracy']
  error = float(np.hypot(*(measured[name]['error'] for name in ('training', 'held_out'))))
  files.write_json(folder / 'memorisation.json', measured | {'gap': gap, 'gap_error': error})
  logging.info('rollouts of tier %d: %.2f %% right on text it was trained on, %.2f %% on held-out text, +- %.2f points',
               c.tiered.tiers - 1, *(100 * measured[name]['accuracy'] for name in ('training', 'held_out')),
               100 * error)
  if gap - 2 * error > c.tiered.memorisation:
    raise config_lib.ConfigError(
        f'rollouts of tier {c.tiered.tiers - 1} are {100 * gap:.1f} +- {100 * error:.1f} points more accurate on its '
        f'training text than on held-out text; expected at most {100 * c.tiered.memorisation:.1f} '
        '(tiered.memorisation): cross-fit it (tiered.folds=4), or train it on more text or for fewer steps')


def accuracy(c: config_lib.Config, made: setup.Setup, params: Any, corpus: corpus_lib.Corpus, split: corpus_lib.Split,
             picked: np.ndarray, more: written.Rollouts | None = None) -> dict[str, float]:
  """How many tokens of the rollouts of the tier below the top are those of the text, over some windows of a split.

  Returns `accuracy`, its standard `error` (windows in order, in blocks, so that those of a document stay together), and
  `tokens`.
  """
  module = made.module
  @jax.jit
  def right(params, batch):
    starts_BxG = module.starts(params, batch)
    said = module.rollouts(params, batch, starts_BxG)[-1].tokens_BxGxKxR
    L, R = batch['tokens'].shape[1], said.shape[-1]
    ahead = starts_BxG[:, :, None] + 1 + jnp.arange(R)
    inside = ahead < L
    index = jnp.clip(ahead, 0, L - 1).reshape(len(said), -1)
    true = jnp.take_along_axis(batch['tokens'], index, axis=1).reshape(ahead.shape)
    segment = jnp.take_along_axis(batch['segments'], index, axis=1).reshape(ahead.shape)
    own = jnp.take_along_axis(batch['segments'], jnp.clip(starts_BxG, 0, L - 1), axis=1)[:, :, None]
    counted = inside & (segment == own)
    return ((said == true[:, :, None]) & counted[:, :, None]).sum((1, 2, 3)), counted.sum((1, 2)) * said.shape[2]
  found, B = [], c.evaluation.batch
  for first in range(0, len(picked), B):
    rows = picked[np.minimum(np.arange(first, first + B), len(picked) - 1)]
    batch = windows.batch(split, corpus.tokenizer.end, rows, c.data.window, c.data.stride, c.data.packed)
    found.append(np.stack(jax.device_get(right(params, batch | more(rows) if more else batch))))
  hits_W, tokens_W = np.concatenate(found, axis=1)[:, :len(picked)]
  mean = hits_W.sum() / max(1, tokens_W.sum())
  excess = [block.sum() for block in np.array_split(hits_W - mean * tokens_W, min(BLOCKS, len(picked)))]
  error = np.sqrt(np.square(excess).sum()) / max(1, tokens_W.sum())
  return {'accuracy': float(mean), 'error': float(error), 'tokens': int(tokens_W.sum())}
