"""Perplexity of held-out text: nats are summed over every target and divided once.

The result therefore depends neither on the batch size, nor on the number of devices, nor on the ragged last window.
"""

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from framework import cross_entropy, sharding
from framework.data import mixtures, windows
from framework.training import layout, partition


def compile_nats(module, mesh: Mesh, draws: int = 1) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
  """nats(params, batch) -> -ln p of every target [B, L] on every host; rows are spread over the mesh.

  draws: of a model with seeds (contract.Model.with_seed), p is the mean over so many, its own first. A mean of code
  lengths' probabilities is a code length too, and by Jensen's inequality no longer than they are in the mean.
  """
  def nats(params, batch, module=module):
    x_BxLxD = module.hidden(params, batch)
    return cross_entropy.token_nats(x_BxLxD, module.head(params), batch['targets'])
  def mean(params, batch):
    nats_DxBxL = jax.lax.map(lambda seed: nats(params, batch, module.with_seed(seed)),
                             module.seed + jnp.arange(draws, dtype=jnp.uint32))
    return jnp.log(draws) - jax.nn.logsumexp(-nats_DxBxL, axis=0)
  return jax.jit(partition.spread_nats(nats if draws == 1 else mean, module, mesh),
                 out_shardings=NamedSharding(mesh, P()))


def evaluate(
    nats: Callable, params: Any, text: windows.Windows, tokenizer, mesh: Mesh, *, batch: int, limit: int = 0,
    progress: Callable[[Iterator], Iterator] = iter,
) -> dict[str, Any]:
  """Evaluates on the windows of a split.

  Args:
    nats: from `compile_nats`.
    batch: windows at a time, rounded up to a multiple of the devices.
    limit: number of windows, evenly spread over the split; 0: all.
    progress: wraps the list of batches, for instance to draw a bar.

  Returns:
    nats_per_token, bits_per_token, perplexity, bits_per_byte, targets, bytes, window, stride, and
    loss_by_position: nats of targets by the index of their input in the window (null where there is none).
    Of a mixture the losses are the means of its texts by their shares, and `sources` those of each, by name.
  """
  if isinstance(text, mixtures.MixedWindows):
    one = functools.partial(evaluate, nats, params, tokenizer=tokenizer, mesh=mesh, batch=batch, progress=progress)
    return mixed(text, [one(part, limit=math.ceil(limit * weight))
                        for part, weight in zip(text.parts, text.split.weights)])
  parts = sharding.rows(mesh.shape)
  batch = -(-batch // parts) * parts
  nats_L, targets_L, total_bytes = np.zeros(text.window), np.zeros(text.window), 0.0
  rows = layout.host_rows(mesh, batch)
  order = np.argsort(sharding.zigzag(text.window, mesh.shape['sequence']))
  for whole in progress(text.each(batch, limit)):
    local = {name: x[rows] for name, x in whole.items()}
    nats_BxL = np.asarray(nats(params, layout.split_rows(local, mesh)), np.float64)[:, order]
    weights_BxL = whole['weights'].astype(np.float64)
    nats_L += (nats_BxL * weights_BxL).sum(0)
    targets_L += weights_BxL.sum(0)
    total_bytes += float((tokenizer.bytes_of(whole['tokens'], whole['targets']) * weights_BxL).sum())
  total, targets = float(nats_L.sum()), float(targets_L.sum())
  per_token = total / targets
  return {
      'nats_per_token': per_token,
      'bits_per_token': per_token / math.log(2),
      'perplexity': math.exp(min(per_token, 700)),
      'bits_per_byte': total / math.log(2) / total_bytes,
      'targets': int(targets), 'bytes': int(total_bytes), 'window': text.window, 'stride': text.stride,
      'loss_by_position': [float(a / b) if b else None for a, b in zip(nats_L, targets_L)],
  }


def mixed(text: mixtures.MixedWindows, results: list[dict[str, Any]]) -> dict[str, Any]:
  """The evaluation of a mixture, from those of its texts: means by their shares of the windows."""
  weights = np.array(text.split.weights)
  def mean(values) -> float:
    return float(weights @ np.array(values, np.float64))
  by_position = []
  for losses in zip(*(r['loss_by_position'] for r in results)):
    there = np.array([loss is not None for loss in losses])
    by_position.append(float(weights[there] @ np.array([loss for loss in losses if loss is not None])
                             / weights[there].sum()) if there.any() else None)
  per_token, per_byte = mean([r['nats_per_token'] for r in results]), mean([r['bytes'] / r['targets'] for r in results])
  return {
      'nats_per_token': per_token, 'bits_per_token': per_token / math.log(2),
      'perplexity': math.exp(min(per_token, 700)), 'bits_per_byte': per_token / math.log(2) / per_byte,
      'targets': sum(r['targets'] for r in results), 'bytes': sum(r['bytes'] for r in results),
      'window': text.window, 'stride': text.stride, 'loss_by_position': by_position,
      'sources': {name: {key: r[key] for key in ('nats_per_token', 'bits_per_byte', 'targets', 'bytes')}
                  for name, r in zip(text.split.names, results)},
  }
