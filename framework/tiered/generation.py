"""Token by token with tiers: each tier has a cache over its own nodes, and at a start all but the top write rollouts.

The logits are those of training: `extend` at token i gives what `Tiered.hidden` gives at i for the same starts and
keys, because both lay out the same nodes and read them under the same rule.

Letters: B rows, L window, G the most starts of a window, K samples, R rollout length, T tiers.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from framework import generation
from framework.tiered import nodes, rollouts
from framework.tiered.content import Written
from framework.tiered.nodes import NEVER, Nodes
from framework.tiered.tier import Tier

Tiered = Any  # framework.tiered.model.Tiered, which imports this file


class State(flax.struct.PyTreeNode):
  """real: the tokens read so far, [B, L]. starts, below: starts so far [B, G], and their rollouts, a tier an entry.

  tiers: for each tier its cache, and the nodes in it. place: of the first token in the whole text, uint32 [B].
  """
  real: Nodes
  count: jax.Array
  starts: jax.Array
  below: list[Written]
  tiers: list[dict[str, Any]]
  place: jax.Array


def most_starts(model: Tiered) -> int:
  return model.settings.most_starts or model.window // model.settings.period


def empty(model: Tiered, place_B: jax.Array) -> State:
  """Before the first token of a window that begins at `place_B` of the whole text."""
  B, L, G, s = place_B.shape[0], model.window, most_starts(model), model.settings
  def blank(size: int) -> Nodes:
    zero = jnp.zeros((B, size), jnp.int32)
    return Nodes(zero, zero, zero, zero + NEVER, zero, zero, zero)
  def one(tier: Tier) -> dict[str, Any]:
    more = 0 if s.layout == 'cross' or not tier.lower else tier.lower * s.samples * s.rollout + (s.layout == 'stream')
    size = L + G * more
    return {'cache': tier.decoder.empty_cache(B, size), 'nodes': blank(size)}
  def blank_rollouts(tier: Tier) -> Written:
    shape = (B, G, s.samples, s.rollout)
    hidden = jnp.zeros((*shape, tier.decoder.config.width), tier.decoder.config.dtype)
    return Written(jnp.zeros(shape, jnp.int32), hidden if s.layout == 'cross' and s.read == 'hidden' else None)
  state = State(blank(L), jnp.zeros((), jnp.int32), jnp.full((B, G), NEVER, jnp.int32),
               [blank_rollouts(tier) for tier in model.tiers[:-1]], [one(tier) for tier in model.tiers],
               jnp.asarray(place_B, jnp.uint32))
  return jax.tree.map(jnp.copy, state)  # buffers of their own: `extend` reuses them


def _append(tier: Tier, params: Any, state: State, number: int, new: Nodes) -> tuple[jax.Array, State]:
  """Hidden states of new nodes of a tier, which its cache then holds."""
  held = state.tiers[number]
  at = held['cache'].index
  held_nodes = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice(x, y, (0, at)), held['nodes'], new)
  mask = tier.mask(new, held_nodes, state.starts) if tier.settings.layout == 'stamp' else None
  memory = tier.memory(params, new, state.real, state.starts, state.below[:number])
  x_BxNxD, cache = tier.read(params, new, mask_BxNxT=mask, key=held_nodes, memory=memory, cache=held['cache'])
  tiers = list(state.tiers)
  tiers[number] = {'cache': cache, 'nodes': held_nodes}
  return x_BxNxD, state.replace(tiers=tiers)


def _published(model: Tiered, tier: Tier, state: State, g: jax.Array, last: jax.Array) -> list[Nodes]:
  """The nodes that a tier reads when the rollouts of start g become readable, at token `last`."""
  s = model.settings
  if not tier.lower or s.layout == 'cross':
    return []
  starts_Bx1 = jax.lax.dynamic_slice_in_dim(state.starts, g, 1, axis=1)
  tokens = [jax.lax.dynamic_slice_in_dim(w.tokens_BxGxKxR, g, 1, axis=1) for w in state.below[:tier.lower]]
  rollouts_read = nodes.rollout_nodes(state.real, starts_Bx1, tokens, s.delay)
  # As in a whole window: start number g, and its K lines among the G K of each tier.
  K, G = s.samples, state.starts.shape[1]
  number_in_tier = (rollouts_read.line - 1) % K
  line = 1 + (rollouts_read.kind - 1) * G * K + g * K + number_in_tier
  rollouts_read = rollouts_read.replace(start=rollouts_read.start + g, line=line)
  if s.layout == 'stamp':
    return [rollouts_read]
  end = nodes.resume_nodes(state.real, starts_Bx1, tier.vocabulary, tier.lower, s.delay)
  return [rollouts_read, end.replace(tau=jnp.broadcast_to(last, end.tau.shape))]


@functools.partial(jax.jit, static_argnames=('model', 'writes', 'publishes'), donate_argnames=('state',))
def extend(model: Tiered, params: Any, state: State, tokens_BxN: jax.Array, number: jax.Array, due: jax.Array,
           writes: bool, publishes: bool) -> tuple[jax.Array, State]:
  """Reads tokens, of which only the last may be a start, and only the last one from which rollouts are readable.

  Args:
    writes: the last token is start number `number`; the tiers below the top write its rollouts.
    publishes: the rollouts of start number `due` become readable; with a delay of 0 these are the same rollouts.

  Returns the logits of the token after the last, float32 [B, V], and the new state.
  """
  B, n = tokens_BxN.shape
  first = state.count
  index_BxN = jnp.broadcast_to(first + jnp.arange(n, dtype=jnp.int32), (B, n))
  zero = jnp.zeros((B, n), jnp.int32)
  new = Nodes(tokens_BxN.astype(jnp.int32), index_BxN, zero + 1, index_BxN, zero, zero, zero)
  last = first + n - 1
  real = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice(x, y, (0, first)), state.real, new)
  starts = state.starts.at[:, number].set(last) if writes else state.starts
  state = state.replace(real=real, count=first + n, starts=starts)
  for t, tier in enumerate(model.tiers):
    own = params[f'tier_{t + 1}']
    published = _published(model, tier, state, due, last) if publishes else []
    x_BxNxD, state = _append(tier, own, state, t, nodes.concatenate(new, *published))
    speaker = -1 if published and model.settings.layout == 'stream' else n - 1
    x_Bx1xD = x_BxNxD[:, speaker][:, None]
    if writes and t < len(model.tiers) - 1:
      place_Bx1 = state.place[:, None] + last.astype(jnp.uint32)
      keys_BxM = rollouts.keys(model.seed, t + 1, place_Bx1, model.settings.samples)
      held, start_Bx1 = state.tiers[t], jnp.broadcast_to(last, (B, 1))
      written = tier.write(own, state.real, held['nodes'], held['cache'], x_Bx1xD, start_Bx1, state.starts,
                        state.below[:t], keys_BxM)
      below = list(state.below)
      below[t] = jax.tree.map(lambda x, y: x.at[:, number].set(y[:, 0]), below[t], written)
      state = state.replace(below=below)
  return tier.logits(own, x_Bx1xD)[:, 0], state


@functools.partial(jax.jit, static_argnames=('model',))
def _entropy(model: Tiered, params: Any, state: State, token_B: jax.Array) -> jax.Array:
  """Bits of tier 1's prediction after one more token."""
  index = jnp.broadcast_to(state.count, (token_B.shape[0], 1))
  zero = jnp.zeros_like(index)
  new = Nodes(token_B[:, None], index, zero + 1, index, zero, zero, zero)
  x_Bx1xD, _ = _append(model.tiers[0], params['tier_1'], state, 0, new)
  log_p = jax.nn.log_softmax(model.tiers[0].logits(params['tier_1'], x_Bx1xD)[:, 0])
  return -(jnp.exp(log_p) * log_p).sum(-1) / jnp.log(2.0)


