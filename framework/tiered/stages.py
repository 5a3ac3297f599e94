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
import functools
import pathlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from foundation import files
from framework import config as config_lib
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.models import contract
from framework.tiered import flops, model, store
from framework.tiered.settings import per_tier
from framework.training import setup

WINDOWS = 1024  # of each text, for the memorisation gap
BLOCKS = 32  # of neighbouring windows, for its standard error


def stage(config: config_lib.Config, tier: int) -> config_lib.Config:
  """The resolved config of the run that trains tier `tier`: a model of that many tiers, of which it is the top."""
  c, T = copy.deepcopy(config), config.tiered.tiers
  t, m = c.tiered, c.model
  widths, layers, steps = (per_tier(config.tiered, name, default) for name, default in (
      ('widths', m.width), ('layers', m.layers), ('steps', c.training.steps)))
  m.feedforward = model.feedforward(m, widths[tier - 1])
  m.width, m.layers, c.training.steps = widths[tier - 1], layers[tier - 1], steps[tier - 1]
  t.tiers, t.steps = tier, ''
  t.widths, t.layers = (','.join(map(str, sizes[:tier])) for sizes in (widths, layers))
  if tier < T:
    t.content = 'own'  # the control is the top tier's
  return config_lib.resolve(c)


def fold(config: config_lib.Config, tier: int, number: int) -> config_lib.Config:
  """The resolved config of the run that trains `tier` without fold `number`."""
  return config_lib.changed(stage(config, tier), {'data.folds': config.tiered.folds, 'data.left_out': number})


def tier_folder(tier: int) -> str:
  """Where a run of tiers trains tier `tier`: a run folder of its own, whose checkpoints hold the tiers below too."""
  return f'tier_{tier}'


def fold_folder(tier: int, number: int) -> str:
  return f'{tier_folder(tier)}/fold_{number}'


def stages(config: config_lib.Config) -> list[contract.Stage]:
  """The runs of a tiered model: every tier and, below the top one, the same tier without each of the folds."""
  out, T, F = [], config.tiered.tiers, config.tiered.folds
  for tier in range(1, T + 1):
    begin = functools.partial(beginning, config, tier)
    out.append(contract.Stage(tier_folder(tier), stage(config, tier), f'tier {tier} of {T}',
                              functools.partial(begin, True), functools.partial(flops_to_disk, config, tier)))
    if tier < T:
      out += [contract.Stage(fold_folder(tier, number), fold(config, tier, number),
                             f'tier {tier} of {T} without fold {number} of {F}', functools.partial(begin, False))
              for number in range(F)]
  return out


def result(results: list[dict[str, Any]], stages: list[contract.Stage]) -> dict[str, Any]:
  """The result of the last tier begun, with `tiers`: the results of all, and `folds`: of all runs without a fold."""
  pairs = list(zip(stages, results))
  tiers = [outcome for stage, outcome in pairs if 'fold' not in stage.name]
  return tiers[-1] | {'tiers': tiers, 'folds': [outcome for stage, outcome in pairs if 'fold' in stage.name]}


def flops_to_disk(config: config_lib.Config, tier: int, corpus: corpus_lib.Corpus) -> float:
  """FLOPs of the rollouts that tier `tier` finds on a disk; 0 where they are written as it goes."""
  c = stage(config, tier)
  if tier == 1 or not c.tiered.cached:
    return 0.0
  return windows.count(corpus.train.tokens, c.data.stride) * flops.write_below(
      model.tier_models(c), c.tiered, corpus.tokenizer.size, c.data.window)


def beginning(config: config_lib.Config, tier: int, gate: bool, corpus: corpus_lib.Corpus, workdir: pathlib.Path
              ) -> tuple[Any, store.Rollouts | None]:
  """What tier `tier` begins with: the parameters of the tiers below and its own, and rollouts from a disk.

  Args:
    gate: whether the tier below is refused if it has learnt its text by heart.
  """
  if tier == 1:
    return None, None
  c = stage(config, tier)
  top = setup.set_up(c, corpus.tokenizer.size)
  below = setup.load(workdir / tier_folder(tier - 1))
  rollouts = None
  if c.tiered.cached:
    rollouts = store.prepare(c, corpus, top.module,  # type: ignore[arg-type]  # of a config with tiers
                             writers(config, workdir, tier, below.params), workdir / tier_folder(tier) / 'rollouts')
  if gate:
    refuse_memorisation(c, corpus, top, below, workdir / tier_folder(tier - 1), rollouts)
  params = contract.init(top.module, jax.random.key(c.training.seed)) | below.params
  return model.warm_start(params, tier) if c.tiered.warm_start else params, rollouts


def writers(config: config_lib.Config, workdir: pathlib.Path, tier: int, below: Any) -> list[Any]:
  """The parameters of the tiers below `tier` that write its training text's rollouts: one entry, or one a fold."""
  if not config.tiered.folds:
    return [below]
  return [{f'tier_{n}': setup.load(workdir / fold_folder(n, number)).params[f'tier_{n}'] for n in range(1, tier)}
          for number in range(config.tiered.folds)]


