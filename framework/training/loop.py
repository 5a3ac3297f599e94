"""Training, in the order in which things happen. Every run of every model, fresh or resumed, goes through `train`."""

from collections.abc import Callable, Iterator
import functools
import itertools
import pathlib
from typing import Any

from absl import logging
import jax

from foundation import entries
from framework import config as config_lib
from framework import models, sharding
from framework.data import corpus as corpus_lib
from framework.data import mixtures, windows
from framework.models import contract
from framework.training import (
    adoption, branch, checkpoint, evaluation, health, history, hosts, layout, result, run, trace, trial, writer)
from framework.training.meter import Meter
from framework.training.saver import Saver
from framework.training.setup import Setup, set_up
from framework.training.signals import StopSignal
from framework.training.state import State

CHECKPOINTS = 'checkpoints'
Results = dict[str, Any]  # the content of result.json


class Interrupted(Exception):
  """A signal asked for the end of an evaluation."""


def check(config: config_lib.Config, corpus: corpus_lib.Corpus) -> None:
  """Raises ConfigError for what only the corpus or the devices show to be wrong, in any of the stages."""
  with entries.blaming():
    stages = models.stages(config)
    sizes = sharding.sizes(config.training.mesh, jax.device_count())
    if len(stages) > 1 and config.data.mixture:
      raise config_lib.ConfigError(f"data.mixture is '{config.data.mixture}', for a model of several stages, which read one "
                                   'text; expected a data.path')
    if len(stages) > 1 and jax.process_count() > 1 and sizes['fsdp'] > 1:
      raise config_lib.ConfigError(f"training.mesh is '{config.training.mesh}' on {jax.process_count()} processes, for "
                                   'a model of several stages, which hand on whole parameters; expected fsdp=1')
    for stage in stages:
      check_stage(stage.config, corpus)


def check_stage(c: config_lib.Config, corpus: corpus_lib.Corpus) -> None:
  """As `check`, of one run. Raises ConfigError."""
  if c.model.param_dtype != 'float32':  # not in `resolve`: a run that has been trained so can still be read
    raise config_lib.ConfigError(f"model.param_dtype is '{c.model.param_dtype}', in which most weights stay where they "
                                 "are at small rates; expected 'float32' in training, nearest is model.dtype=bfloat16")
  short = min(corpus.train.parts if isinstance(corpus.train, mixtures.Mixture) else [corpus.train],
              key=lambda part: part.tokens)
  if short.tokens <= c.data.window:
    raise config_lib.ConfigError(f'data.window is {c.data.window}; the corpus has {short.tokens} training '
                                 f'tokens: expected at most {short.tokens - 1}')
  low, high = left_out(c, corpus)
  if high - low == windows.count(corpus.train.tokens, c.data.stride):
    raise config_lib.ConfigError(f'data.folds is {c.data.folds}; every window touches the fold left out: expected '
                                 'more text or a shorter data.window')
  setup = set_up(c, corpus.tokenizer.size)  # refuses a model that cannot be built
  layout.check(c, setup.module, setup.mesh.shape)
  trial.check(setup)


def left_out(c: config_lib.Config, corpus: corpus_lib.Corpus) -> tuple[int, int]:
  """The range of windows that touch the fold which the config leaves out; (0, 0) without folds."""
  d = c.data
  if not d.folds:
    return 0, 0
  places = windows.folds(corpus.train, d.folds)
  first, end = places[d.left_out:d.left_out + 2]
  return windows.touching(corpus.train, first, end, d.window, d.stride)


def train(config: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path, traced: range = range(0)
          ) -> Results:
  """Trains every stage of a resolved config's model that is not yet complete in `workdir`, to the end or to a signal.

  Args:
    traced: steps of a model of one stage that the profiler watches, see trace.py.

  Returns the content of result.json; its `status` is 'complete' or 'stopped by <signal>'.

  Raises:
    ConfigError: before anything is compiled.
    NonFinite: a step's loss or gradient was not finite (and more than training.skip_nonfinite were).
  """
  stages = models.stages(config)
  with StopSignal() as stop:
    if not stages[0].name:
      return finished(workdir, config) or train_stage(stages[0], corpus, workdir, workdir, stop, traced)
    results: list[Results] = []
    if jax.process_index() == 0:
      run.begin(workdir, config)
    for stage in stages:
      results.append(stage_result(stage, corpus, workdir, stop))
      if results[-1]['status'] != 'complete':
        break
    begun = stages[:len(results)]
    whole = result.of_stages(models.entry(config).result(results, begun), results, workdir.name,
                             sum(stage.flops_before(corpus) for stage in begun))
    if jax.process_index() == 0:
      result.write(workdir, whole)
    return whole