class Reader:
  """Reads one row token by token and finds its starts; `rollouts` holds (start, [text of each tier]) as written."""

  def __init__(self, model: Tiered, params: Any, place: int = 0):
    self.model, self.params = model, params
    self.state = empty(model, jnp.asarray([place], jnp.uint32))
    self.count = 0
    self.starts: list[int] = []
    self.rollouts: list[tuple[int, list[np.ndarray]]] = []

  def _is_start(self, token: int) -> bool:
    s = self.model.settings
    if len(self.model.tiers) == 1 or len(self.starts) == most_starts(self.model):
      return False
    if s.starts == 'period':
      return (self.count + 1) % s.period == 0
    if s.starts == 'trigger':
      return token == s.trigger
    return float(_entropy(self.model, self.params, self.state, jnp.array([token], jnp.int32))[0]) >= s.entropy

  def read(self, tokens: Sequence[int]) -> jax.Array:
    """Logits of the token after them, [1, V]. Tokens up to the next event are read in one call."""
    block: list[int] = []
    for token in map(int, tokens):
      # Whether an entropy start stands here is known only when all before it has been read.
      if self.model.settings.starts == 'entropy' and block:
        logits, block = self._flush(block), []
      block.append(token)
      write = publish = -1
      if self._is_start(token):
        write = len(self.starts)
        self.starts.append(self.count)
      if (due := self.count - self.model.settings.delay) in self.starts:
        publish = self.starts.index(due)
      self.count += 1
      if write >= 0 or publish >= 0:
        logits, block = self._flush(block, write, publish), []
        if write >= 0:
          self.rollouts.append((self.starts[-1], [np.asarray(w.tokens_BxGxKxR[0, write]) for w in self.state.below]))
    return self._flush(block) if block else logits

  def _flush(self, block: list[int], write: int = -1, publish: int = -1) -> jax.Array:
    """A block in pieces whose lengths are powers of 2, so that few programs are compiled."""
    while block:
      size = 1 << (len(block).bit_length() - 1)
      done, block = block[:size], block[size:]
      logits, self.state = extend(self.model, self.params, self.state, jnp.array([done], jnp.int32), write, publish,
                                  not block and write >= 0, not block and publish >= 0)
    return logits


def generate(model: Tiered, params: Any, prompt: np.ndarray, *, tokens: int, settings: generation.Sampling,
             seed: int) -> Iterator[tuple[int, list[np.ndarray] | None]]:
  """Yields (token, the rollouts [K, R] of each tier that were written just before it, or None), `tokens` times.

  The top tier writes the text. When the window is full the later half of it is read again, and its rollouts written
  anew. Ends after `settings.stop`.
  """
  key, text, reader = jax.random.key(seed), [int(t) for t in prompt], None
  for count in range(tokens):
    if reader is None or reader.count >= model.window:
      keep = min(len(text), max(1, model.window - 1 if reader is None else model.window // 2))
      reader = Reader(model, params, len(text) - keep)
      unread = text[-keep:]
    logits, unread = reader.read(unread), []
    shown = reader.rollouts[-1][1] if reader.rollouts and reader.rollouts[-1][0] == reader.count - 1 else None
    token = int(generation.sample(logits, key, count, settings)[0])
    text.append(token)
    unread = [token]
    yield token, shown
    if token == settings.stop:
      return
