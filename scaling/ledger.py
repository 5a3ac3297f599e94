"""Predictions written down before the run: an append-only file that can be checked, never rewritten.

Each line is a JSON record that holds the digest of the line before it, so a changed, removed or reordered line is
found. A prediction is compared later by a second record; the first stays as it was.
"""

import contextlib
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator
from numbers import Real

from foundation import files, reading
from foundation.errors import ConfigError, nearest

# What a record of each kind holds, see reading.misfit.
_NAMED = {'name': str, 'written': str, 'seen': bool}
KINDS = {'prediction': _NAMED | {'law': str, 'runs': int, 'low': Real, 'high': Real} | dict.fromkeys(
             ('N', 'D', 'loss', 'level'), float) | dict.fromkeys(('C', 'k'), (float, None)),
         'measurement': _NAMED | {'inside': bool} | dict.fromkeys(('measured', 'predicted', 'error_percent'), float)}


def _digest(line: str) -> str:
  return hashlib.sha256(line.encode()).hexdigest()


def _lines(path: pathlib.Path) -> list[str]:
  """The lines; what follows the last line end was cut short by a kill: no record yet."""
  try:
    return reading.text(path).split('\n')[:-1]
  except FileNotFoundError:
    return []


def _record(line: str) -> dict | None:
  try:
    record = reading.loads(line)
  except ValueError:
    return None
  return record if isinstance(record, dict) else None


def read(path: str | pathlib.Path) -> list[dict]:
  """All records; raises ConfigError at the first line that was changed or whose predecessor was."""
  path = pathlib.Path(path)
  records, before = [], ''
  lines = _lines(path)
  for number, line in enumerate(lines, 1):
    record = _record(line)
    if record is None:
      torn = '; it was cut short, --mend takes it out' if number == len(lines) else ''
      raise ConfigError(f'{path.name}, line {number}: not a JSON record; a ledger is only ever appended to{torn}')
    body = {key: value for key, value in record.items() if key != 'digest'}
    if record.get('before') != before or record.get('digest') != _digest(json.dumps(body, sort_keys=True)):
      raise ConfigError(f'{path.name}, line {number}: the record was changed after it was written, or one before it '
                        'was')
    kind = str(record.get('kind'))
    wrong = reading.misfit(record, KINDS[kind]) if kind in KINDS else f'kind is {kind!r}; expected {" or ".join(KINDS)}'
    if wrong:
      raise ConfigError(f'{path.name}, line {number}: {wrong}')
    records.append(record)
    before = record['digest']
  return records


@contextlib.contextmanager
def _held(path: pathlib.Path) -> Iterator[None]:
  """Holds the ledger: who reads it to write after what is there lets nobody write in between."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.lock(path.with_name(f'.{path.name}.lock')):
    yield


def mend(path: str | pathlib.Path) -> str:
  """Takes a last line that was cut short out of the ledger, into a file beside it; returns that line, '' if it is whole.

  Any other damage stays refused: only a record that was never finished may go.
  """
  path = pathlib.Path(path)
  with _held(path):
    lines = _lines(path)
    if not lines or _record(lines[-1]) is not None:
      return ''
    files.append_lines(path.with_name(f'{path.name}.torn'), lines[-1] + '\n')
    files.write_atomically(path, ''.join(line + '\n' for line in lines[:-1]))
    return lines[-1]


def _append(path: pathlib.Path, records: list[dict], record: dict) -> dict:
  body = {**record, 'written': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
          'before': records[-1]['digest'] if records else ''}
  body['digest'] = _digest(json.dumps(body, sort_keys=True))
  files.append_lines(path, json.dumps(body, sort_keys=True) + '\n')
  return body


def predict(path: str | pathlib.Path, name: str, *, N: float, D: float, loss: float, low: float, high: float,
            level: float, law: str, objective: str, runs: int, source: str, seen: bool = False, C: float | None = None,
            k: float | None = None) -> dict:
  """Writes a prediction in nats per token with its interval; refuses a name that is there with another one.

  C: FLOPs of the run, k N D as the table counts them.
  seen: whether a run of this N and D was already in the table the prediction was made from; such a record can be
  compared, but says that it is no prediction.
  """
  path = pathlib.Path(path)
  record = {'kind': 'prediction', 'name': name, 'N': N, 'D': D, 'loss': loss, 'low': low, 'high': high, 'level': level,
            'law': law, 'objective': objective, 'runs': runs, 'source': source, 'seen': bool(seen)}
  record |= {} if C is None else {'C': C, 'k': k}
  if not low <= loss <= high:
    raise ConfigError(f'prediction {loss} is outside its own interval [{low}, {high}]')
  with _held(path):
    records = read(path)
    for written in records:
      if written['kind'] == 'prediction' and written['name'] == name:
        if written | record == written:
          return written  # the same command again
        raise ConfigError(f'{path.name} already predicts {name!r}; an entry is never rewritten, choose another name')
    return _append(path, records, record)


def measure(path: str | pathlib.Path, name: str, loss: float) -> dict:
  """Writes what was measured, in nats per token, beside a prediction: error in %, and whether the interval held it."""
  path = pathlib.Path(path)
  with _held(path):
    records = read(path)
    predicted = [r for r in records if r['kind'] == 'prediction' and r['name'] == name]
    if not predicted:
      names = [r['name'] for r in records if r['kind'] == 'prediction']
      raise ConfigError(f'{path.name} has no prediction {name!r}; it has {", ".join(names) or "none"}'
                       f'{nearest(name, names)}')
    for written in records:
      if written['kind'] == 'measurement' and written['name'] == name:
        if written['measured'] == loss:
          return written  # the same command again
        raise ConfigError(f'{path.name} already holds a measurement of {name!r}; an entry is never rewritten')
    if not loss > 0:
      raise ConfigError(f'measured loss {loss}: expected a positive number of nats per token')
    p = predicted[0]
    return _append(path, records, {'kind': 'measurement', 'name': name, 'measured': loss, 'predicted': p['loss'],
                          'error_percent': 100.0 * (p['loss'] / loss - 1.0),
                          'inside': bool(p['low'] <= loss <= p['high']), 'seen': p['seen']})