def refuse_memorisation(c: config_lib.Config, corpus: corpus_lib.Corpus, top: setup.Setup, below: setup.Trained,
                        folder: pathlib.Path, rollouts: store.Rollouts | None) -> None:
  """Measures the gap of the tier below, writes memorisation.json, raises ConfigError if it is surely too large.

  Texts differ in how easy they are, the more the fewer documents are held out: the gap has to exceed what is allowed by
  two standard errors.

  `rollouts`: the rollouts of the training text, if they are on disk.
  """
  b = below.setup.config
  count = windows.count(corpus.train.tokens, b.data.stride, b.data.random_phase)
  steps = np.unique(np.linspace(0, b.training.steps - 1, WINDOWS).astype(int))
  trained = np.concatenate([windows.indices(count, b.training.batch, b.training.seed, int(s)) for s in steps])
  trained = np.unique(trained)[np.linspace(0, len(np.unique(trained)) - 1, WINDOWS).astype(int)]
  held = windows.count(corpus.validation.tokens, b.data.stride)
  other = np.unique(np.linspace(0, held - 1, WINDOWS).astype(int))
  measured = {'training': accuracy(c, top, below.params, corpus, corpus.train, np.unique(trained), rollouts),
              'held_out': accuracy(c, top, below.params, corpus, corpus.validation, other)}
  gap = measured['training']['accuracy'] - measured['held_out']['accuracy']
  error = float(np.hypot(measured['training']['error'], measured['held_out']['error']))
  files.write_sealed(folder / 'memorisation.json', measured | {'gap': gap, 'gap_error': error})
  logging.info('rollouts of tier %d: %.2f %% right on text it was trained on, %.2f %% on held-out text, +- %.2f points',
               c.tiered.tiers - 1, *(100 * measured[name]['accuracy'] for name in ('training', 'held_out')),
               100 * error)
  if gap - 2 * error > c.tiered.memorisation:
    raise config_lib.ConfigError(
        f'rollouts of tier {c.tiered.tiers - 1} are {100 * gap:.1f} +- {100 * error:.1f} points more accurate on its '
        f'training text than on held-out text; expected at most {100 * c.tiered.memorisation:.1f} '
        '(tiered.memorisation): cross-fit it (tiered.folds=4), or train it on more text or for fewer steps')


def accuracy(c: config_lib.Config, top: setup.Setup, params: Any, corpus: corpus_lib.Corpus, split: windows.Text,
             picked: np.ndarray, rollouts: store.Rollouts | None = None) -> dict[str, float]:
  """How many tokens of the rollouts of the tier below the top are those of the text, over some windows of a split.

  Returns `accuracy`, its standard `error` (windows in order, in blocks, so that those of a document stay together), and
  `tokens`.
  """
  module: Any = top.module  # Tiered
  @jax.jit
  def right(params, batch):
    starts_BxG = module.starts(params, batch)
    written = module.rollouts(params, batch, starts_BxG)[-1].tokens_BxGxKxR
    L, R = batch['tokens'].shape[1], written.shape[-1]
    ahead = starts_BxG[:, :, None] + 1 + jnp.arange(R)
    inside = ahead < L
    index = jnp.clip(ahead, 0, L - 1).reshape(len(written), -1)
    true = jnp.take_along_axis(batch['tokens'], index, axis=1).reshape(ahead.shape)
    segment = jnp.take_along_axis(batch['segments'], index, axis=1).reshape(ahead.shape)
    own = jnp.take_along_axis(batch['segments'], jnp.clip(starts_BxG, 0, L - 1), axis=1)[:, :, None]
    counted = inside & (segment == own)
    return ((written == true[:, :, None]) & counted[:, :, None]).sum((1, 2, 3)), counted.sum((1, 2)) * written.shape[2]
  counts, B = [], c.evaluation.batch
  text = windows.Windows(split, corpus.tokenizer.end, c.data.window, c.data.stride, c.data.packed)
  for first in range(0, len(picked), B):
    rows = picked[np.minimum(np.arange(first, first + B), len(picked) - 1)]
    batch = text.batch(rows)
    counts.append(np.stack(jax.device_get(right(params, batch | rollouts(rows) if rollouts else batch))))
  hits_W, tokens_W = np.concatenate(counts, axis=1)[:, :len(picked)]
  mean = hits_W.sum() / max(1, tokens_W.sum())
  excess = [block.sum() for block in np.array_split(hits_W - mean * tokens_W, min(BLOCKS, len(picked)))]
  error = np.sqrt(np.square(excess).sum()) / max(1, tokens_W.sum())
  return {'accuracy': float(mean), 'error': float(error), 'tokens': int(tokens_W.sum())}
