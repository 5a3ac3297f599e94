"""FLOPs by formula, of matrix products only; a multiply-add is 2. A backward pass costs twice its forward pass.

Attention is counted as it is computed without a kernel that skips masked blocks: L^2 products, not L^2 / 2.
"""

from framework import config as config_lib
from framework.models.attention import head_width


def blocks(c: config_lib.Model, queries: int, keys: int) -> float:
  """Of a decoder's layers for `queries` nodes, each against `keys` keys."""
  D, H, G, F, K = c.width, c.heads, c.kv_heads, c.feedforward, head_width(c)
  projections = D * H * K + 2 * D * G * K + H * K * D
  feedforward = (3 if c.activation in config_lib.GATED else 2) * D * F
  return 2.0 * queries * c.loops * c.layers * (projections + feedforward + 2 * keys * H * K)


def head(c: config_lib.Model, vocabulary: int, count: int) -> float:
  """Of `count` predictions."""
  return 2.0 * count * c.width * vocabulary


def cross(c: config_lib.Model, count: int, memory: int, memory_width: int) -> float:
  """Of the cross-attention of `count` nodes to `memory` nodes of another width, in all layers."""
  D, H, G, K = c.width, c.heads, c.kv_heads, head_width(c)
  return 2.0 * c.loops * c.layers * (
      count * 2 * D * H * K + memory * 2 * memory_width * G * K + 2 * count * memory * H * K)
