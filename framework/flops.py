"""Parameter and FLOP counts by formula. A multiply-add is 2 FLOPs; a backward pass costs twice its forward pass."""

from typing import Any

import jax

from framework.config import Model
from framework.models import masked


def parameters(params: Any) -> dict[str, int]:
  """{total, embedding, head}: the embedding includes a learned position table; a tied head counts as 0."""
  sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  def count(*names):
    return sum(size for path, size in sizes.items() if path in [f"['{name}']" for name in names])
  return {'total': sum(sizes.values()), 'embedding': count('embedding', 'position'), 'head': count('head')}


def forward(model: Model, vocabulary: int, window: int) -> float:
  """FLOPs of one forward pass over one window of L tokens, matrix products only."""
  D, F, N = model.width, model.feedforward, model.layers
  if model.name == 'masked':
    body = masked.GROUPS * _layers(model, window + 1)
  elif model.name in ('rnn', 'lstm', 'birnn', 'markov'):
    body = window * {'rnn': N * 2 * D * D, 'lstm': N * 8 * D * D, 'birnn': (N * 4 + 2) * D * D, 'markov': 3 * D * F}[
        model.name]
  else:
    body = _layers(model, window)
  return 2.0 * (body + window * D * vocabulary)


def _layers(model: Model, window: int) -> float:
  """Multiply-adds of a transformer's layers over L tokens.

  Attention is counted as it is computed without a kernel that skips masked blocks: L^2 products, not L^2 / 2.
  """
  D, H, G, F = model.width, model.heads, model.kv_heads, model.feedforward
  K = model.head_width or D // H
  projections = D * H * K + 2 * D * G * K + H * K * D
  feedforward = (3 if model.activation == 'swiglu' else 2) * D * F
  return window * model.loops * model.layers * (projections + feedforward + 2 * window * H * K)


def train(model: Model, vocabulary: int, window: int) -> float:
  """FLOPs of one training step over one window, recomputation left out."""
  return 3 * forward(model, vocabulary, window)
