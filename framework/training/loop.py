"""The training loop, in the order in which things happen. Every run, fresh or resumed, goes through `train`."""

from collections.abc import Callable
import math
import pathlib
import signal
import statistics
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from framework import config as config_lib
from foundation import files
from framework.models import flops
from framework.training import evaluation
from framework.data import corpus as corpus_lib
from framework.data import windows
from framework.training import checkpoint, clock, optimizer, partition, step, writer
from framework.training.setup import set_up


class NonFinite(RuntimeError):
  """The loss or the gradient was NaN or infinite; the message is one line for the user."""


def check(config: config_lib.Config, corpus: corpus_lib.Corpus) -> None:
  """Raises ConfigError for what only the corpus or the devices show to be wrong."""
  if corpus.train.tokens <= config.data.window:
    raise config_lib.ConfigError(f'data.window is {config.data.window}; the corpus has {corpus.train.tokens} training '
                                 f'tokens: expected at most {corpus.train.tokens - 1}')
  config_lib.check_devices(config, jax.device_count())
  low, high = left_out(config, corpus)
  if high - low == windows.count(corpus.train.tokens, config.data.stride):
    raise config_lib.ConfigError(f'data.folds is {config.data.folds}; every window touches the fold left out: expected '
                                 'more text or a shorter data.window')
  set_up(config, corpus.tokenizer.size)  # refuses a model that cannot be built


class StopSignal:
  """Remembers SIGTERM and SIGINT while a step runs; a second one of the same kind acts at once."""

  def __init__(self):
    self.name = ''

  def __enter__(self):
    self._previous = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def _remember(self, number, _):
    self.name = signal.Signals(number).name
    signal.signal(number, signal.SIG_DFL)

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def agreed(self) -> str:
    """The signal's name if any host received one; all hosts must call this at the same step."""
    if jax.process_count() == 1:
      return self.name
    return 'a signal' if multihost_utils.process_allgather(np.asarray(bool(self.name))).any() else ''


def left_out(config: config_lib.Config, corpus: corpus_lib.Corpus) -> tuple[int, int]:
  """The range of windows that touch the fold which the config leaves out; (0, 0) without folds."""
  d = config.data
  if not d.folds:
    return 0, 0
  places = windows.folds(corpus.train, d.folds)
  return windows.touching(corpus.train, *places[d.left_out:d.left_out + 2], d.window, d.stride)


