"""Checkpoints by orbax: asynchronous, atomic, checked when read.

A checkpoint holds the state and a small sealed JSON record: step, targets seen, seconds spent, and a fingerprint of
every array. The data's position is the step itself. A checkpoint that cannot be read, whose record was changed, or
whose arrays do not have the fingerprints they were saved with, is named, set aside and never trusted; the one before it
is used.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import os
import pathlib
import re
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from foundation import files, sealed
from foundation.errors import one_line
from framework.config import Checkpoint, ConfigError
from framework.training import hosts
from framework.training.state import State

RACES = 5  # times that a reader looks again when the run removed what it was about to read
FORMAT = 2  # 1 had weaker fingerprints and no digest of the record; it is still read
given_up: list[pathlib.Path] = []  # folders of saves that failed: a thread of theirs can hold the end of the process


class NotSaved(OSError):
  """A checkpoint could not be written; those before it are as they were."""


class OtherShape(ConfigError):
  """A sound checkpoint of another model than the config describes; an older one would not fit either."""


def _paths(tree: Any) -> list[tuple[str, Any]]:
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _mixed(x: jax.Array) -> jax.Array:
  """Every bit of a uint32 spread over all of them, one to one: the finaliser of MurmurHash3 (Appleby 2011)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _words(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The bits of an array as uint32, and the place of each."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * min(4, x.dtype.itemsize)}')).astype(jnp.uint32)
  place = jnp.zeros(bits.shape, jnp.uint32)
  for axis in range(bits.ndim):
    place = place * jnp.uint32(bits.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  return bits, place


@jax.jit
def _fingerprint(tree: Any) -> list[jax.Array]:
  """uint32 [4] an array: four wrapping sums over its words, each mixed with its place before it is added, and weighted
  by a power of another mix of the place, so that two errors that cancel in one sum do not in the others."""
  def one(x):
    bits, place = _words(x)
    weight = _mixed(place)
    word = _mixed(bits ^ weight)
    sums = []
    for _ in range(4):
      sums.append(word.sum(dtype=jnp.uint32))
      word = word * (weight | jnp.uint32(1))
    return jnp.stack(sums)
  return [one(leaf) for leaf in jax.tree.leaves(tree)]


def fingerprint(tree: Any) -> dict[str, str]:
  """{path: 32 hexadecimal digits} of every array; the same for every sharding."""
  prints = {}
  for (path, _), words in zip(_paths(tree), _fingerprint(tree)):
    copies: dict[bytes, list[str]] = {}
    for shard in words.addressable_shards:
      copies.setdefault(np.asarray(shard.data).tobytes(), []).append(str(shard.device))
    if len(copies) > 1:  # each replica has computed its own
      few = min(copies.values(), key=len)
      raise hosts.Disagreement(f"{path} is not the same on all devices of this process: {', '.join(few)} "
                               f"{'has' if len(few) == 1 else 'have'} other values than the rest; {hosts.RESUME}")
    prints[path] = ''.join(f'{int(word):08x}' for word in np.asarray(words.addressable_data(0)))
  return prints


@jax.jit
def _fingerprint_1(tree: Any) -> list[jax.Array]:
  """Of format 1, one uint32 an array: the wrapping sum of its bits, each times an odd number that depends on its place;
  an even number of exchanged signs passed."""
  def one(x):
    bits, place = _words(x)
    return (bits * (place * jnp.uint32(2654435762) + jnp.uint32(1))).sum(dtype=jnp.uint32)
  return [one(leaf) for leaf in jax.tree.leaves(tree)]


def fingerprint_1(tree: Any) -> dict[str, int]:
  """{path: checksum} of every array, as checkpoints of format 1 hold it."""
  return {path: int(value) for (path, _), value in zip(_paths(tree), jax.device_get(_fingerprint_1(tree)))}


class Checkpoints:
  """The checkpoints of one run folder. Readers of a run that may still be training pass `read_only`.

  Args:
    kept: steps whose checkpoints are never removed, besides those that the policy keeps.
  """

  def __init__(self, folder: pathlib.Path, policy: Checkpoint | None = None, read_only: bool = False,
               kept: Sequence[int] = ()):
    self.folder, self.kept = folder, kept
    if read_only:
      options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
      keep: Any = policy  # only a reader has none
      policies = [preservation.LatestN(keep.keep), preservation.CustomSteps(kept)]
      policies += [preservation.EveryNSteps(keep.keep_every)] if keep.keep_every else []
      options = ocp.CheckpointManagerOptions(
          preservation_policy=preservation.AnyPreservationPolicy(policies), cleanup_tmp_directories=True,
          async_options=ocp.AsyncOptions(post_finalization_callback=self._sync))
    self._options = options
    self._manager: Any = self._opened() if folder.exists() or not read_only else None

  def _opened(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(self.folder, options=self._options)

  def _sync(self) -> None:
    """Puts the files of a checkpoint on the disk itself before it gets its final name and an older one is removed."""
    for temporary in self.folder.glob('*tmp*'):
      for path in [*temporary.rglob('*'), temporary]:
        files.sync(path)

  def steps(self) -> list[int]:
    """The steps of the finished checkpoints, ascending."""
    return sorted(self._manager.all_steps()) if self._manager else []

  def save(self, state: State, record: dict[str, Any]) -> None:
    """Starts writing the state; returns as soon as the caller may overwrite its buffers.

    Raises:
      NotSaved: this checkpoint, or the one before it, could not be written. Later ones may be, if there is room again.
    """
    step = int(state.step)
    if step in self.steps():
      return
    prints = fingerprint(state)
    hosts.agree({f'state at step {step}': prints}, hosts.Disagreement)
    record = sealed.seal(record | {'format': FORMAT, 'step': step, 'fingerprint': prints,
                                   'shapes': {path: list(leaf.shape) for path, leaf in _paths(state)}})
    # On a CPU the arrays handed to the writing thread would be the very buffers that the next step reuses.
    if jax.default_backend() == 'cpu':
      state = jax.tree.map(jnp.copy, state)
    with self._saving():
      self._manager.wait_until_finished()
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record)))

  def wait(self) -> None:
    """Returns when everything saved is on disk under its final name. Raises NotSaved if it could not be."""
    with self._saving():
      self._manager.wait_until_finished()

  def close(self) -> None:
    if self._manager:
      with self._saving():
        self._manager.close()

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """What the writing threads raised, which surfaces at the next call of the manager, as NotSaved."""
    try:
      yield
    except Exception as error:  # orbax and tensorstore each have their own types, and hide the system's
      code = re.search(r"os_error_code='(\d+)'", str(error))
      number = int(code[1]) if code else getattr(error, 'errno', None) or errno.EIO
      reason = os.strerror(number) if code or isinstance(error, OSError) else ' '.join(str(error).split())[:200]
      # The manager is of no use after that: it would say so again at every call, and its threads may wait for minutes.
      given_up.append(self.folder)
      with contextlib.suppress(Exception):
        self._manager.close()
      self._manager = self._opened()
      last = f'checkpoint {self.steps()[-1]}' if self.steps() else 'the beginning'
      raise NotSaved(number, f'a checkpoint could not be written ({reason}), --resume goes on from {last}',
                     str(self.folder)) from error

  def restore(self, like: State, accept: Callable[[dict[str, Any]], None] = lambda record: None
              ) -> tuple[State, dict[str, Any]] | None:
    """The newest checkpoint that can be trusted, with its record; None if the run has none at all.

    Args:
      like: a State of arrays or ShapeDtypeStructs with the shardings wanted. Where its optimizer is None, the
        optimizer's state is neither read nor compared, whatever it was.
      accept: called with a record; what it raises means that this checkpoint is not to be used.

    Raises:
      ConfigError: the run has checkpoints, but none that can be used.
    """
    for _ in range(RACES):
      complaints, gone = [], False
      for step in reversed(self.steps()):
        try:
          return self.read(step, like, accept)
        except OtherShape:
          raise
        except Exception as error:  # orbax, tensorstore and the file system each have their own
          gone |= not (self.folder / str(step)).is_dir()
          complaints.append(f'checkpoint {step} cannot be used: {one_line(error)[:200]}')
          if not gone:
            logging.warning('%s', complaints[-1])
      if not gone:
        break
      self._manager.reload()  # the run goes on, and has removed what we were about to read
    if complaints:
      raise ConfigError(f'{self.folder} has no usable checkpoint; {complaints[0]}')
    return None

  def one(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
    """As `restore`, of that step alone. Raises ConfigError."""
    if step not in self.steps():
      near = min(self.steps(), key=lambda other: abs(other - step), default=None)
      raise ConfigError(f'{self.folder} has no checkpoint {step}; expected one of '
                        f"{', '.join(map(str, self.steps())) or 'none'}, nearest is {near}")
    try:
      return self.read(step, like)
    except OtherShape:
      raise
    except Exception as error:  # as in `restore`
      raise ConfigError(f'{self.folder}: checkpoint {step} cannot be used: {one_line(error)[:200]}') from error

  def record(self, step: int) -> dict[str, Any]:
    """The record of one checkpoint. Raises ConfigError, or what orbax raises, if it cannot be trusted."""
    saved = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
    if saved.get('format') not in (1, FORMAT):
      raise ConfigError(f"format is {saved.get('format')}; expected {FORMAT}")
    if sealed.KEY not in saved and saved['format'] != 1:
      raise ConfigError('the record has no digest')
    record = sealed.opened(saved, f'the record of checkpoint {step}')
    if record['step'] != step:
      raise ConfigError(f"the record is that of step {record['step']}")
    return record

  def trains(self, step: int) -> bool:
    """Whether a checkpoint holds an optimizer: one of weights from elsewhere does not. As `record`."""
    return any(path.startswith('.optimizer') for path in self.record(step)['shapes'])

  def read(self, step: int, like: State, accept: Callable[[dict[str, Any]], None] = lambda record: None
           ) -> tuple[State, dict[str, Any]]:
    """As `restore`, of one step. Raises OtherShape, ConfigError, or what orbax raises."""
    record = self.record(step)
    accept(record)
    wanted = {name: value for name, value in vars(like).items() if value is not None}
    shapes = {path: list(leaf.shape) for path, leaf in _paths(like)}
    held = {path: shape for path, shape in record['shapes'].items()
            if re.match(r'\.(\w+)', path)[1] in wanted}  # type: ignore[index]  # every path begins so
    if 'optimizer' in wanted and not any(path.startswith('.optimizer') for path in record['shapes']):
      raise OtherShape(f'checkpoint {step} of {self.folder} holds weights alone; expected a new run that begins with them: '
                       'experiments.train --start')
    for path in sorted(set(shapes) | set(held)):
      saved, expected = held.get(path), shapes.get(path)
      if saved != expected:
        raise OtherShape(f'checkpoint {step} of {self.folder} holds {path} of shape {saved}; '
                         f'the config expects {expected}')
    item = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
    state = like.replace(**self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(
        item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True))).state)
    found: dict[str, Any] = fingerprint_1(state) if record['format'] == 1 else fingerprint(state)
    damaged = [path for path, value in found.items() if record['fingerprint'][path] != value]
    if damaged:
      raise ConfigError(f'{len(damaged)} arrays differ from what was saved, first {damaged[0]}')
    if int(state.step) != step:
      raise ConfigError(f'the state is that of step {int(state.step)}')
    return state, record

  def set_aside_after(self, step: int) -> None:
    """Renames the checkpoints newer than `step`, which could not be used, so that the run can save there again."""
    for newer in [s for s in self.steps() if s > step]:
      target = self.folder / f'damaged-{newer}'
      count = 1
      while target.exists():
        target = self.folder / f'damaged-{newer}-{(count := count + 1)}'
      (self.folder / str(newer)).rename(target)
      logging.warning('moved the damaged checkpoint %d to %s', newer, target)
    self._manager.reload()
