"""Training, in the order in which things happen. Every run of every model, fresh or resumed, goes through `train`."""

from collections.abc import Callable, Iterator
import json
import pathlib
from typing import Any

from absl import logging
import jax

from foundation import files
from framework import config as config_lib
from framework import models
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.models import contract
from framework.training import branch, checkpoint, evaluation, partition, result, run, step, writer
from framework.training.meter import Meter
from framework.training.setup import Setup, set_up
from framework.training.signals import StopSignal
from framework.training.state import State

Results = dict[str, Any]  # the content of result.json


def check(config: config_lib.Config, corpus: corpus_lib.Corpus) -> None:
  """Raises ConfigError for what only the corpus or the devices show to be wrong, in any of the stages."""
  for stage in models.stages(config):
    check_stage(stage.config, corpus)


def check_stage(c: config_lib.Config, corpus: corpus_lib.Corpus) -> None:
  """As `check`, of one run. Raises ConfigError."""
  if c.model.param_dtype != 'float32':  # not in `resolve`: a run that has been trained so can still be read
    raise config_lib.ConfigError(f"model.param_dtype is '{c.model.param_dtype}', in which most weights stay where they "
                                 "are at small rates; expected 'float32' in training, nearest is model.dtype=bfloat16")
  if corpus.train.tokens <= c.data.window:
    raise config_lib.ConfigError(f'data.window is {c.data.window}; the corpus has {corpus.train.tokens} training '
                                 f'tokens: expected at most {corpus.train.tokens - 1}')
  config_lib.check_devices(c, jax.device_count())
  low, high = left_out(c, corpus)
  if high - low == windows.count(corpus.train.tokens, c.data.stride):
    raise config_lib.ConfigError(f'data.folds is {c.data.folds}; every window touches the fold left out: expected '
                                 'more text or a shorter data.window')
  set_up(c, corpus.tokenizer.size)  # refuses a model that cannot be built


def left_out(c: config_lib.Config, corpus: corpus_lib.Corpus) -> tuple[int, int]:
  """The range of windows that touch the fold which the config leaves out; (0, 0) without folds."""
  d = c.data
  if not d.folds:
    return 0, 0
  places = windows.folds(corpus.train, d.folds)
  first, end = places[d.left_out:d.left_out + 2]
  return windows.touching(corpus.train, first, end, d.window, d.stride)


def train(config: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path) -> Results:
  """Trains every stage of a resolved config's model that is not yet complete in `workdir`, to the end or to a signal.

  Returns the content of result.json; its `status` is 'complete' or 'stopped by <signal>'.

  Raises:
    ConfigError: before anything is compiled.
    NonFinite: a step's loss or gradient was not finite (and more than training.skip_nonfinite were).
  """
  stages = models.stages(config)
  if not stages[0].name:
    return train_stage(stages[0], corpus, workdir, workdir)
  results: list[Results] = []
  for stage in stages:
    results.append(stage_result(stage, corpus, workdir))
    if results[-1]['status'] != 'complete':
      break
  begun = stages[:len(results)]
  whole = result.of_stages(models.entry(config).result(results, begun), results, workdir.name,
                           sum(stage.flops_before(corpus) for stage in begun))
  if jax.process_index() == 0:
    files.write_json(workdir / 'result.json', whole)
  return whole


def stage_result(stage: contract.Stage, corpus: corpus_lib.Corpus, workdir: pathlib.Path) -> Results:
  """The result of one of several stages, trained now unless it is complete."""
  folder = workdir / stage.name
  run.open_folder(folder, stage.config, corpus, resume=True)
  path = folder / 'result.json'
  outcome = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
  if outcome.get('status') == 'complete':
    return outcome
  logging.info('%s: %d steps', stage.title, stage.config.training.steps)
  return train_stage(stage, corpus, workdir, folder)


