"""Rollouts of a training text on disk: written once before a tier is trained, read in every epoch.

rollouts.bin holds a record a window, in order: its starts, int32 [G], and the rollouts of the U tiers below, uint16
[U, G, K, R] (uint32 above 65536 tokens). rollouts.json says what decided them: the parameters' SHA-256, the settings,
the text; and in the end the SHA-256 of the records. A file of other rollouts, or one that was changed, is refused.
Records are appended, so that a write that was cut off goes on where it was.

Under cross-fitting (`tiered.folds`) a rollout is written by the parameters that were not trained on its document.
"""

from collections.abc import Callable, Sequence
import hashlib
import json
import pathlib
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from foundation import files, reading
from foundation.errors import one_line
from framework import config as config_lib
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.tiered.generation import most_starts
from framework.tiered.model import Tiered
from framework.training import layout

FORMAT = 1
DECIDE = ('period', 'rollout', 'samples', 'starts', 'most_starts', 'random_phase', 'trigger', 'entropy', 'delay',
          'layout', 'both_ways', 'across', 'last', 'temperature', 'top_k')
SAY_EVERY = 10.0  # seconds


def digest(params: Any) -> str:
  """SHA-256 of the names and bytes of all arrays."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
    sha.update(f'{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}'.encode())
    sha.update(leaf.tobytes())
  return sha.hexdigest()


def description(c: config_lib.Config, corpus: corpus_lib.Corpus, models: Sequence[Any]) -> dict[str, Any]:
  """What decides the rollouts that tier `tiered.tiers` of a resolved config reads, as JSON knows it.

  Args:
    models: the parameters that write: one entry, or one a fold.
  """
  lower = [f'tier_{n}' for n in range(1, c.tiered.tiers)]
  return {'format': FORMAT, 'corpus': corpus.digest, 'tokens': corpus.train.tokens,
          'window': c.data.window, 'stride': c.data.stride, 'packed': c.data.packed, 'seed': c.training.seed,
          'tiers': len(lower), 'vocabulary': corpus.tokenizer.size,
          **{name: getattr(c.tiered, name) for name in DECIDE}, 'folds': len(models) if len(models) > 1 else 0,
          'params': [digest({name: params[name] for name in lower}) for params in models]}


def record(module: Tiered) -> np.dtype:
  s, G = module.settings, most_starts(module)
  token = '<u2' if module.tiers[0].vocabulary <= 1 << 16 else '<u4'
  return np.dtype([('starts', '<i4', (G,)), ('tokens', token, (len(module.tiers) - 1, G, s.samples, s.rollout))])


class Rollouts:
  """The rollouts in a folder; called with windows it gives their `starts` and `rollouts` for a batch."""

  def __init__(self, path: pathlib.Path, kind: np.dtype, count: int):
    self._records = np.memmap(path, kind, 'r', shape=(count,))

  def __call__(self, windows_B: np.ndarray) -> dict[str, np.ndarray]:
    rows = self._records[windows_B]
    return {'starts': rows['starts'], 'rollouts': rows['tokens']}


def prepare(c: config_lib.Config, corpus: corpus_lib.Corpus, module: Tiered, models: Sequence[Any],
            folder: pathlib.Path) -> Rollouts:
  """The rollouts that the top of `module` reads on the training text, from `folder` or written there now.

  Raises:
    ConfigError: the folder holds other rollouts, or damaged ones.
  """
  wanted, kind = json.loads(json.dumps(description(c, corpus, models))), record(module)
  count = windows.count(corpus.train.tokens, c.data.stride)
  path, about = folder / 'rollouts.bin', folder / 'rollouts.json'
  if jax.process_index() == 0:
    if about.exists():
      refuse_others(about, wanted)
    else:
      folder.mkdir(parents=True, exist_ok=True)
      path.unlink(missing_ok=True)
      files.write_sealed(about, wanted)
    size = path.stat().st_size if path.exists() else 0
    if size > count * kind.itemsize:
      raise config_lib.ConfigError(f'{path} has {size} bytes; expected {count * kind.itemsize}, nearest is the folder '
                                   'without it')
    if size < count * kind.itemsize:
      with files.naming(path), open(path, 'r+b' if path.exists() else 'wb') as file:
        file.truncate(size // kind.itemsize * kind.itemsize)
        file.seek(0, 2)
        _write(file, size // kind.itemsize, count, kind, c, writer(c, corpus, module, models))
    found, written = sha256(path), reading.value(about).get('sha256')
    if written not in (None, found):
      raise config_lib.ConfigError(f'{path} was changed after it was written; nearest is to delete its folder')
    files.write_sealed(about, wanted | {'sha256': found})
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(str(about))
  return Rollouts(path, kind, count)


def sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def refuse_others(about: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Raises ConfigError if the rollouts described in the file `about` are not the wanted ones."""
  try:
    held = reading.value(about)
  except (OSError, config_lib.ConfigError) as error:
    raise config_lib.ConfigError(f'{one_line(error)}; nearest is to delete its folder') from None
  for key in wanted | {key: None for key in held if key != 'sha256'}:
    if held.get(key) != wanted.get(key):
      raise config_lib.ConfigError(f'{about} tells of rollouts whose {key} is {held.get(key)!r}; this run has '
                                   f'{wanted.get(key)!r}: give another --workdir, or delete that folder')


