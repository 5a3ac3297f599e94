"""The best configuration of a kernel, and the fastest implementation, for a shape: measured once, in a JSON a device.

Candidates that the compiler's report shows to spill, or that ask for too much shared memory, are never timed.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from foundation import files
from pallas_kernels.runtime import device, report, timing


def path(device_kind: str | None = None) -> pathlib.Path:
  """The file of a device: $XDG_CACHE_HOME/lemma/kernels/DEVICE.json, or the same under ~/.cache."""
  root = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
  name = re.sub(r'[^a-z0-9]+', '_', (device_kind or device.kind()).lower()).strip('_')
  return root / 'lemma' / 'kernels' / f'{name}.json'


def key(operation: str, implementation: str, dtype: Any, *shape: int) -> str:
  return ' '.join([operation, implementation, str(dtype), 'x'.join(map(str, shape))])


def remembered(kernel: str, kind: type, file: pathlib.Path | None = None) -> Any | None:
  """The winner stored under `key(...)` as a config of class `kind`, or None; one that no longer fits is passed over."""
  file = file or path()
  try:
    found = json.loads(file.read_text())[kernel]['config']
    return kind(**found)
  except (OSError, ValueError, KeyError, TypeError):
    return None


def fastest(operation: str, implementations: Iterable[str], dtype: Any, *shape: int) -> tuple[str, ...]:
  """That of the implementations which was measured to be the fastest for the shape on this device; () if none was."""
  try:
    found = json.loads(path().read_text())[key(operation, 'fastest', dtype, *shape)]['implementation']
  except (OSError, ValueError, KeyError, TypeError):
    return ()
  return (found,) if found in implementations else ()


def record(kernel: str, entry: dict[str, Any], file: pathlib.Path | None = None) -> None:
  """Stores `entry` under `kernel`, from `key`, and keeps the rest of the file."""
  file = file or path()
  file.parent.mkdir(parents=True, exist_ok=True)
  try:
    table = json.loads(file.read_text())
  except (OSError, ValueError):
    table = {}
  files.write_atomically(file, json.dumps(table | {kernel: entry}, indent=1, sort_keys=True) + '\n')


def prune(f: Callable[[Any], Callable], arguments: Sequence[Any], configs: Iterable[Any], target: str) -> list[Any]:
  """Those configs with which f(config) compiles for the target without spills."""
  kept = []
  for config in configs:
    try:
      found = report.compile_report(f(config), *arguments, target=target)
    except ModuleNotFoundError:
      raise
    except Exception:  # whatever a compiler refuses: shared memory, shapes, registers
      continue
    if not any(k.spill_bytes for k in found.kernels):
      kept.append(config)
  return kept


def tune(kernel: str, f: Callable[[Any], Callable], inputs: Sequence[Sequence[Any]], configs: Sequence[Any],
         file: pathlib.Path | None = None, seconds: Callable = timing.seconds) -> dict[str, Any]:
  """Times every config here and stores the fastest: {'config': its fields, 'seconds': ...}.

  Args:
    kernel: from `key`.
    f: config -> the function.
    inputs: sets of arguments, rotated.
    configs: candidates, best after `prune`; a dataclass each.

  Raises:
    RuntimeError: none of them runs.
  """
  times, errors = {}, []
  for config in configs:
    try:
      times[config] = seconds(f(config), inputs)
    except Exception as error:  # one that fails on this device is no candidate
      errors.append(f'{config}: {str(error).splitlines()[0] if str(error) else type(error).__name__}')
  if not times:
    raise RuntimeError(f'no config of {kernel} runs: {"; ".join(errors) or "none was given"}')
  best = min(times, key=times.__getitem__)
  winner = {'config': dataclasses.asdict(best), 'seconds': times[best]}
  record(kernel, winner, file)
  return winner