def finished(folder: pathlib.Path, c: config_lib.Config) -> Results | None:
  """The result of a run that has made all of its steps, be its checkpoints still there or not.

  Raises:
    ConfigError: the run was stopped, and its checkpoints are gone: going on would begin anew and drop its rows.
  """
  held = result.read(folder)
  if held and held['status'] != 'complete' and not any((folder / CHECKPOINTS).glob('*')):
    raise config_lib.ConfigError(f"{folder} holds a run that was {held['status']} at step {held['steps']}, without its "
                                 f'checkpoints; expected those, nearest is another --workdir')
  return held if held and held['status'] == 'complete' and held['steps'] == c.training.steps else None


def stage_result(stage: contract.Stage, corpus: corpus_lib.Corpus, workdir: pathlib.Path, stop: StopSignal) -> Results:
  """The result of one of several stages, trained now unless it is complete."""
  folder = workdir / stage.name
  run.open_folder(folder, stage.config, corpus, resume=True)
  outcome = finished(folder, stage.config)
  if outcome:
    return outcome
  logging.info('%s: %d steps', stage.title, stage.config.training.steps)
  return train_stage(stage, corpus, workdir, folder, stop)


def train_stage(stage: contract.Stage, corpus: corpus_lib.Corpus, workdir: pathlib.Path, folder: pathlib.Path,
                stop: StopSignal, traced: range = range(0)) -> Results:
  """Trains one run in `folder`, from its newest checkpoint if there is one, else as its stage begins."""
  stop.idle, c = True, stage.config
  check_stage(c, corpus)
  params, extra = stage.begin(corpus, workdir)
  setup = set_up(c, corpus.tokenizer.size)
  for line in layout.describe(setup.module, setup.mesh):
    logging.info('%s', line)
  kept = adoption.kept(folder) + ([branch.branch_step(c)] if c.checkpoint.at_decay else [])
  checkpoints = checkpoint.Checkpoints(folder / CHECKPOINTS, c.checkpoint, kept=kept)
  state, record = first_state(setup, checkpoints, params, functools.partial(writer.check_rows, folder))
  if jax.process_index() == 0:  # a start that was refused is none
    history.add(folder, c, {'step': record['step']} | run.begin(folder, c))
  counts, step_flops = contract.counts(setup.module), c.training.batch * setup.module.flops().train
  logging.info('%s parameters (%s embedding, %s head), vocabulary %d, %s training tokens; start at step %d',
               *(f'{counts[k]:,}' for k in ('total', 'embedding', 'head')), corpus.tokenizer.size,
               f'{corpus.train.tokens:,}', record['step'])
  out = writer.Writer(folder, record, c.training.steps, jax.process_index() == 0, c.training.tensorboard)
  text = mixtures.trained_on(corpus.train, corpus.tokenizer.end, c.data, left_out(c, corpus))
  meter = Meter(c, text, record, step_flops, out)
  # Batch n is a function of n, so there is nothing to restore.
  arrays = text.batches(c.training.batch, c.training.seed, start_step=record['step'],
                        rows=layout.host_rows(setup.mesh, c.training.batch), extra=extra)
  saver = Saver(c.checkpoint.patience, checkpoints, meter, out, stop)
  arrays = checked(setup, state, arrays)
  try:
    with trace.of(folder, traced) as at:
      state, final, whole = run_steps(setup, corpus, state, record['step'], arrays, meter, saver, stop, at)
  finally:
    checkpoints.close()
    out.close()
  outcome = result.summary(c, corpus, folder, counts, step_flops, int(state.step), meter.targets, meter.seconds, final,
                           'complete' if whole else f'stopped by {stop.agreed()}')
  if jax.process_index() == 0:
    result.write(folder, outcome)
  return outcome


