"""Predictions written down before the run: an append-only file that can be checked, never rewritten.

Each line is a JSON record that holds the digest of the line before it, so a changed, removed or reordered line is
found. A prediction is compared later by a second record; the first stays as it was.
"""

import hashlib
import json
import pathlib
import time
from numbers import Real

from foundation import files, reading
from foundation.errors import ConfigError, nearest

# What a record of each kind holds, see reading.misfit.
_NAMED = {'name': str, 'written': str, 'seen': bool}
KINDS = {'prediction': _NAMED | {'law': str, 'runs': int, 'low': Real, 'high': Real} | dict.fromkeys(
             ('N', 'D', 'loss', 'level'), float),
         'measurement': _NAMED | {'inside': bool} | dict.fromkeys(('measured', 'predicted', 'error_percent'), float)}


def _digest(line: str) -> str:
  return hashlib.sha256(line.encode()).hexdigest()


def read(path: str | pathlib.Path) -> list[dict]:
  """All records; raises ConfigError at the first line that was changed or whose predecessor was."""
  path = pathlib.Path(path)
  try:
    lines = reading.text(path).split('\n')[:-1]  # a last line without an end was cut short by a kill: no record yet
  except FileNotFoundError:
    return []
  records, before = [], ''
  for number, line in enumerate(lines, 1):
    try:
      record = reading.loads(line)
    except ValueError:
      record = None
    if not isinstance(record, dict):
      raise ConfigError(f'{path.name}, line {number}: not a JSON record; a ledger is only ever appended to')
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


def _append(path: pathlib.Path, record: dict) -> dict:
  records = read(path)
  body = {**record, 'written': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
          'before': records[-1]['digest'] if records else ''}
  body['digest'] = _digest(json.dumps(body, sort_keys=True))
  path.parent.mkdir(parents=True, exist_ok=True)
  files.append_lines(path, json.dumps(body, sort_keys=True) + '\n')
  return body


def predict(path: str | pathlib.Path, name: str, *, N: float, D: float, loss: float, low: float, high: float,
            level: float, law: str, objective: str, runs: int, source: str, seen: bool = False) -> dict:
  """Writes a prediction in nats per token with its interval; refuses a name that is there with another one.

  seen: whether a run of this N and D was already in the table the prediction was made from; such a record can be
  compared, but says that it is no prediction.
  """
  path = pathlib.Path(path)
  record = {'kind': 'prediction', 'name': name, 'N': N, 'D': D, 'loss': loss, 'low': low, 'high': high, 'level': level,
            'law': law, 'objective': objective, 'runs': runs, 'source': source, 'seen': bool(seen)}
  for written in read(path):
    if written['kind'] == 'prediction' and written['name'] == name:
      if written | record == written:
        return written  # the same command again
      raise ConfigError(f'{path.name} already predicts {name!r}; an entry is never rewritten, choose another name')
  if not low <= loss <= high:
    raise ConfigError(f'prediction {loss} is outside its own interval [{low}, {high}]')
  return _append(path, record)


def measure(path: str | pathlib.Path, name: str, loss: float) -> dict:
  """Writes what was measured, in nats per token, beside a prediction: error in %, and whether the interval held it."""
  path = pathlib.Path(path)
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
  return _append(path, {'kind': 'measurement', 'name': name, 'measured': loss, 'predicted': p['loss'],
                        'error_percent': 100.0 * (p['loss'] / loss - 1.0),
                        'inside': bool(p['low'] <= loss <= p['high']), 'seen': p['seen']})
