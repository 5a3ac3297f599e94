"""JSON objects that notice their own damage: the digest of all their other keys stands in them.

One changed digit in a record of a run would otherwise be a wrong number in a law. An object without a digest is older
than this and is taken as it is.
"""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

from foundation.errors import ConfigError

KEY = 'digest'


def digest(value: Any) -> str:
  """The first 32 hexadecimal digits of the SHA-256 of a JSON value, whatever the order of its keys."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
  """The object with its digest."""
  rest = {key: v for key, v in value.items() if key != KEY}
  return rest | {KEY: digest(rest)}


def opened(value: dict[str, Any], name: object) -> dict[str, Any]:
  """The object without its digest. Raises ConfigError, calling it `name`, if it is not what was sealed."""
  rest = {key: v for key, v in value.items() if key != KEY}
  if KEY in value and value[KEY] != digest(rest):
    raise ConfigError(f'{name} was changed after it was written: its digest is {str(value[KEY])[:40]!r}; expected '
                      f'{digest(rest)!r}, nearest is the file as it was')
  return rest
