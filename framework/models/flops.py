"""Parameter and FLOP counts by formula. A multiply-add is 2 FLOPs; a backward pass costs twice its forward pass."""

import dataclasses
from typing import Any

import jax

from framework.config import Config, Model, Tiered, per_tier
from framework.models import masked


def parameters(params: Any) -> dict[str, int]:
  """{total, embedding, head}: the embedding includes a learned position table; a tied head counts as 0."""
  sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  def count(*names):
    return sum(size for path, size in sizes.items() if path.endswith(tuple(f"['{name}']" for name in names)))
  return {'total': sum(sizes.values()), 'embedding': count('embedding', 'position'), 'head': count('head')}


def forward(model: Model, vocabulary: int, window: int) -> float:
  """FLOPs of one forward pass over one window of L tokens, matrix products only.

  Attention is counted as it is computed without a kernel that skips masked blocks: L^2 products, not L^2 / 2.
  """
  D, F, N = model.width, model.feedforward, model.layers
  if model.name == 'masked':
    body = masked.GROUPS * nodes(model, window + 1, window + 1)
  elif model.name in ('rnn', 'lstm', 'birnn', 'markov'):
    body = 2.0 * window * {'rnn': N * 2 * D * D, 'lstm': N * 8 * D * D, 'birnn': (N * 4 + 2) * D * D,
                           'markov': 3 * D * F}[model.name]
  else:
    body = nodes(model, window, window)
  return body + head(model, vocabulary, window)


def nodes(model: Model, count: int, keys: int) -> float:
  """FLOPs of the layers for `count` nodes, each against `keys` keys."""
  D, H, G, F = model.width, model.heads, model.kv_heads, model.feedforward
  K = model.head_width or D // H
  projections = D * H * K + 2 * D * G * K + H * K * D
  feedforward = (3 if model.activation == 'swiglu' else 2) * D * F
  return 2.0 * count * model.loops * model.layers * (projections + feedforward + 2 * keys * H * K)


def head(model: Model, vocabulary: int, count: int) -> float:
  """FLOPs of `count` predictions."""
  return 2.0 * count * model.width * vocabulary


def cross(model: Model, count: int, memory: int, memory_width: int) -> float:
  """FLOPs of the cross-attention of `count` nodes to `memory` nodes of another width, in all layers."""
  D, H, G = model.width, model.heads, model.kv_heads
  K = model.head_width or D // H
  return 2.0 * model.loops * model.layers * (
      count * 2 * D * H * K + memory * 2 * memory_width * G * K + 2 * count * memory * H * K)


def train(model: Model, vocabulary: int, window: int) -> float:
  """FLOPs of one training step over one window, recomputation left out."""
  return 3 * forward(model, vocabulary, window)


def train_window(config: Config, vocabulary: int) -> float:
  """Training FLOPs of one window under a checked config: of a tiered model, those of its top tier and of the rollouts
  that it reads, unless they come from a disk."""
  if config.model.name == 'encoder_decoder':
    return 3 * encoder_decoder(config, vocabulary)
  if config.model.name != 'tiered':
    return train(config.model, vocabulary, config.data.window)
  t = config.tiered
  below = 0.0 if t.cached else write_window(config, vocabulary)
  return below + 3 * read(tier_models(config), t, t.tiers, vocabulary, config.data.window)


def write_window(config: Config, vocabulary: int) -> float:
  """FLOPs of all rollouts of one window that the top tier reads."""
  t, tiers = config.tiered, tier_models(config)
  below = sum(write(tiers, t, number, vocabulary, config.data.window) for number in range(1, t.tiers))
  if t.tiers > 1 and t.starts == 'entropy':
    below += forward(tiers[0], vocabulary, config.data.window)
  return below


def encoder_decoder(config: Config, vocabulary: int) -> float:
  """FLOPs of one forward pass over one window: a history of L - S tokens, then S with all L predictions."""
  m, e, L, S = config.model, config.encoder, config.data.window, config.data.stride
  if e.kind == 'prefix':
    return forward(m, vocabulary, L)
  width, H = e.width or m.width, L - S
  if e.kind == 'right_to_left_scan':
    encoder = 2.0 * H * 2 * width * 3 * width
  else:
    wide = dataclasses.replace(m, width=width, layers=e.layers or m.layers,
                               feedforward=round(m.feedforward * width / m.width))
    encoder = nodes(wide, H, H)
  return encoder + nodes(m, S, S) + cross(m, S, H, width) + head(m, vocabulary, L)


def tier_models(config: Config) -> list[Model]:
  """The decoder of each tier, lowest first."""
  t, m = config.tiered, config.model
  widths = per_tier('tiered.widths', t.widths, t.tiers, m.width)
  layers = per_tier('tiered.layers', t.layers, t.tiers, m.layers)
  return [dataclasses.replace(m, width=w, layers=n, feedforward=round(m.feedforward * w / m.width))
          for w, n in zip(widths, layers)]


def _said(t: Tiered, window: int) -> tuple[int, int]:
  """Starts a window, and rollout tokens a tier."""
  starts = t.most_starts or window // t.period
  return starts, starts * t.samples * t.rollout


def tier_nodes(t: Tiered, number: int, window: int) -> int:
  """Nodes that tier `number` reads of a window of L tokens: N = L + G (U K R + 1) in the layout stream."""
  starts, said = _said(t, window)
  if number == 1 or t.layout == 'cross':
    return window
  return window + (number - 1) * said + (starts if t.layout == 'stream' else 0)


def _parts(t: Tiered, number: int) -> int:
  """How often attention goes over all keys: the layout stamp weighs rollouts apart from real tokens."""
  return 2 if t.layout == 'stamp' and number > 1 else 1


def _memory(tiers: list[Model], t: Tiered, number: int, window: int) -> tuple[int, int]:
  """Nodes of the memory of tier `number`, and their width; (0, 0) without one."""
  if t.layout != 'cross' or number == 1:
    return 0, 0
  _, said = _said(t, window)
  return (said, tiers[number - 2].width) if t.read == 'hidden' else ((number - 1) * said, tiers[number - 1].width)


def read(tiers: list[Model], t: Tiered, number: int, vocabulary: int, window: int, heads: bool = True) -> float:
  """FLOPs of tier `number` over one window with the rollouts below it; `heads`: and of the predictions."""
  m, N = tiers[number - 1], tier_nodes(t, number, window)
  memory, width = _memory(tiers, t, number, window)
  out = nodes(m, N, _parts(t, number) * N) + (cross(m, N, memory, width) if memory else 0)
  return out + (head(m, vocabulary, window) if heads else 0)


def write(tiers: list[Model], t: Tiered, number: int, vocabulary: int, window: int) -> float:
  """FLOPs of the rollouts of tier `number` from all starts of a window: one reading, then a token a start at a time."""
  m, N = tiers[number - 1], tier_nodes(t, number, window)
  starts, said = _said(t, window)
  memory, width = _memory(tiers, t, number, window)
  rollouts, R = starts * t.samples, t.rollout
  steps = R if t.layout == 'cross' and t.read == 'hidden' else R - 1
  a_step = nodes(m, rollouts, _parts(t, number) * N + R) + head(m, vocabulary, rollouts)
  a_step += cross(m, rollouts, memory, width) if memory else 0
  return read(tiers, t, number, vocabulary, window, heads=False) + head(m, vocabulary, starts) + steps * a_step
