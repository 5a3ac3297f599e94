"""The content of result.json, the contract between training and scaling. Losses are nats per token."""

import pathlib
import statistics
from typing import Any

import jax
import numpy as np

from foundation import files
from framework import config as config_lib
from framework.data import corpus as corpus_lib
from framework.data import windows


def summary(c: config_lib.Config, corpus: corpus_lib.Corpus, workdir: pathlib.Path, counts: dict[str, int],
            step_flops: float, steps: int, targets: int, seconds: float, final: dict[str, Any], status: str
            ) -> dict[str, Any]:
  """What a run of one stage has come to.

  Args:
    counts: numbers of parameters, see contract.counts.
    final: the last evaluation on held-out text, or {}.
  """
  rows = files.read_rows(workdir / 'metrics.jsonl')
  tail = [row['loss'] for row in rows if row['step'] > 0.9 * steps and row['loss'] is not None]
  d, unique = c.data, corpus.train.tokens - 1
  if d.folds:
    unique -= int(np.diff(windows.folds(corpus.train, d.folds))[d.left_out])
  return {
      'run': workdir.name, 'model': c.model.name,
      'params_total': counts['total'], 'params_embedding': counts['embedding'], 'params_head': counts['head'],
      'flops_train_exact': steps * step_flops, 'flops_6nd': 6.0 * counts['total'] * targets,
      'tokens': targets, 'tokens_unique': min(targets, unique), 'epochs': targets / unique,
      'batch_tokens': c.training.batch * (d.stride if d.scored == 'stride' else d.window), 'steps': steps,
      'window': c.data.window, 'stride': c.data.stride,
      'lr': c.optimizer.learning_rate, 'schedule': c.optimizer.schedule, 'seed': c.training.seed,
      'loss_nats_per_token': final.get('nats_per_token'), 'bits_per_byte': final.get('bits_per_byte'),
      'loss_smoothed': statistics.fmean(tail) if tail else None,
      'loss_by_position': final.get('loss_by_position'),
      'seconds': seconds, 'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}', 'status': status,
  }


def of_stages(one: dict[str, Any], results: list[dict[str, Any]], run: str, flops_before: float) -> dict[str, Any]:
  """The result of a run in several stages: `one` of them, but with the FLOPs and seconds of all.

  Args:
    flops_before: spent before the first steps of the stages.
  """
  totals = {key: sum(outcome[key] for outcome in results) for key in ('flops_train_exact', 'seconds')}
  totals['flops_train_exact'] += flops_before
  status = next((outcome['status'] for outcome in results if outcome['status'] != 'complete'), 'complete')
  return one | totals | {'run': run, 'status': status}
