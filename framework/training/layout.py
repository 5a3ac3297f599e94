"""Where the arrays of a run lie on its mesh of devices: parameters, the optimizer's state, and batches."""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from framework import config as config_lib
from framework import sharding
from framework.config import ConfigError
from framework.models import contract
from framework.training import optimizers


def make_mesh(devices: Sequence[jax.Device] | None = None, sizes: dict[str, int] | None = None) -> Mesh:
  """A mesh of the devices of all hosts, in the order in which they are numbered.

  Args:
    sizes: of the axes, see sharding.sizes; None: all along data.
  """
  devices = jax.devices() if devices is None else devices
  shape = [(sizes or {'data': len(devices)}).get(axis, 1) for axis in sharding.AXES]
  if devices[0].platform == 'tpu':  # whose chips are a torus
    array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  else:
    array = np.asarray(devices).reshape(shape)
  return Mesh(array, sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES))


def check(config: config_lib.Config, model: contract.Model, size: Mapping[str, int]) -> None:
  """Raises ConfigError for what does not divide over a mesh of such sizes, or a model cannot honour, with the nearest
  that does."""
  m, t, d, rows = config.model, config.training, config.data, sharding.rows(size)
  for axis, able in (('tensor', contract.answers(model, 'gathers')),
                     ('sequence', getattr(model, 'splits_windows', False))):
    if size[axis] > 1 and not able:
      raise ConfigError(f"training.mesh is '{t.mesh}' for model.name '{m.name}', which cannot be split over {axis}; "
                        "expected data and fsdp, nearest is 'data=-1'")
  chunks = 2 * size['sequence'] if size['sequence'] > 1 else 1
  cuts = {'training.batch': (t.batch, rows * t.accumulation, f'{rows} devices x {t.accumulation} microbatches'),
          **{f'model.{name}': (getattr(m, name), size['tensor'], 'tensor') for name in
             ('heads', 'kv_heads', 'feedforward')},
          'data.window': (d.window, chunks * size['tensor'], 'sequence, in two chunks each, and tensor')}
  if contract.answers(model, 'gathers'):
    cuts['model.width'] = m.width, size['fsdp'], 'fsdp'
  if d.tokenizer == 'bpe' and not d.task:
    cuts['data.vocabulary'] = d.vocabulary, size['tensor'], 'tensor'
  for key, (value, parts, words) in cuts.items():
    if value % parts:
      below = value // parts * parts
      raise ConfigError(f'{key} is {value}; expected a multiple of {words} = {parts}, nearest is '
                        + (f'{below} or {below + parts}' if below else f'{parts}'))
  if size['sequence'] > 1:
    check_sequence(config)
  if size['tensor'] > 1 and not getattr(optimizers.find(config.optimizer.name), 'OVER_TENSOR', True):
    raise ConfigError(f"training.mesh is '{t.mesh}' with optimizer.name '{config.optimizer.name}', whose matrices have to "
                      "be whole; expected tensor=1, or optimizer.name=adamw")


def check_sequence(config: config_lib.Config) -> None:
  """Raises ConfigError for attention that needs all of a window at once."""
  m, subject = config.model, f"training.mesh is '{config.training.mesh}', which splits windows, with "
  for key in ('relative_bias', 'sliding_window'):
    if getattr(m, key):
      raise ConfigError(f'{subject}model.{key} {getattr(m, key)}; expected 0')
  for key, good, nearest in (('mask', m.mask == 'causal', 'causal'), ('attention_scale', m.attention_scale != 'log', 'sqrt'),
                             ('attention', m.attention != 'cudnn' or m.sequence != 'ring', 'auto')):
    if not good:
      raise ConfigError(f"{subject}model.{key} '{getattr(m, key)}'; expected another, nearest is '{nearest}'")


def describe(model: contract.Model, mesh: Mesh) -> list[str]:
  """What is said at the start of a run: devices, mesh, what a device holds, and how each parameter lies."""
  devices = mesh.devices.flatten()
  lines = [f'{mesh.size} {devices[0].device_kind} devices on {jax.process_count()} hosts, mesh '
           + ' '.join(f'{axis}={size}' for axis, size in mesh.shape.items() if size > 1 or axis == 'data')]
  if mesh.size == mesh.shape['data']:
    return lines
  held, big = 0, []
  for path, parameter in contract.describe(model).items():
    spec, x = specs(model, mesh)[path], parameter.value
    parts = math.prod(mesh.shape[axis] for axis in spec if axis)
    held += x.size * x.dtype.itemsize // parts
    lines.append(f'{path} {list(x.shape)} {x.dtype}: ' + (', '.join(
        f'{name} over {axis}' for name, axis in zip(parameter.axes, spec) if axis) or 'on every device'))
    if mesh.shape['fsdp'] > 1 and 'fsdp' not in spec and x.size * x.dtype.itemsize > 2**20:
      big.append(f'{path}, {x.size * x.dtype.itemsize / 2**20:.1f} MB, is on every device: no axis of '
                 f'{dict(zip(parameter.axes, x.shape))} divides by fsdp={mesh.shape["fsdp"]}')
  return [*lines, f'a device holds {held / 2**20:.1f} MB of parameters', *big]


