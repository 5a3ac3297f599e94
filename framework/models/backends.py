"""Which attention backends there are, and that the one of a config can be had."""

import importlib

from foundation.errors import ConfigError, nearest
from pallas_kernels import attention


def check(name: str) -> None:
  """Raises ConfigError if there is no backend of that name, or what it needs is not installed."""
  backends = ('auto', *attention.IMPLEMENTATIONS)
  if name not in backends:
    raise ConfigError(f"model.attention is '{name}'; expected one of {', '.join(backends)}{nearest(name, backends)}")
  if name != 'auto':
    try:
      importlib.import_module(attention.IMPLEMENTATIONS[name])
    except ImportError as error:
      raise ConfigError(f"model.attention is '{name}', which needs {error.name}; expected it installed, nearest is "
                        "'auto'") from None


def implementation(name: str) -> str | None:
  """The name as pallas_kernels.attention takes it: None chooses by the device."""
  return None if name == 'auto' else name
