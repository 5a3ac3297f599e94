"""Continuations of many prompts: a file of JSON lines to another, each row a function of its own prompt alone.

A row is drawn with a key of (seed, prompt, number of the sample) among prompts of about its own length, so that it does
not depend on the other rows, their order or their number. What a kill leaves is kept beside the output and not drawn
again.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from foundation import files, reading, sealed
from foundation.errors import ConfigError, nearest
from foundation.printable import printable
from framework import generation

BATCH = 16  # rows drawn at once
OURS = ('sample', 'completion', 'drawn')  # of a row of the output, beside what its prompt's line holds


@dataclasses.dataclass(frozen=True)
class Request:
  """A continuation that is wanted: its line's object, the number of the sample, and its tokens."""
  line: dict[str, Any]
  sample: int
  ids: np.ndarray

  def key(self, seed: int) -> int:
    """32 bits of (seed, prompt, sample)."""
    text = json.dumps([seed, self.line['prompt'], self.sample])
    return int.from_bytes(hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()[:4], 'big')


def read(path: pathlib.Path, samples: int, tokenizer: Any) -> list[Request]:
  """The requests of a file of JSON lines, each an object with a string 'prompt'; whatever else it holds is kept.

  Raises:
    ConfigError: a line is something else, or its prompt cannot be encoded.
  """
  try:
    lines = reading.text(path).splitlines()
  except FileNotFoundError:
    raise ConfigError(f'--prompts: {printable(path)} does not exist; expected a file of JSON lines') from None
  requests = []
  for number, line in enumerate(lines, 1):
    place, expected = f'--prompts: {printable(path)}:{number}', "expected an object with a string 'prompt'"
    if not line.strip():
      continue
    try:
      row = reading.loads(line)
    except ValueError as error:
      raise ConfigError(f'{place} is not JSON ({printable(error, 100)}); {expected}') from None
    if not isinstance(row, dict) or not isinstance(row.get('prompt'), str):
      raise ConfigError(f"{place} has no string 'prompt'{nearest('prompt', row) if isinstance(row, dict) else ''}; "
                        f'{expected}')
    if taken := [name for name in OURS if name in row]:
      raise ConfigError(f"{place} has '{taken[0]}', which the output writes; expected another name for it")
    try:
      ids = np.array([tokenizer.begin, *tokenizer.encode(row['prompt'])], np.int32)
    except ConfigError as error:
      raise ConfigError(f'{place}: {error}') from None
    requests += [Request(row, sample, ids) for sample in range(samples)]
  if not requests:
    raise ConfigError(f'--prompts: {printable(path)} holds no prompt; expected a line with one')
  return requests


def batches(requests: Sequence[Request], window: int) -> Iterator[list[int]]:
  """The places of requests that are drawn together: of one length, to a quarter of the window."""
  alike: dict[int, list[int]] = {}
  for place, request in enumerate(requests):
    alike.setdefault(-(-min(len(request.ids), window) // max(1, window // generation.PARTS)), []).append(place)
  for places in alike.values():
    for first in range(0, len(places), BATCH):
      yield places[first:first + BATCH]


def draw(trained: Any, requests: Sequence[Request], tokens: int, window: int, settings: generation.Sampling, seed: int
         ) -> list[str]:
  """The texts of at most BATCH requests. The batch is always filled up to that size: one program for all."""
  filled = [*requests, *[requests[0]] * (BATCH - len(requests))]
  keys_B = jax.vmap(jax.random.key)(np.array([request.key(seed) for request in filled], np.uint32))
  columns = generation.generate(trained.setup.module, trained.params, [request.ids for request in filled],
                                tokens=tokens, window=window, settings=settings, seed=keys_B)
  rows = np.concatenate(list(columns), axis=1)[:len(requests)]
  return [trained.tokenizer.continued(row[:list(row).index(settings.stop)] if settings.stop in row else row)
          for row in rows]


def write(output: pathlib.Path, requests: Sequence[Request], groups: Sequence[Sequence[int]], drawn: dict[str, Any],
          texts: Callable[[list[Request]], list[str]], show: Callable[[int, int, str], None]) -> None:
  """Draws what is not there yet and writes `output`, in the order of the requests.

  Args:
    groups: places of requests that are drawn together.
    drawn: how: the run, its checkpoint, the settings and the seed.

  Raises:
    ConfigError: `output` is something else than these rows.
  """
  mark = sealed.digest(drawn)[:12]
  rows = [request.line | {'sample': request.sample, 'drawn': mark} for request in requests]
  part = output.with_name(f'.{output.name}.part')
  def known(path: pathlib.Path) -> dict[int, str]:
    found = files.read_rows(path, 'completion', str)
    places = {json.dumps(row, sort_keys=True): place for place, row in enumerate(rows)}
    return {places[key]: row['completion'] for row in found
            if (key := json.dumps({k: v for k, v in row.items() if k != 'completion'}, sort_keys=True)) in places}
  if output.exists():
    alike = {json.dumps(row, sort_keys=True) for row in rows}
    if len(known(output)) < len(alike):
      raise ConfigError(f'--output {printable(output)} exists and holds something else than these completions; expected '
                        'a new file')
    return logging.info('%s is there already', output)
  done = known(part) if part.exists() else {}
  for group in groups:
    left = [place for place in group if place not in done]
    if left:
      done |= dict(zip(left, texts([requests[place] for place in left]), strict=True))
      files.append_rows(part, [rows[place] | {'completion': done[place]} for place in left])
    show(len(done), len(rows), 'rows')
  files.write_atomically(output, ''.join(json.dumps(row | {'completion': done[place]}, ensure_ascii=False) + '\n'
                                         for place, row in enumerate(rows)))
  part.unlink(missing_ok=True)
  logging.info('%d rows in %s', len(rows), output)