@functools.lru_cache(64)
def specs(model: contract.Model, mesh: Mesh) -> dict[str, P]:
  """{path: where it lies} of every parameter."""
  able = dict(mesh.shape) | ({} if contract.answers(model, 'gathers') else {'tensor': 1})
  return {path: sharding.spec(p.axes, p.role, p.value.shape, able) for path, p in contract.describe(model).items()}


def spec_of(path: str, shape: tuple[int, ...], model: contract.Model, mesh: Mesh) -> P:
  """Where an array of the training state lies: what belongs to a parameter, such as its moments, lies as it does."""
  for name in sorted(specs(model, mesh), key=len, reverse=True):
    if path.endswith(name) and contract.describe(model)[name].value.shape == shape:
      return specs(model, mesh)[name]
  return P()


def shardings(tree: Any, model: contract.Model, mesh: Mesh) -> Any:
  """The sharding of each array of a state, or of parameters; of arrays or their shapes."""
  return jax.tree_util.tree_map_with_path(
      lambda path, x: NamedSharding(mesh, spec_of(jax.tree_util.keystr(path), x.shape, model, mesh)), tree)


def put(tree: Any, where: Any) -> Any:
  """Arrays of the host as global arrays of the given shardings. Each host must hold all of each."""
  return jax.tree.map(lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda index: np.asarray(x)[index]), tree,
                      where)


def place_params(params: Any, model: contract.Model, mesh: Mesh) -> Any:
  """Parameters of the host, each where it lies on the mesh."""
  return put(params, shardings(params, model, mesh))


def batch_specs(batch: dict[str, Any], mesh: Mesh, axes: tuple[str, ...] = sharding.AXES) -> dict[str, P]:
  """Where the arrays of a batch lie, by rows and, where `sequence` splits the window, by tokens."""
  by_rows = tuple(axis for axis in sharding.ROWS if axis in axes)
  return {name: P(by_rows, 'sequence') if name in sharding.SPLIT_BY_WINDOW and mesh.shape['sequence'] > 1
          else P(by_rows) for name in batch}


def batch_shapes(B: int, L: int) -> dict[str, jax.ShapeDtypeStruct]:
  """What framework.data.windows.Windows.batches gives of B windows, as shapes and dtypes."""
  dtypes = {'tokens': 'int32', 'targets': 'int32', 'weights': 'float32', 'segments': 'int32', 'positions': 'int32'}
  return {name: jax.ShapeDtypeStruct((B, L), dtype) for name, dtype in dtypes.items()} | {
      'start': jax.ShapeDtypeStruct((B,), 'uint32'), 'rows': jax.ShapeDtypeStruct((B,), 'int32')}


def batch_like(c: config_lib.Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of the batch of a step."""
  shapes = batch_shapes(c.training.batch, c.data.window)
  where = batch_specs(shapes, mesh)
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where[name]))
          for name, x in shapes.items()}


def split_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows of a global batch, as global arrays split over the mesh."""
  parts = mesh.shape['sequence']
  if parts > 1:
    batch = {name: x[:, sharding.zigzag(x.shape[1], parts)] if name in sharding.SPLIT_BY_WINDOW else x
             for name, x in batch.items()}
  where = {name: NamedSharding(mesh, spec) for name, spec in batch_specs(batch, mesh).items()}
  if jax.process_count() == 1:
    return jax.device_put(batch, where)  # the same, in half the time
  parts_of_rows = sharding.rows(mesh.shape)
  own = host_rows(mesh, parts_of_rows)
  first = own.start
  def one(x, sharding_of):
    share = x.shape[0] // (own.stop - first)  # rows of one part
    shape = (share * parts_of_rows, *x.shape[1:])
    def part(index):
      begin, end, _ = index[0].indices(shape[0])
      return x[(slice(begin - first * share, end - first * share), *index[1:])]
    return jax.make_array_from_callback(shape, sharding_of, part)
  return {name: one(x, where[name]) for name, x in batch.items()}


def host_rows(mesh: Mesh, batch: int) -> slice:
  """The rows of a global batch that this host's devices need: those of other hosts too, where tensor or sequence span
  hosts."""
  if jax.process_count() == 1:
    return slice(0, batch)
  indices = NamedSharding(mesh, P(sharding.ROWS)).addressable_devices_indices_map((batch,)).values()
  ends = [index[0].indices(batch)[:2] for index in indices if index is not None]
  return slice(min(begin for begin, _ in ends), max(end for _, end in ends))
