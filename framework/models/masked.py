"""A masked bidirectional transformer: the decoder's layers without causality, on text with a seventh of it hidden.

BERT (Devlin et al. 2019, arXiv:1810.04805, section 3.1) hides 15 % of a window at random and predicts those. Here the
places of a window are dealt into 7 groups, shuffled once for all; a window is read 7 times, each time with one group
hidden, and each token is predicted in the reading that hides it. So every token is a target once, as in every other
model, the loss is a function of the window alone, and the cost per target is BERT's.

The loss is a pseudo-likelihood, not a code length. Documents packed into a window read each other: a mask between them
would tell where a hidden token ends a document.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework.models import contract, decoder, flops

GROUPS = 7


def groups(length: int) -> np.ndarray:
  """The group of each place of a window, int32 [length]: sizes differ by at most 1."""
  return np.random.default_rng(0).permutation(length).astype(np.int32) % GROUPS


class Masked(decoder.Decoder):
  """A decoder of windows of `length` - 1 tokens whose vocabulary ends with the token that hides others."""
  two_sided = True
  empty_cache = None  # type: ignore[assignment]  # it answers neither
  attention = None  # type: ignore[assignment]

  def __call__(  # type: ignore[override]  # no cache, no memory, no attention of a caller's
      self, tokens_BxL, positions_BxL, segments_BxL, *, cache=None, keys_B=None):
    (B, L), R = tokens_BxL.shape, GROUPS
    T, hidden = L + 1, self.vocabulary - 1
    group_T = groups(T)
    # The last target is no input: its place, like padding, is hidden in every reading.
    real_BxT = jnp.pad(segments_BxL > 0, [(0, 0), (0, 1)])
    known_BxRxT = real_BxT[:, None] & (group_T != np.arange(R)[:, None])
    tokens_BxRxT = jnp.where(known_BxRxT, jnp.pad(tokens_BxL, [(0, 0), (0, 1)])[:, None], hidden)
    # Place j is a part of the text if j - 1 is, of which it is the target.
    segments_BxT = jnp.concatenate([real_BxT[:, :1], real_BxT[:, :-1]], axis=1).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B * R, T))
    x, _ = super().__call__(tokens_BxRxT.reshape(B * R, T), positions, jnp.repeat(segments_BxT, R, axis=0),
                            keys_B=None if keys_B is None else jnp.repeat(keys_B, R))
    return x.reshape(B, R, T, -1)[:, group_T[1:], np.arange(1, T)], None

  def head(self, params):
    """The matrix whose product with a state gives logits, [V, D]: nobody predicts the token that hides."""
    return super().head(params)[:self.vocabulary - 1]

  def flops(self) -> contract.Flops:
    c, T = self.config, self.length
    forward = GROUPS * flops.blocks(c, T, T) + flops.head(c, self.vocabulary - 1, T - 1)
    return contract.Flops(forward, 3 * forward)


def build(config: config_lib.Config, vocabulary: int) -> Masked:
  return Masked(dataclasses.replace(config.model, mask='bidirectional'), vocabulary + 1, config.data.window + 1)
