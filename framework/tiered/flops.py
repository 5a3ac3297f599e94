"""FLOPs of tiers, matrix products only: of reading a window with the rollouts below, and of writing rollouts."""

from framework.config import Model, Tiered
from framework.models import flops


def _rollout_tokens(t: Tiered, window: int) -> tuple[int, int]:
  """Starts a window, and rollout tokens a tier."""
  starts = t.most_starts or window // t.period
  return starts, starts * t.samples * t.rollout


def tier_nodes(t: Tiered, number: int, window: int) -> int:
  """Nodes that tier `number` reads of a window of L tokens: N = L + G (U K R + 1) in the layout stream."""
  starts, tokens = _rollout_tokens(t, window)
  if number == 1 or t.layout == 'cross':
    return window
  return window + (number - 1) * tokens + (starts if t.layout == 'stream' else 0)


def _parts(t: Tiered, number: int) -> int:
  """How often attention goes over all keys: the layout stamp weighs rollouts apart from real tokens."""
  return 2 if t.layout == 'stamp' and number > 1 else 1


def _memory(tiers: list[Model], t: Tiered, number: int, window: int) -> tuple[int, int]:
  """Nodes of the memory of tier `number`, and their width; (0, 0) without one."""
  if t.layout != 'cross' or number == 1:
    return 0, 0
  _, tokens = _rollout_tokens(t, window)
  return (tokens, tiers[number - 2].width) if t.read == 'hidden' else ((number - 1) * tokens, tiers[number - 1].width)


def read(tiers: list[Model], t: Tiered, number: int, vocabulary: int, window: int, heads: bool = True) -> float:
  """FLOPs of tier `number` over one window with the rollouts below it; `heads`: and of the predictions."""
  m, N = tiers[number - 1], tier_nodes(t, number, window)
  memory, width = _memory(tiers, t, number, window)
  out = flops.blocks(m, N, _parts(t, number) * N) + (flops.cross(m, N, memory, width) if memory else 0)
  return out + (flops.head(m, vocabulary, window) if heads else 0)


def write(tiers: list[Model], t: Tiered, number: int, vocabulary: int, window: int) -> float:
  """FLOPs of the rollouts of tier `number` from all starts of a window: one reading, then a token a start at a time."""
  m, N = tiers[number - 1], tier_nodes(t, number, window)
  starts, tokens = _rollout_tokens(t, window)
  memory, width = _memory(tiers, t, number, window)
  rollouts, R = starts * t.samples, t.rollout
  steps = R if t.layout == 'cross' and t.read == 'hidden' else R - 1
  a_step = flops.blocks(m, rollouts, _parts(t, number) * N + R) + flops.head(m, vocabulary, rollouts)
  a_step += flops.cross(m, rollouts, memory, width) if memory else 0
  return read(tiers, t, number, vocabulary, window, heads=False) + flops.head(m, vocabulary, starts) + steps * a_step


def write_below(tiers: list[Model], t: Tiered, vocabulary: int, window: int) -> float:
  """FLOPs of all rollouts of one window that the top tier reads."""
  total = sum(write(tiers, t, number, vocabulary, window) for number in range(1, len(tiers)))
  if len(tiers) > 1 and t.starts == 'entropy':
    total += flops.blocks(tiers[0], window, window) + flops.head(tiers[0], vocabulary, window)
  return total
