"""PARITY and FIRST by soft attention, for inputs of any length.

Chiang and Cholak 2022, "Overcoming a theoretical limitation of self-attention" (arXiv:2202.12172): sections 3
(PARITY), 4 (layer normalisation, which drives the cross-entropy to 0) and 5 (FIRST, and logits multiplied by log n).
Theirs normalises after a sublayer; in this decoder, which normalises before one, the same is had by adding the answer
with a weight that dwarfs the rest of the stream before the last norm. The weights depend on n through the position
table alone.
"""

import numpy as np

from rasp.machines.weights import Weights

ZERO, ONE, CLS = 0, 1, 2
SURE = 1e10  # the answer's weight before the last norm: the smallest answer, about 1e-6, still dwarfs all else


def parity(n: int) -> Weights:
  """Two layers, two heads: logit of token ONE minus ZERO at CLS, after n bits, is positive iff the ones are odd.

  Layer 1 averages: k/N ones and 1/N CLS. Its units leave a bump 1/N at position i = k alone. Layer 2 averages the bump
  over even and over odd positions. With norm the stream holds x and -x, so that its mean is 0.
  """
  N = n + 1
  names = [s + d for s in '+-' for d in ('zero', 'one', 'cls', 'i', 'cos', 'level', 'ones', 'unit', 'bump', 'answer')]
  w = Weights(names, 3, N, layers=2, heads=2, head_width=2, feedforward=6, bias=False, norm='layernorm',
              norm_epsilon=1e-12, mask='bidirectional')
  both = lambda v: {'+' + d: a for d, a in v.items()} | {'-' + d: -a for d, a in v.items()}
  for token, name in ((ZERO, 'zero'), (ONE, 'one'), (CLS, 'cls')):
    w.embed(token, both({name: 1.0}))
  for i in range(N):  # `level` keeps the norm of every position the same
    w.place(i, both({'i': i / N, 'cos': (-1.0) ** i, 'level': np.sqrt(1 - (i / N) ** 2)}))
  # The norm of the embedded stream: 2 (1 + 1 + 1) over 20 directions.
  for name in ('attention_norm', 'feedforward_norm'):
    w.params['blocks'][name]['scale'][:] = np.sqrt(6 / len(names))
  w.params['norm']['scale'][:] = 1
  w.head(0, 0, [], {'+ones': {'+one': 1.0}, '+unit': {'+cls': 1.0}})
  w.head(0, 1, [], {'-ones': {'+one': -1.0}, '-unit': {'+cls': -1.0}})
  for unit, shift, sign in ((0, -1, 1.0), (1, 0, -2.0), (2, 1, 1.0)):
    w.unit(0, unit, {'+ones': 1.0, '+i': -1.0, '+unit': shift}, both({'bump': sign}))
  for head, sign in ((0, 1.0), (1, -1.0)):  # even positions against, odd ones for
    w.head(1, head, [({'+cls': 4.0}, {'+cos': sign})], {'+answer': {'+bump': 1.0}, '-answer': {'+bump': 1.0}})
    for k, direction in enumerate(('+answer', '-answer')):
      w.params['blocks']['out']['weight'][1, head, k] = SURE * w.row({direction: -sign if k == 0 else sign})
  w.say(ONE, {'+answer': 10.0})
  w.say(ZERO, {'+answer': -10.0})
  return w


def first(n: int, scale: str = 'log') -> Weights:
  """Whether the first of n bits is one, said at CLS, the last token; causal, so that it runs with the cache.

  CLS scores the first position 4 higher than all others. A fixed score is drowned by n keys (scale 'one'); times the
  logarithm of the keys in view it is not ('log').
  """
  names = ['zero', 'one', 'cls', 'first', 'both', 'answer']
  w = Weights(names, 3, n + 1, layers=2, heads=1, head_width=1, feedforward=1, attention_scale=scale)
  for token, name in ((ZERO, 'zero'), (ONE, 'one'), (CLS, 'cls')):
    w.embed(token, {name: 1.0})
  w.place(0, {'first': 1.0})
  w.unit(0, 0, {'one': 1.0, 'first': 1.0}, {'both': 1.0})
  w.params['blocks']['up']['bias'][0, 0] = -1
  w.head(1, 0, [({'cls': 4.0}, {'first': 1.0})], {'answer': {'both': 1.0, 'first': -0.5}})
  w.say(ONE, {'answer': 40.0})
  w.say(ZERO, {'answer': -40.0})
  return w


def bits_lost(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Cross-entropy in bits of the label, ZERO or ONE, under [.., 3] logits of which those two count."""
  margin = np.where(label, 1, -1) * (logits[..., ONE].astype(float) - logits[..., ZERO].astype(float))
  return np.logaddexp(0, -margin) / np.log(2)
