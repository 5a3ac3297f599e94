"""history.jsonl: a row for each start of a run, of what may differ between them without its being another run."""

import pathlib
import sys
from typing import Any

from absl import logging
import jax

from foundation import files
from foundation.errors import one_line
from framework import config as config_lib

HISTORY = 'history.jsonl'


def here(config: config_lib.Config) -> dict[str, Any]:
  """How a run is computed on this machine: its numbers are the same to the last bit where this is the same."""
  device = jax.devices()[0]
  return {'devices': f'{jax.device_count()} {device.device_kind}', 'processes': jax.process_count(),
          'settings': {key: value for key, value in config_lib.flatten(config).items() if key in config_lib.HOW}}


def add(workdir: pathlib.Path, config: config_lib.Config, about: dict[str, Any]) -> None:
  """Adds the row of this start. A disk that is full costs the row alone.

  Args:
    about: what else is to be known: the commit, digests of the code, versions.
  """
  try:
    files.append_rows(workdir / HISTORY, [{'command': sys.argv, **here(config), **about}])
  except OSError as error:
    logging.warning('%s: this start is not in it (%s)', workdir / HISTORY, one_line(error))


def starts(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows; a run that is older than the file has none. Raises ConfigError if they are not as they were written."""
  return files.read_rows(workdir / HISTORY, 'settings', dict)


def differing(workdir: pathlib.Path, config: config_lib.Config) -> list[str]:
  """What was not the same at every start of a run and now, in words: its last bits may differ from what is logged."""
  flat = lambda row: {'devices': row.get('devices'), 'processes': row.get('processes'), **row['settings']}
  rows, found = [flat(row) for row in starts(workdir)], []
  for key, value in flat(here(config)).items():
    values = {str(row.get(key, value)) for row in rows} | {str(value)}
    found += [f"{key} {', '.join(sorted(values))}"] if len(values) > 1 else []
  return found