def train_stage(stage: contract.Stage, corpus: corpus_lib.Corpus, workdir: pathlib.Path, folder: pathlib.Path
                ) -> Results:
  """Trains one run in `folder`, from its newest checkpoint if there is one, else as its stage begins."""
  c = stage.config
  check_stage(c, corpus)
  params, extra = stage.begin(corpus, workdir)
  setup = set_up(c, corpus.tokenizer.size)
  logging.info('%d %s devices on %d hosts, partition %s', jax.device_count(), jax.devices()[0].device_kind,
               jax.process_count(), c.training.partition)
  kept = [branch.branch_step(c)] if c.checkpoint.at_decay else []
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', c.checkpoint, kept=kept)
  state, record = first_state(setup, checkpoints, params)
  counts, step_flops = contract.counts(setup.module), c.training.batch * setup.module.flops().train
  logging.info('%s parameters (%s embedding, %s head), vocabulary %d, %s training tokens; start at step %d',
               *(f'{counts[k]:,}' for k in ('total', 'embedding', 'head')), corpus.tokenizer.size,
               f'{corpus.train.tokens:,}', record['step'])
  out = writer.Writer(folder, record['step'], c.training.steps, jax.process_index() == 0, c.training.tensorboard)
  text = windows.Windows.of(corpus.train, corpus.tokenizer.end, c.data, left_out(c, corpus))
  meter = Meter(c, text, record, step_flops, out)
  # Batch n is a function of n, so there is nothing to restore.
  arrays = text.batches(c.training.batch, c.training.seed, start_step=record['step'],
                        rows=partition.host_rows(c.training.batch), extra=extra)
  try:
    state, final, stopping = run_steps(setup, corpus, state, record['step'], arrays, meter, checkpoints, kept)
  finally:
    checkpoints.close()
    out.close()
  done = int(state.step) == c.training.steps
  outcome = result.summary(c, corpus, folder, counts, step_flops, int(state.step), meter.targets, meter.seconds, final,
                         'complete' if done else f'stopped by {stopping}')
  if jax.process_index() == 0:
    files.write_json(folder / 'result.json', outcome)
  return outcome


def first_state(setup: Setup, checkpoints: checkpoint.Checkpoints, params: Any) -> tuple[State, dict[str, Any]]:
  """The state to go on from, and the record of its checkpoint: step, targets, seconds.

  Args:
    params: to begin with where there is no checkpoint; None: the seed's own.
  """
  restored = checkpoints.restore(setup.like())
  if restored:
    checkpoints.set_aside_after(restored[1]['step'])
    return restored
  state = setup.init()
  if params is not None:
    state = state.replace(params=partition.replicate(params, setup.mesh))
  return state, {'step': 0, 'targets': 0, 'seconds': 0.0}


def compile_step(setup: Setup) -> Callable[[State, contract.Batch], tuple[State, dict[str, jax.Array]]]:
  """step(state, batch) -> (state, metrics), spread over the devices as the config says."""
  t = setup.config.training
  reduce = partition.sum_over_data if t.partition == 'pmap' else lambda tree: tree
  one = step.make(setup.module, setup.optimizer, setup.learning_rate, t, setup.module.stochastic, reduce)
  return partition.spread(one, setup.mesh, t.partition)


def compile_evaluation(setup: Setup, corpus: corpus_lib.Corpus) -> Callable[[Any], dict[str, Any]]:
  """evaluate(params) -> losses on the held-out text as the section `evaluation` says."""
  c, nats = setup.config, evaluation.compile_nats(setup.module, setup.mesh)
  text = windows.Windows(corpus.validation, corpus.tokenizer.end, c.data.window, c.evaluation.stride, c.data.packed)
  return lambda params: evaluation.evaluate(nats, params, text, corpus.tokenizer, setup.mesh, batch=c.evaluation.batch,
                                            limit=c.evaluation.windows)


def run_steps(setup: Setup, corpus: corpus_lib.Corpus, state: State, start: int, arrays: Iterator[windows.Batch],
              meter: Meter, checkpoints: checkpoint.Checkpoints, kept: list[int]) -> tuple[State, dict[str, Any], str]:
  """Steps `start` + 1 to the last, or to a signal: (state, the last evaluation, the signal's name)."""
  c, final, stopping = setup.config, {}, ''
  train_step, evaluate = compile_step(setup), compile_evaluation(setup, corpus)
  def due(number: int, every: int) -> bool:
    return number == c.training.steps or bool(every and number % every == 0)
  with StopSignal() as stop:
    for number in range(start + 1, c.training.steps + 1):
      state, metrics = train_step(state, partition.split_rows(next(arrays), setup.mesh))
      meter.take(number, metrics, checkpoints.steps)
      stopping = stop.agreed()
      evaluating = due(number, c.evaluation.every_steps)
      saving = due(number, c.checkpoint.every_steps) or stopping or number in kept
      if evaluating:
        meter.end_step(metrics)
        final = evaluate(state.params)
        meter.evaluated(final)
      if evaluating or saving:
        meter.settle(checkpoints.steps)  # a step that was not finite ends the run here, before anything is saved
        meter.pause()
      if saving:
        checkpoints.save(state, {'targets': meter.targets, 'seconds': meter.seconds})
      if stopping:
        break
    checkpoints.wait()
    if start >= c.training.steps:
      final = evaluate(state.params)
  return state, final, stopping