def train(config: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path, params: Any = None,
          more: Callable[[np.ndarray], windows.Batch] | None = None) -> dict[str, Any]:
  """Trains to the end or to a signal, from the newest checkpoint in `workdir` if there is one, else from `params` or
  the seed's own. `more` gives further arrays of windows, for their batches.

  Returns the content of result.json; its `status` is 'complete' or 'stopped by <signal>'.

  Raises:
    ConfigError: before anything is compiled.
    NonFinite: a step's loss or gradient was not finite (and more than training.skip_nonfinite were).
  """
  # --- setup ---
  c = config
  check(c, corpus)
  setup = set_up(c, corpus.tokenizer.size)
  module, mesh = setup.module, setup.mesh
  first_host = jax.process_index() == 0
  logging.info('%d %s devices on %d hosts, partition %s', jax.device_count(), jax.devices()[0].device_kind,
               jax.process_count(), c.training.partition)

  # --- state: resumed, else from the seed ---
  kept = [optimizer.decay_start(c.optimizer, c.training.steps)] if c.checkpoint.at_decay else []
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', c.checkpoint, kept=kept)
  restored = checkpoints.restore(setup.like())
  if restored:
    train_state, record = restored
    checkpoints.set_aside_after(record['step'])
  else:
    train_state, record = setup.init(), {'step': 0, 'targets': 0, 'seconds': 0.0}
    if params is not None:
      train_state = train_state.replace(params=partition.replicate(params, mesh))
  start, targets = record['step'], record['targets']
  counts = flops.parameters(train_state.params)
  logging.info('%s parameters (%s embedding, %s head), vocabulary %d, %s training tokens; start at step %d',
               *(f'{counts[k]:,}' for k in ('total', 'embedding', 'head')), corpus.tokenizer.size,
               f'{corpus.train.tokens:,}', start)

  # --- step ---
  reduce = partition.sum_over_data if c.training.partition == 'pmap' else lambda tree: tree
  train_step = partition.spread(
      step.make(module, setup.optimizer, setup.learning_rate, c.training, module.stochastic, reduce),
      mesh, c.training.partition)
  nats = evaluation.compile_nats(module, mesh)

  def evaluate() -> dict[str, Any]:
    return evaluation.evaluate(nats, train_state.params, corpus.validation, corpus.tokenizer, mesh,
                               window=c.data.window, stride=c.evaluation.stride, batch=c.evaluation.batch,
                               packed=c.data.packed, limit=c.evaluation.windows)

  # --- data: batch `step` is a function of the step, so there is nothing to restore ---
  d, skipped_windows = c.data, left_out(c, corpus)
  window_count = windows.count(corpus.train.tokens, d.stride, d.random_phase) - int(np.diff(skipped_windows)[0])
  batches = windows.loader(corpus.train, corpus.tokenizer.end, window=d.window, stride=d.stride, batch=c.training.batch,
                           seed=c.training.seed, packed=d.packed, start_step=start,
                           rows=partition.host_rows(c.training.batch), random_phase=d.random_phase, scored=d.scored,
                           unscored=d.unscored, left_out=skipped_windows, more=more)
  tokens_per_byte = (corpus.train.tokens - 1) / corpus.train.bytes
  ticker = clock.Clock(record['seconds'], c.training.batch * c.data.window,
                       c.training.batch * flops.train_window(c, corpus.tokenizer.size))
  out = writer.Writer(workdir, start, c.training.steps, first_host, c.training.tensorboard)

  pending: tuple[int, dict[str, jax.Array]] | None = None
  extra: dict[str, Any] = {}

  def settle() -> None:
    """Reads the pending step's metrics, which waits for that step; one step late, nothing waits."""
    nonlocal pending, targets
    if pending is None:
      return
    number, metrics = pending[0], jax.device_get(pending[1])
    pending = None
    ticker.tick()
    targets += int(metrics['targets'])
    skipped = int(metrics['skipped'])
    if not metrics['finite'] and (c.training.skip_nonfinite == 0 or skipped > c.training.skip_nonfinite):
      bad = windows.skip(windows.indices(window_count, c.training.batch, c.training.seed, number - 1), skipped_windows)
      saved = checkpoints.steps()
      raise NonFinite(
          f"step {number}: loss {float(metrics['loss'])}, gradient norm {float(metrics['gradient_norm'])}; windows "
          f"{', '.join(map(str, bad))}; last good checkpoint: {saved[-1] if saved else 'none'}"
          + (f'; {skipped} steps skipped, training.skip_nonfinite is {c.training.skip_nonfinite}' if skipped else ''))
    loss, norm = (float(metrics[name]) if metrics['finite'] else None for name in ('loss', 'gradient_norm'))
    row = {'step': number, 'loss': loss, 'bits_per_byte': loss and loss / math.log(2) * tokens_per_byte,
           'tokens': targets, 'learning_rate': float(metrics['learning_rate']), 'gradient_norm': norm,
           'epoch': round(number * c.training.batch / window_count, 6)}
    if skipped:
      row['skipped'] = skipped
    row |= extra
    rates = ticker.rates(c.training.steps - number)
    if number % c.training.log_every == 0 or number == c.training.steps or extra:
      out.row(row, rates)
    out.live(number, row, rates)
    extra.clear()

  # --- loop ---
  final: dict[str, Any] = {}
  stopping = ''
  try:
    with StopSignal() as stop:
      for number in range(start + 1, c.training.steps + 1):
        train_state, metrics = train_step(train_state, partition.split_rows(next(batches), mesh))
        settle()
        pending = (number, metrics)
        last = number == c.training.steps
        stopping = stop.agreed()
        evaluating = last or (c.evaluation.every_steps and number % c.evaluation.every_steps == 0)
        saving = last or stopping or number in kept or (
            c.checkpoint.every_steps and number % c.checkpoint.every_steps == 0)
        if evaluating:
          jax.block_until_ready(metrics)
          ticker.tick()
          ticker.pause()
          final = evaluate()
          extra.update(validation_loss=final['nats_per_token'], validation_bits_per_byte=final['bits_per_byte'])
        if evaluating or saving:
          settle()  # a step that was not finite ends the run here, before anything is saved
          ticker.pause()
        if saving:
          checkpoints.save(train_state, {'targets': targets, 'seconds': ticker.seconds})
        if stopping:
          break
      checkpoints.wait()
      if start >= c.training.steps:
        final = evaluate()
  finally:
    checkpoints.close()
    out.close()

  # --- result ---
  done = int(train_state.step) == c.training.steps
  status = 'complete' if done else f'stopped by {stopping}'
  result = summary(c, corpus, workdir, counts, int(train_state.step), targets, ticker.seconds, final, status)
  if first_host:
    files.write_json(workdir / 'result.json', result)
  return result


def summary(c: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path, counts: dict[str, int],
            steps: int, targets: int, seconds: float, final: dict[str, Any], status: str) -> dict[str, Any]:
  """The content of result.json, the contract between training and scaling. Losses are nats per token."""
  rows = files.read_rows(workdir / 'metrics.jsonl')
  tail = [row['loss'] for row in rows if row['step'] > 0.9 * steps and row['loss'] is not None]
  d, unique = c.data, corpus.train.tokens - 1
  if d.folds:
    unique -= int(np.diff(windows.folds(corpus.train, d.folds))[d.left_out])
  return {
      'run': workdir.name, 'model': c.model.name,
      'params_total': counts['total'], 'params_embedding': counts['embedding'], 'params_head': counts['head'],
      'flops_train_exact': steps * c.training.batch * flops.train_window(c, corpus.tokenizer.size),
      'flops_6nd': 6.0 * counts['total'] * targets,
      'tokens': targets, 'tokens_unique': min(targets, unique), 'epochs': targets / unique,
      'batch_tokens': c.training.batch * (d.stride if d.scored == 'stride' else d.window), 'steps': steps,
      'window': c.data.window, 'stride': c.data.stride,
      'lr': c.optimizer.learning_rate, 'schedule': c.optimizer.schedule, 'seed': c.training.seed,
      'loss_nats_per_token': final.get('nats_per_token'), 'bits_per_byte': final.get('bits_per_byte'),
      'loss_smoothed': statistics.fmean(tail) if tail else None,
      'loss_by_position': final.get('loss_by_position'),
      'seconds': seconds, 'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}', 'status': status,
  }
