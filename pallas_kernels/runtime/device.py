"""The device that a call is traced for, and the choice of an implementation for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from foundation.errors import nearest

def kind() -> str:
  """The name of the device that is traced for: that of the current mesh (which may be absent hardware), else here."""
  mesh = jax.sharding.get_abstract_mesh()
  described = getattr(mesh, 'abstract_device', None)
  return described.device_kind if described is not None else jax.devices()[0].device_kind


def platform(device_kind: str | None = None) -> str:
  """'gpu', 'tpu' or 'cpu' for a device's name; None: of the device that is traced for."""
  name = kind() if device_kind is None else device_kind
  if name.startswith('TPU'):
    return 'tpu'
  return 'gpu' if name.startswith(('NVIDIA', 'Tesla', 'AMD', 'Quadro', 'GeForce')) else 'cpu'


def processors() -> int:
  """How many multiprocessors the device that is traced for has."""
  described = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  return described.num_cores if described is not None else jax.devices()[0].core_count


def first_able(
    operation: str, implementations: Mapping[str, str], best: Sequence[str], wanted: str | Sequence[str] | None,
    config: Any, call: Callable[[str], Any],
) -> Any:
  """`call(module)` of the first implementation that does not raise NotImplementedError.

  Args:
    operation: what it is, for messages.
    implementations: name -> module.
    best: names, taken in this order where `wanted` is None.
    wanted: a name, or several in order.
    config: belongs to one implementation, which then has to be named.

  Raises:
    ValueError: a name that does not exist, or a config without one name.
    NotImplementedError: none can; the message says why, one reason a name.
  """
  names = tuple(best) if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)
  if config is not None and (wanted is None or len(names) != 1):
    raise ValueError(f'config is {config}; expected the one implementation that it belongs to to be named')
  for name in names:
    if name not in implementations:
      raise ValueError(f"{operation} implementation is '{name}'; expected one of {', '.join(implementations)}"
                       f'{nearest(name, implementations)}')
  reasons = []
  for name in names:
    try:
      return call(implementations[name])
    except NotImplementedError as error:
      reasons.append(str(error))
    except ImportError as error:  # an extra that is not installed
      if wanted is not None and len(names) == 1:
        raise
      reasons.append(f'{operation} implementation {name} needs {error.name}, which is not installed')
  raise NotImplementedError('; '.join(reasons))
