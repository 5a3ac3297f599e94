"""The content of result.json, the contract between training and scaling. Losses are nats per token."""

import pathlib
import statistics
from typing import Any

import jax
import numpy as np

from foundation import files, reading, sealed
from framework import config as config_lib
from framework.data import corpus as corpus_lib
from framework.data import mixtures, windows
from framework.training import run, writer

RESULT = 'result.json'


def summary(c: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path, counts: dict[str, int],
            step_flops: float, steps: int, targets: int, seconds: float, final: dict[str, Any], status: str
            ) -> dict[str, Any]:
  """What a run of one stage has come to.

  Args:
    counts: numbers of parameters, see contract.counts.
    final: the last evaluation on held-out text, or {}.
  """
  rows = files.read_rows(workdir / writer.METRICS)
  tail = [row['loss'] for row in rows if row['step'] > 0.9 * steps and row['loss'] is not None]
  d, unique = c.data, corpus.train.tokens - 1
  if d.folds:
    unique -= int(np.diff(windows.folds(corpus.train, d.folds))[d.left_out])
  sources = mixtures.sources(mixtures.trained_on(corpus.train, corpus.tokenizer.end, d), targets,
                             steps * c.training.batch, c.training.seed, final)
  read = sum(one['tokens_unique'] for one in sources.values()) if sources else min(targets, unique)
  return {
      'run': workdir.name, 'model': c.model.name,
      'params_total': counts['total'], 'params_embedding': counts['embedding'], 'params_head': counts['head'],
      'flops_train_exact': steps * step_flops, 'flops_6nd': 6.0 * counts['total'] * targets,
      'tokens': targets, 'tokens_unique': read, 'epochs': targets / unique,
      'batch_tokens': c.training.batch * (d.stride if d.scored == 'stride' else d.window), 'steps': steps,
      'window': c.data.window, 'stride': c.data.stride,
      'lr': c.optimizer.learning_rate, 'schedule': c.optimizer.schedule, 'seed': c.training.seed,
      'loss_nats_per_token': final.get('nats_per_token'), 'bits_per_byte': final.get('bits_per_byte'),
      'loss_smoothed': statistics.fmean(tail) if tail else None,
      'loss_by_position': final.get('loss_by_position'),
      'manifest': manifest(workdir, steps),
      'seconds': seconds, 'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}', 'status': status,
  } | ({'sources': sources} if sources else {})


def manifest(folder: pathlib.Path, step: int) -> dict[str, Any]:
  """The digests of what a run is made of, see framework/training/manifest.py, up to its last step."""
  begun = run.read_config_file(folder / run.CONFIG)
  return {'config': sealed.digest(begun), 'corpus': begun['corpus'], 'tokenizer': begun.get('tokenizer'),
          'code': run.code(), 'step': step, 'rows': {name: writer.digests(folder / name) for name in writer.ROWS}}


def check_rows(folder: pathlib.Path) -> None:
  """Raises ConfigError if a run that has ended has other rows of metrics or timing than at its end."""
  for name, wanted in (read(folder) or {}).get('manifest', {}).get('rows', {}).items():
    if writer.digests(folder / name) != wanted:
      raise config_lib.ConfigError(f"{folder / name} was changed: its rows are not the {wanted['count']} that there "
                                   'were at the end of the run')


def write(folder: pathlib.Path, outcome: dict[str, Any]) -> None:
  """Writes result.json, sealed."""
  files.write_sealed(folder / RESULT, outcome)


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """The content of result.json; None if there is none. Raises ConfigError if it is not as it was written."""
  try:
    return reading.value(folder / RESULT, {'status': str, 'steps': int})
  except FileNotFoundError:
    return None
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{error}; nearest is the folder without it, and the same command again') from None


def of_stages(one: dict[str, Any], results: list[dict[str, Any]], run: str, flops_before: float) -> dict[str, Any]:
  """The result of a run in several stages: `one` of them, but with the FLOPs and seconds of all.

  Args:
    flops_before: spent before the first steps of the stages.
  """
  totals = {key: sum(outcome[key] for outcome in results) for key in ('flops_train_exact', 'seconds')}
  totals['flops_train_exact'] += flops_before
  status = next((outcome['status'] for outcome in results if outcome['status'] != 'complete'), 'complete')
  return one | totals | {'run': run, 'status': status}