def checked(setup: Setup, state: State, arrays: Iterator[windows.Batch]) -> Iterator[windows.Batch]:
  """The same batches, after what health.py looks at before the first step.

  Raises:
    hosts.Disagreement: it did not hold.
  """
  if setup.mesh.size > 1:
    health.check_replicas(state)
  if not setup.config.training.check_gradient:
    return arrays
  first = next(arrays)
  health.check_tables(setup, state, layout.split_rows(first, setup.mesh))
  logging.info('gradients of tables are those computed without a scatter')
  return itertools.chain([first], arrays)


def fresh(setup: Setup, params: Any) -> tuple[State, dict[str, Any]]:
  """The state before the first step, and the record that a checkpoint of it would have.

  Args:
    params: to begin with; None: the seed's own.
  """
  state = setup.init()
  if params is not None:
    state = state.replace(params=layout.place_params(params, setup.module, setup.mesh))
  return state, {'step': 0, 'targets': 0, 'seconds': 0.0}


def first_state(setup: Setup, checkpoints: checkpoint.Checkpoints, params: Any,
                accept: Callable[[dict[str, Any]], None]) -> tuple[State, dict[str, Any]]:
  """The state to go on from, and the record of its checkpoint: step, targets, seconds.

  Args:
    params: to begin with where there is no checkpoint; None: the seed's own.
    accept: see checkpoint.Checkpoints.restore.
  """
  restored = checkpoints.restore(setup.like(), accept)
  if restored:
    checkpoints.set_aside_after(restored[1]['step'])
    return restored
  return fresh(setup, params)


def compile_evaluation(setup: Setup, corpus: corpus_lib.Corpus, stop: StopSignal) -> Callable[[Any, int],
                                                                                              dict[str, Any]]:
  """evaluate(params, step) -> losses on the held-out text as the section `evaluation` says; {} if a signal came."""
  c, nats = setup.config, evaluation.compile_nats(setup.module, setup.mesh)
  text = mixtures.evaluated_on(corpus.validation, corpus.tokenizer.end, c.data.window, c.evaluation.stride,
                               c.data.packed)
  def until_stopped(batches, step):
    for number, batch in enumerate(batches, 1):
      hosts.entered(step, number)
      if stop.agreed():
        raise Interrupted
      yield batch
  def evaluate(params, step):
    try:
      return evaluation.evaluate(nats, params, text, corpus.tokenizer, setup.mesh, batch=c.evaluation.batch,
                                 limit=c.evaluation.windows, progress=lambda batches: until_stopped(batches, step))
    except Interrupted:
      return {}
  return evaluate


def run_steps(setup: Setup, corpus: corpus_lib.Corpus, state: State, start: int, arrays: Iterator[windows.Batch],
              meter: Meter, saver: Saver, stop: StopSignal, at: Callable[[int], None] = lambda number: None
              ) -> tuple[State, dict[str, Any], bool]:
  """Steps `start` + 1 to the last, or to a signal: (state, the last evaluation, whether that was the run's end).

  Args:
    at: called with the number of each step before it is made.
  """
  c, final, whole = setup.config, {}, False
  train_step, evaluate = setup.compile_step(), compile_evaluation(setup, corpus, stop)
  def due(number: int, every: int) -> bool:
    return number == c.training.steps or bool(every and number % every == 0)
  if start == c.training.steps or meter.row and due(start, c.evaluation.every_steps):  # saved, but not evaluated yet
    final = evaluate(state.params, start)
    if not final:
      return state, final, False
    meter.write(final)
    whole = start == c.training.steps
  meter.write()  # of a step that was the last until the run got more of them
  for number in range(start + 1, c.training.steps + 1):
    hosts.entered(number)
    at(number)
    state, metrics = train_step(state, layout.split_rows(next(arrays), setup.mesh))
    stop.idle = False
    meter.take(number, metrics, saver.checkpoints.steps)
    stopping, evaluating = stop.agreed(), due(number, c.evaluation.every_steps)
    saving = due(number, c.checkpoint.every_steps) or number in saver.checkpoints.kept or stopping
    if not evaluating and not saving:
      continue
    meter.end(saver.checkpoints.steps)  # a step that was not finite ends the run here, before anything is saved
    meter.pause()
    if not evaluating:
      meter.write()
    if saving:  # before the evaluation: nothing is lost if that is interrupted
      saver.save(state)
    if evaluating:
      losses = evaluate(state.params, number)
      if not losses:
        break
      final, whole = losses, number == c.training.steps
      meter.write(final)
    if stopping:
      break
  saver.finish(state)
  return state, final, whole
