"""What a run is made of, as digests, and the proof that it is still that."""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from foundation import files, sealed
from foundation.errors import ConfigError, one_line
from framework.data import corpus as corpus_lib
from framework.data import mixtures
from framework.models import contract
from framework.training import checkpoint, history, layout, loop, meter, result, run, writer
from framework.training.setup import Setup, readers_mesh, set_up
from framework.training.signals import StopSignal


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that was looked at: `sound` is None where it could not be compared."""
  what: str
  sound: bool | None
  words: str


class _Row:
  """Takes the last row that a meter writes."""

  def row(self, metrics: dict[str, Any], rates: dict[str, float]) -> None:
    self.metrics = metrics

  def live(self, *_) -> None:
    """No line to draw."""


def _tried(what: str, call, words: str) -> Finding:
  try:
    return Finding(what, True, call() or words)
  except Exception as error:  # orbax and tensorstore have their own
    return Finding(what, False, one_line(error)[:300])


def prove(stage: contract.Stage, corpus: corpus_lib.Corpus, workdir: pathlib.Path, folder: pathlib.Path
          ) -> Iterator[Finding]:
  """Looks at everything in the folder of a run, one thing after another, and computes some of its numbers again.

  Args:
    workdir: of the whole run; `folder` is that of the stage.
  """
  saved = _tried(run.CONFIG, lambda: run.read_config_file(folder / run.CONFIG) and '', 'as it was written')
  yield saved
  if not saved.sound:
    return
  begun = run.read_config_file(folder / run.CONFIG)
  yield _tried(run.TOKENIZER, lambda: run.read_tokenizer(folder) and '', 'that of the run')
  yield _tried('corpus', lambda: run.check_corpus(folder, corpus), f'{corpus.digest[:12]}, that of the run')
  here = run.versions() | {'code': run.code()}
  other = [name for name, value in (begun['versions'] | {'code': begun.get('code')}).items() if here.get(name) != value]
  yield Finding('code', None if other else True, f"other than when it began: {', '.join(other)}" if other else
                'that of the run')
  outcome, findings = _results(folder)
  yield from findings
  setup = set_up(stage.config, corpus.tokenizer.size, readers_mesh(stage.config))
  try:
    differ = history.differing(folder, stage.config)
    yield Finding(history.HISTORY, None if differ else True,
                  f"not the same at each start and now: {'; '.join(differ)}" if differ else 'each start was like this one')
  except ConfigError as error:
    differ = ['?']
    yield Finding(history.HISTORY, False, one_line(error)[:300])
  sound = []
  for step, finding in _checkpoints(setup, folder):
    yield finding
    sound += [step] if finding.sound else []
  yield from _numbers(stage, setup, corpus, workdir, folder, sound, outcome, bool(other or differ))


def _results(folder: pathlib.Path) -> tuple[dict[str, Any] | None, list[Finding]]:
  """The content of result.json if it can be trusted, and what is found of it and of the rows that it tells of."""
  try:
    outcome = result.read(folder)
  except ConfigError as error:
    return None, [Finding(result.RESULT, False, one_line(error))]
  if not outcome:
    return None, [Finding(result.RESULT, None, 'not there yet')]
  return outcome, [
      Finding(result.RESULT, True, f"as it was written: {outcome['status']} at step {outcome['steps']}"),
      _tried(' and '.join(writer.ROWS), lambda: result.check_rows(folder), 'as they were at the end')]


def _checkpoints(setup: Setup, folder: pathlib.Path) -> Iterator[tuple[int, Finding]]:
  """Every checkpoint: its record, its arrays, and the rows up to it."""
  reader = checkpoint.Checkpoints(folder / loop.CHECKPOINTS, read_only=True)
  for step in reader.steps():
    def read(step=step):
      like = setup.like() if reader.trains(step) else setup.like().replace(optimizer=None)
      writer.check_rows(folder, reader.read(step, like)[1])
    yield step, _tried(f'checkpoint {step}', read, 'arrays, record and the rows up to it are as they were saved')
  if not reader.steps():
    yield 0, Finding(loop.CHECKPOINTS, None, 'none there')
  reader.close()


def _numbers(stage: contract.Stage, setup: Setup, corpus: corpus_lib.Corpus, workdir: pathlib.Path,
             folder: pathlib.Path, sound: list[int], outcome: dict[str, Any] | None, other: bool
             ) -> Iterator[Finding]:
  """A logged row and the last evaluation, computed again.

  Args:
    sound: the steps of the checkpoints that can be trusted. outcome: the content of result.json if it can.
    other: whether code, versions or devices are others than the run's, so that the last bits may differ.
  """
  try:
    rows = {row['step']: row for row in files.read_rows(folder / writer.METRICS)}
  except ConfigError as error:
    yield Finding(writer.METRICS, False, one_line(error))
    rows = {}
  reader = checkpoint.Checkpoints(folder / loop.CHECKPOINTS, read_only=True)
  begin = next((step for step in sound if any(number > step for number in rows)), 0)
  wanted = min((number for number in rows if number > begin), default=None)
  if wanted is not None:
    params, extra = stage.begin(corpus, workdir)
    state, record = reader.read(begin, setup.like()) if begin in sound else loop.fresh(setup, params)
    found = _replayed(setup, corpus, extra, state, record, wanted)
    yield _compared(f'row {wanted}', {key: rows[wanted].get(key) for key in found}, found, other,
                    f'steps {begin + 1} to {wanted} done again')
  if outcome and outcome['steps'] in sound and outcome['status'] == 'complete':
    params = reader.read(outcome['steps'], setup.like().replace(optimizer=None))[0].params
    losses = loop.compile_evaluation(setup, corpus, StopSignal())(params, 0)
    keys = {'loss_nats_per_token': 'nats_per_token', 'bits_per_byte': 'bits_per_byte',
            'loss_by_position': 'loss_by_position'}
    yield _compared('evaluation', {key: outcome[key] for key in keys}, {key: losses[k] for key, k in keys.items()},
                    other, f"checkpoint {outcome['steps']} evaluated again")
  reader.close()


def _replayed(setup: Setup, corpus: corpus_lib.Corpus, extra: Any, state: Any, record: dict[str, Any], wanted: int
              ) -> dict[str, Any]:
  """The row of step `wanted`, from the state of an earlier one.

  extra: further arrays of a stage's windows, see contract.Stage.begin.
  """
  c, out = setup.config, _Row()
  text = mixtures.trained_on(corpus.train, corpus.tokenizer.end, c.data, loop.left_out(c, corpus))
  count = meter.Meter(c, text, record | {'pending': None}, 0.0, out)  # type: ignore[arg-type]  # has a writer's methods
  arrays = text.batches(c.training.batch, c.training.seed, start_step=record['step'],
                        rows=layout.host_rows(setup.mesh, c.training.batch), extra=extra)
  train_step = setup.compile_step()
  for number in range(record['step'] + 1, wanted + 1):
    state, metrics = train_step(state, layout.split_rows(next(arrays), setup.mesh))
    count.take(number, metrics, lambda: [])
  count.end(lambda: [])
  row = count.row
  assert row is not None
  return row


def _compared(what: str, held: dict[str, Any], found: dict[str, Any], other: bool, words: str) -> Finding:
  """Bit for bit, or where code or versions are others to four digits."""
  if held == found:
    return Finding(what, True, f'{words}: the same bits')
  one, two = (np.array(jax.tree.leaves(value, is_leaf=lambda x: x is None), float) for value in (held, found))
  close = one.shape == two.shape and np.allclose(one, two, rtol=1e-4, equal_nan=True)
  key = next(key for key in held if held[key] != found[key])
  sound = None if close and other else False
  return Finding(what, sound, f'{words}: {key} was {held[key]!r:.60}, is {found[key]!r:.60}'
                 + (', the same to four digits' if close else ''))
