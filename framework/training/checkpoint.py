"""Checkpoints by orbax: asynchronous, atomic, checked when read.

A checkpoint holds the state and a small JSON record: step, targets seen, seconds spent, and a fingerprint of every
array. The data's position is the step itself. A checkpoint that cannot be read, or whose arrays do not have the
fingerprints they were saved with, is named, set aside and never trusted; the one before it is used.
"""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import os
import pathlib
import re
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from framework.config import Checkpoint, ConfigError
from framework.training.state import State

FORMAT = 1


class NotSaved(OSError):
  """A checkpoint could not be written; those before it are as they were."""


class OtherShape(ConfigError):
  """A sound checkpoint of another model than the config describes; an older one would not fit either."""


def _paths(tree: Any) -> list[tuple[str, Any]]:
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


@jax.jit
def _fingerprint(tree: Any) -> list[jax.Array]:
  """One uint32 an array: the wrapping sum of its bits, each times an odd number that depends on its place."""
  def one(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}')).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
      place = place * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * (place * jnp.uint32(2654435762) + jnp.uint32(1))).sum(dtype=jnp.uint32)
  return [one(leaf) for leaf in jax.tree.leaves(tree)]


def fingerprint(tree: Any) -> dict[str, int]:
  """{path: checksum} of every array; the same for every sharding."""
  return {path: int(value) for (path, _), value in zip(_paths(tree), jax.device_get(_fingerprint(tree)))}


class Checkpoints:
  """The checkpoints of one run folder. Readers of a run that may still be training pass `read_only`.

  Args:
    kept: steps whose checkpoints are never removed, besides those that the policy keeps.
  """

  def __init__(self, folder: pathlib.Path, policy: Checkpoint | None = None, read_only: bool = False,
               kept: Sequence[int] = ()):
    self.folder = folder
    if read_only:
      options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
      keep: Any = policy  # only a reader has none
      policies = [preservation.LatestN(keep.keep), preservation.CustomSteps(kept)]
      policies += [preservation.EveryNSteps(keep.keep_every)] if keep.keep_every else []
      options = ocp.CheckpointManagerOptions(preservation_policy=preservation.AnyPreservationPolicy(policies),
                                             cleanup_tmp_directories=True)
    self._options = options
    self._manager: Any = ocp.CheckpointManager(folder, options=options) if folder.exists() or not read_only else None

  def steps(self) -> list[int]:
    """The steps of the finished checkpoints, ascending."""
    return sorted(self._manager.all_steps()) if self._manager else []

  def save(self, state: State, record: dict[str, Any]) -> None:
    """Starts writing the state; returns as soon as the caller may overwrite its buffers."""
    step = int(state.step)
    if step in self.steps():
      return
    record = record | {'format': FORMAT, 'step': step, 'fingerprint': fingerprint(state),
                       'shapes': {path: list(leaf.shape) for path, leaf in _paths(state)}}
    # On a CPU the arrays handed to the writing thread would be the very buffers that the next step reuses.
    if jax.default_backend() == 'cpu':
      state = jax.tree.map(jnp.copy, state)
    with self._saving():
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
      last = f'checkpoint {self.steps()[-1]}' if self.steps() else 'the beginning'
      raise NotSaved(number, f'a checkpoint could not be written ({reason}), --resume goes on from {last}',
                     str(self.folder)) from error

  def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
    """The newest checkpoint that can be trusted, with its record; None if the run has none at all.

    Args:
      like: a State of arrays or ShapeDtypeStructs with the shardings wanted. Where its optimizer is None, the
        optimizer's state is neither read nor compared, whatever it was.

    Raises:
      ConfigError: the run has checkpoints, but none that can be used.
    """
    complaints = []
    for step in reversed(self.steps()):
      try:
        return self._restore(step, like)
      except OtherShape:
        raise
      except Exception as error:  # orbax, tensorstore and the file system each have their own
        reason = ' '.join(str(error).split())[:200]
        complaints.append(f'checkpoint {step} cannot be used: {reason}')
        logging.warning('%s', complaints[-1])
    if complaints:
      raise ConfigError(f'{self.folder} has no usable checkpoint; {complaints[0]}')
    return None

  def _restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
    record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
    if record.get('format') != FORMAT:
      raise ConfigError(f"format is {record.get('format')}; expected {FORMAT}")
    wanted = {name: value for name, value in vars(like).items() if value is not None}
    shapes = {path: list(leaf.shape) for path, leaf in _paths(like)}
    held = {path: shape for path, shape in record['shapes'].items()
            if re.match(r'\.(\w+)', path)[1] in wanted}  # type: ignore[index]  # every path begins so
    for path in sorted(set(shapes) | set(held)):
      saved, expected = held.get(path), shapes.get(path)
      if saved != expected:
        raise OtherShape(f'checkpoint {step} of {self.folder} holds {path} of shape {saved}; '
                         f'the config expects {expected}')
    item = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
    state = like.replace(**self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(
        item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True))).state)
    damaged = [path for path, value in fingerprint(state).items() if record['fingerprint'][path] != value]
    if damaged:
      raise ConfigError(f'{len(damaged)} arrays differ from what was saved, first {damaged[0]}')
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
