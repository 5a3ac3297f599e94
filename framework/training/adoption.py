"""Runs that begin with weights from elsewhere: of another framework's folder, or of another run.

An adopted run has a config, a tokenizer and a checkpoint 0 of weights alone; its config names no corpus, so that any
text can be read with it. source.json says where the weights come from, with a digest of them. A run that starts from
another has its weights and a fresh optimizer in a checkpoint 0 of its own, which is kept; start.json says whose.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from foundation import files, reading
from foundation.errors import one_line
from foundation.printable import printable
from framework import config as config_lib
from framework import models
from framework.config import ConfigError
from framework.data import corpus as corpus_lib
from framework.data import tokenizer as tokenizers
from framework.training import checkpoint, hosts, layout, run
from framework.training.setup import Setup, load, set_up
from framework.training.state import State

SOURCE, START, CHECKPOINTS = 'source.json', 'start.json', 'checkpoints'
OURS = (SOURCE, 'checkpoints', run.CONFIG, run.TOKENIZER)


def fitted(params: Any, module: Any, what: str) -> Any:
  """The parameters with as many learned positions as the model has; fewer than there are are the first ones.

  Raises:
    ConfigError: others than the model's, or too few positions.
  """
  shapes = jax.eval_shape(lambda: module.parameters(jax.random.key(0)))
  wanted = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(
      shapes, is_leaf=lambda x: hasattr(x, 'axes'))}
  held = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  if missing := sorted(wanted.keys() ^ held.keys()):
    raise ConfigError(f"{what} {'lacks' if missing[0] in wanted else 'has'} the parameter {missing[0]}; expected those of "
                      'the model that the config describes')
  def one(path, x):
    name = jax.tree_util.keystr(path)
    parameter, shape = wanted[name], wanted[name].value.shape
    if parameter.axes[0] == 'positions' and x.shape[0] > shape[0] and x.shape[1:] == shape[1:]:
      return x[:shape[0]]
    if x.shape != shape:
      raise ConfigError(f'{what} has {name} of shape {list(x.shape)}; the config expects {list(shape)}')
    return x
  return jax.tree_util.tree_map_with_path(one, params)


def weights_digest(params: Any) -> str:
  """Of all parameters by path and bits, the same for every sharding."""
  return hashlib.sha256(json.dumps(checkpoint.fingerprint(params), sort_keys=True).encode()).hexdigest()[:32]


def clean(workdir: pathlib.Path) -> None:
  """Removes what an adoption that was killed has left beside `workdir`."""
  for left in workdir.parent.glob(f'.{workdir.name}.*.adopt'):
    if not files.alive(left.name.split('.')[-2]):
      shutil.rmtree(left, ignore_errors=True)


def adopt(workdir: pathlib.Path, config: config_lib.Config, tokenizer: tokenizers.Tokenizer, params: Any,
          source: Mapping[str, Any]) -> None:
  """Makes the run folder `workdir` of parameters from elsewhere; killed, it leaves none.

  Raises:
    ConfigError: the parameters are not those of the config's model, or the folder is there.
  """
  setup = set_up(config, tokenizer.size, layout.make_mesh(jax.devices()[:1]))
  params = layout.place_params(fitted(params, setup.module, 'the folder'), setup.module, setup.mesh)
  zero = jnp.zeros((), jnp.int32)
  temporary = workdir.with_name(f'.{workdir.name}.{os.getpid()}.adopt')
  try:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    clean(workdir)
    temporary.mkdir()
    tokenizer.save(temporary / run.TOKENIZER)
    checkpoints = checkpoint.Checkpoints(temporary / CHECKPOINTS, config.checkpoint)
    checkpoints.save(State(zero, zero, params, None), {'targets': 0, 'seconds': 0.0})
    checkpoints.wait()
    checkpoints.close()
    files.write_sealed(temporary / SOURCE, dict(source))
    run.write_config(temporary, config, '', tokenizer.digest)
    os.rename(temporary, workdir)
  except OSError as error:
    raise ConfigError(f'workdir {workdir} cannot be written: {error.strerror or one_line(error)}') from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def read_source(folder: pathlib.Path) -> dict[str, Any] | None:
  """Where a run's weights came from; None of one that was not adopted. Raises ConfigError if it was changed."""
  try:
    return reading.value(folder / SOURCE, {'weights': str, 'folder': str})
  except FileNotFoundError:
    return None


def longest(folder: pathlib.Path, config: config_lib.Config) -> int:
  """Tokens that a run's model was made for: those of where it comes from, or its window."""
  if config.model.position == 'learned':
    return config.data.window
  known = [reading.value(folder / name).get('longest', 0) for name in (SOURCE, START) if (folder / name).exists()]
  return max(config.data.window, *(x for x in known if type(x) is int), 0)


