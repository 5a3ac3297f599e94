"""Runs as trackers know them: one way to send rows, and a client for each tracker, imported where it is asked for."""

from collections.abc import Callable
import contextlib
import importlib.util
import json
import sys
from typing import Any, Protocol

from absl import logging

from foundation import files, reading, sealed
from foundation.errors import ConfigError, one_line
from framework import config as config_lib

STATE = '.synced.json'
CHUNK = 500  # rows a call


class Sink(Protocol):
  """One run at a tracker."""

  def last(self) -> int:
    """The greatest step that is there; -1: none, or nobody knows."""

  def rows(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
    """Adds rows: (step, seconds since the run began, numbers by name), by rising step."""

  def close(self, summary: dict[str, Any] | None) -> None:
    """Ends the connection; summary: of a run that has ended."""


Open = Callable[[str, str, dict[str, Any]], Sink]  # (id, name, settings)


def identity(run: dict[str, Any]) -> str:
  """16 hexadecimal digits of a run's name, text and settings, but for those that say how it is computed or kept."""
  beside = config_lib.HOW | config_lib.BESIDE - {'data.path', 'data.mixture', 'training.log_every'}
  settings = {key: value for key, value in run['settings'].items() if key not in beside}
  return sealed.digest([run['folder'].name, run['config'].get('corpus'), settings])[:16]


def numbers(row: dict[str, Any], before: str = '') -> dict[str, float]:
  """The numbers of a row by name, those inside objects as outer/inner."""
  found: dict[str, float] = {}
  for key, value in row.items():
    if isinstance(value, dict):
      found |= numbers(value, f'{before}{key}/')
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and key != 'step':
      found[before + key] = float(value)
  return found


def send(run: dict[str, Any], to: str, project: str, open_sink: Open) -> int:
  """Sends what is new of a run, as experiments.reports.runs.load gives it; the number of its rows.

  Raises:
    ConfigError: the tracker's client fails.
  """
  path, key, mark = run['folder'] / STATE, f'{to}:{project}', identity(run)
  state = _state(path)
  known = state.get(key, {})
  known = known if known.get('id') == mark else {}
  metrics, done = run['rows'], bool(run['result'].get('status') == 'complete')
  begun = metrics[:known.get('rows', 0)]
  if begun and sealed.digest(begun) != known.get('digest'):
    known = {}  # another file of rows under the same settings: the tracker says what it has
  if len(metrics) == known.get('rows', 0) and done == known.get('done', False):
    return 0
  try:
    with contextlib.redirect_stdout(sys.stderr):  # what clients say is no result
      sent = _send(run, open_sink(mark, run['name'], run['settings']),
                   metrics[known['rows'] - 1]['step'] if known.get('rows') else -1, done)
  except ConfigError:
    raise
  except Exception as error:  # each client has its own
    raise ConfigError(f"--to={to}: {one_line(error)[:300]}; expected a tracker that answers, nearest is the same command "
                      'again') from error
  state[key] = {'id': mark, 'rows': len(metrics), 'digest': sealed.digest(metrics), 'done': done}
  try:
    files.write_json(path, state)
  except OSError as error:
    logging.warning('%s cannot be written (%s): another time, the tracker is asked what it has', path, error.strerror)
  return sent


def _send(run: dict[str, Any], sink: Sink, last: int, done: bool) -> int:
  """Sends the rows after step `last`, or after the last that is there; their number."""
  last = max(sink.last(), last)
  timing = {row['step']: row for row in run['timing']}
  new = [(row['step'], float(timing.get(row['step'], {}).get('seconds') or row['step']),
          numbers(row) | numbers({'timing': timing.get(row['step'], {})})) for row in run['rows'] if row['step'] > last]
  for first in range(0, len(new), CHUNK):
    sink.rows(new[first:first + CHUNK])
  sink.close({name: value for name, value in run['result'].items() if isinstance(value, (int, float, str))}
             if done else None)
  return len(new)


def _state(path: Any) -> dict[str, Any]:
  try:
    return reading.value(path, {str: {'id': str, 'rows': int, 'digest': str, 'done': bool}})
  except (FileNotFoundError, ConfigError):
    return {}


def opener(to: str, project: str) -> Open:
  """What opens a run at a tracker. Raises ConfigError if its client is not installed."""
  package = importlib.util.find_spec(to)
  if package is None or package.origin is None:  # a folder of that name is no package
    raise ConfigError(f"--to={to} needs {to}; expected pip install -e '.[track]'")
  kinds: dict[str, Any] = {'wandb': _Wandb, 'trackio': _Trackio, 'mlflow': _Mlflow}
  return lambda mark, name, settings: kinds[to](importlib.import_module(to), project, mark, name, settings)


class _Wandb:
  """A run of Weights & Biases, which keeps steps in order and drops those that it has."""

  def __init__(self, wandb: Any, project: str, mark: str, name: str, settings: dict[str, Any]):
    self._run = wandb.init(project=project, id=mark, name=name, config=settings, resume='allow', reinit='finish_previous',
                           settings=wandb.Settings(silent=True, console='off', disable_git=True, save_code=False,
                                                   x_disable_stats=True, x_disable_meta=True))

  def last(self) -> int:
    return int(self._run.starting_step or 0) - 1

  def rows(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
    for step, _, values in rows:
      self._run.log(values, step=step)

  def close(self, summary: dict[str, Any] | None) -> None:
    self._run.summary.update(summary or {})
    self._run.finish()


class _Trackio:
  """A run of trackio, in its data base on this machine."""

  def __init__(self, trackio: Any, project: str, mark: str, name: str, settings: dict[str, Any]):
    self._trackio, self._project, self._name = trackio, project, f'{name} {mark}'
    self._run = trackio.init(project=project, name=self._name, config=settings, resume='allow', embed=False,
                             auto_log_gpu=False, auto_log_cpu=False)

  def last(self) -> int:
    return max((row['step'] for row in self._trackio.SQLiteStorage.get_logs(self._project, self._name)), default=-1)

  def rows(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
    for step, _, values in rows:
      self._run.log(values, step=step)

  def close(self, summary: dict[str, Any] | None) -> None:
    self._run.finish()


class _Mlflow:
  """A run of MLflow, found again by a tag."""

  def __init__(self, mlflow: Any, project: str, mark: str, name: str, settings: dict[str, Any]):
    self._mlflow, self._client = mlflow, mlflow.MlflowClient()
    there = self._client.get_experiment_by_name(project)
    experiment = there.experiment_id if there else self._client.create_experiment(project)
    found = self._client.search_runs([experiment], f"tags.lemma = '{mark}'")
    if not found:
      run = self._client.create_run(experiment, run_name=name, tags={'lemma': mark})
      entities = mlflow.entities
      params = [entities.Param(key, str(value)[:500]) for key, value in settings.items() if str(value)]
      for first in range(0, len(params), 100):
        self._client.log_batch(run.info.run_id, params=params[first:first + 100])
    self._id = (found[0] if found else run).info.run_id

  def last(self) -> int:
    return max((row.step for row in self._client.get_metric_history(self._id, 'tokens')), default=-1)

  def rows(self, rows: list[tuple[int, float, dict[str, float]]]) -> None:
    metric, widest = self._mlflow.entities.Metric, max(len(values) for _, _, values in rows)
    whole = max(1, 1000 // widest)  # rows a call, which takes a thousand numbers: a row is there in full or not at all
    for first in range(0, len(rows), whole):
      self._client.log_batch(self._id, metrics=[
          metric(name, value, round(1000 * seconds), step) for step, seconds, values in rows[first:first + whole]
          for name, value in values.items()])

  def close(self, summary: dict[str, Any] | None) -> None:
    for name, value in (summary or {}).items():
      self._client.set_tag(self._id, f'result.{name}', json.dumps(value))
    if summary:
      self._client.set_terminated(self._id)