def _write(file, first: int, count: int, kind: np.dtype, c: config_lib.Config, write: Callable) -> None:
  """Appends the records of windows first .. count-1."""
  begin = logged = time.perf_counter()
  for start in range(first, count, c.training.batch):
    picked = np.arange(start, min(start + c.training.batch, count))
    # The last batch is filled up, so that all have one shape.
    starts_BxG, tokens = write(np.minimum(np.arange(start, start + c.training.batch), count - 1))
    rows = np.empty(len(picked), kind)
    rows['starts'], rows['tokens'] = starts_BxG[:len(picked)], tokens[:len(picked)]
    file.write(rows.tobytes())
    file.flush()
    now = time.perf_counter()
    if now - logged > SAY_EVERY:
      logged, done = now, start + len(picked)
      logging.info('rollouts of %d of %d windows; about %.0f s left', done, count,
                   (now - begin) / (done - first) * (count - done))


def writer(c: config_lib.Config, corpus: corpus_lib.Corpus, module: Tiered,
           models: Sequence[Any]) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """A function of windows that gives their starts [B, G] and rollouts [B, U, G, K, R]."""
  mesh = layout.make_mesh(jax.local_devices())
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  def all_tiers(params, batch):
    starts_BxG = module.starts(params, batch)
    written = module.write(params, batch, starts_BxG)
    return starts_BxG, jax.numpy.stack([w.tokens_BxGxKxR for w in written], axis=1)
  run = jax.jit(all_tiers, in_shardings=(whole, rows), out_shardings=whole)
  models = [jax.device_put(jax.device_get(params), whole) for params in models]
  places = windows.folds(corpus.train, len(models)) if len(models) > 1 else np.array([0, 2**62])
  d = c.data
  text = windows.Windows(corpus.train, corpus.tokenizer.end, d.window, d.stride, d.packed)

  def write(windows_B):
    batch = text.batch(windows_B)
    first_B = np.maximum(np.minimum((windows_B + 1) * d.stride, corpus.train.tokens - 1) - d.window, 0)
    out = None
    for params, low, high in zip(models, places[:-1], places[1:]):
      if first_B.min() >= high or first_B.max() + d.window < low:
        continue
      starts_BxG, tokens = jax.device_get(run(params, jax.device_put(batch, rows)))
      at_BxG = first_B[:, None] + starts_BxG.astype(np.int64)
      # Of a window across two folds each start belongs to the fold of its own token.
      own = ((low <= at_BxG) & (at_BxG < high))[:, None, :, None, None]
      out = np.where(own, tokens, np.zeros_like(tokens) if out is None else out)
    return starts_BxG, out

  return write