def same_weights(workdir: pathlib.Path, weights: str) -> list[pathlib.Path]:
  """The adopted runs beside `workdir` whose weights have that digest."""
  found = []
  for path in sorted(workdir.parent.glob(f'*/{SOURCE}')):
    try:
      about = read_source(path.parent)
    except ConfigError:
      continue
    if about and about['weights'] == weights and path.parent != workdir:
      found.append(path.parent)
  return found


def start_config(config: config_lib.Config, source: pathlib.Path, given: Mapping[str, Any]) -> config_lib.Config:
  """A config to go on from another run: with its model and its tokenizer, but for what is `given` explicitly.

  How the model is computed, its dropout and the dtype of its arithmetic stay those of `config`.
  """
  theirs = run.read_config(source)
  values = {key: value for key, value in config_lib.flatten(theirs).items()
            if key.startswith('model.') and key not in config_lib.HOW and key not in given
            and key not in ('model.dropout', 'model.dtype', 'model.param_dtype')}
  if 'data.tokenizer' not in given:
    values['data.tokenizer'] = 'bytes' if theirs.data.tokenizer == 'bytes' else str(source / run.TOKENIZER)
  return config_lib.changed(config, values)


def begin(workdir: pathlib.Path, config: config_lib.Config, corpus: corpus_lib.Corpus, source: pathlib.Path) -> None:
  """Gives the run in `workdir`, whose folder is open, a checkpoint 0 with the newest weights of the run `source`.

  A run that has begun so, from these weights, goes on.

  Raises:
    ConfigError: it began otherwise, or the other run has another model or tokenizer, or no checkpoint.
  """
  if len(models.stages(config)) > 1:
    raise ConfigError(f"--start is {source} for model.name '{config.model.name}', which is trained in several stages; "
                      'expected a model of one')
  tokenizer = run.read_tokenizer(source)
  if tokenizer.digest != corpus.tokenizer.digest:
    raise ConfigError(f'--start is {source}, a run on tokens of {tokenizer.name} tokenizer {tokenizer.digest[:12]}; this '
                      f"run's is {corpus.tokenizer.name} {corpus.tokenizer.digest[:12]}: expected the same")
  held = workdir / CHECKPOINTS
  began = held.exists() and any(held.iterdir())
  trained = load(source)
  about = {'run': str(source), 'step': trained.step, 'weights': weights_digest(trained.params),
           'longest': longest(source, trained.setup.config)}
  if began or (workdir / START).exists():
    before = reading.value(workdir / START, {'weights': str, 'run': str}) if (workdir / START).exists() else None
    if before is None or before['weights'] != about['weights']:
      raise ConfigError(f"workdir {workdir} holds a run that began from {before['run'] if before else 'its seed'}, not "
                        f'from these weights of {source}; expected the same --start, or another --workdir')
    if began:
      return
  setup = set_up(config, corpus.tokenizer.size)
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(trained.params))
  _save(setup, workdir, fitted(params, setup.module, f'--start {source}'), about)
  logging.info('begins with the weights of %s at step %d', source, trained.step)


def check_begun(workdir: pathlib.Path) -> None:
  """Raises ConfigError if the run in `workdir` was to begin with another's weights and was killed before it had them."""
  start = run.read_config_file(workdir / run.CONFIG).get('start')
  if start and not any((workdir / CHECKPOINTS).glob('*')) and not (workdir / 'metrics.jsonl').exists():
    raise ConfigError(f'workdir {workdir} holds a run that begins with the weights of {printable(start)} and has not read '
                      f'them; expected --start={printable(start)}')


def _save(setup: Setup, workdir: pathlib.Path, params: Any, about: dict[str, Any]) -> None:
  """Checkpoint 0 of a run, and start.json before it."""
  if jax.process_index() == 0:
    files.write_sealed(workdir / START, about)
  hosts.together(lambda: None)
  state = setup.init().replace(params=layout.place_params(params, setup.module, setup.mesh))
  checkpoints = checkpoint.Checkpoints(workdir / CHECKPOINTS, setup.config.checkpoint, kept=[0])
  try:
    checkpoints.save(state, {'targets': 0, 'seconds': 0.0})
    checkpoints.wait()
  finally:
    checkpoints.close()


def kept(folder: pathlib.Path) -> list[int]:
  """The checkpoints that a run keeps because it began with them."""
  return [0] if (folder / START).exists() else []
