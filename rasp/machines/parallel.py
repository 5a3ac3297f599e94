"""Massively parallel computation in attention layers: a shuffle round, and one cycle or two by pointer doubling.

Sanford, Hsu and Telgarsky 2024 (arXiv:2402.09268): R rounds of MPC are O(R) layers. A round lets every machine send s
words to any machines. Constant-round algorithms that RASP says in a line (broadcast, prefix sums, sorting) are in
rasp/library/rounds.py.
"""

import math
from collections.abc import Sequence

import numpy as np

from rasp.machines.weights import Weights

SHARP = 40.0


def shuffle(words: np.ndarray, destination: np.ndarray, seed: int = 0) -> Weights:
  """One attention layer that moves word (i, p) to slot destination[i, p] % s of machine destination[i, p] // s.

  Token i is machine i, whose s words w lie in the embedding, with their addresses and a key k_i. Slot r of machine i
  is head r, with a random sign vector u as query: k_i is the smallest vector with <u, k_i> = 1 on the s addresses that
  i sends to, so that the product is far below 1 on all others. Units then keep the word whose address is the slot's.

  Args:
    words: whole numbers [N, s]; destination: a permutation of 0 .. N s - 1, [N, s].

  Raises:
    ValueError: the addresses are too few dimensions apart.
  """
  N, s = words.shape
  d = math.ceil(12 * s * math.log(N * s))
  u = np.random.default_rng(seed).choice([-1.0, 1.0], (N * s, d)) / math.sqrt(d)
  keys = np.stack([np.linalg.lstsq(u[to], np.ones(s), rcond=None)[0] for to in destination])
  products = u @ keys.T  # [address, machine]
  sent = np.zeros_like(products, bool)
  sent[destination.ravel(), np.repeat(np.arange(N), s)] = True
  gap = float((products[sent].min() - products[~sent].max()))
  if gap < 0.05:
    raise ValueError(f'products of other addresses come within {gap:.2f}; expected another seed')
  sharp = math.log(N * max(N * s, np.abs(words).max()) * 1e4) / gap  # others weigh 1e-4 in all
  most = float(np.abs(words).max()) + 1
  names = ['one'] + [f'{kind}{p}' for kind in ('word', 'to', 'got') for p in range(s)] + [
      f'{kind}{r}_{p}' for kind in ('w', 't') for r in range(s) for p in range(s)] + [f'at{r}' for r in range(s)] + [
      f'k{j}' for j in range(d)] + [f'u{r}_{j}' for r in range(s) for j in range(d)]
  w = Weights(names, N, N, layers=1, heads=s, head_width=max(d, 2 * s), feedforward=4 * s * s, mask='bidirectional')
  for i in range(N):
    w.embed(i, {'one': 1} | {f'word{p}': words[i, p] for p in range(s)} |
            {f'to{p}': destination[i, p] for p in range(s)} | {f'k{j}': keys[i, j] for j in range(d)})
    w.place(i, {f'at{r}': i * s + r for r in range(s)} | {f'u{r}_{j}': u[i * s + r, j] for r in range(s)
                                                           for j in range(d)})
  unit = 0
  gate = 8 * most
  for r in range(s):
    w.head(0, r, [({f'u{r}_{j}': sharp}, {f'k{j}': 1}) for j in range(d)],
           {f'w{r}_{p}': {f'word{p}': 1} for p in range(s)} | {f't{r}_{p}': {f'to{p}': 1} for p in range(s)})
    for p in range(s):  # + word where its address is this slot's: a plateau around 0, closed from a distance of 3/4
      for edge, sign in ((0.5, 1), (-0.5, -1)):
        for up in (1, -1):
          w.unit(0, unit, {f't{r}_{p}': gate, f'at{r}': -gate, 'one': edge * gate, f'w{r}_{p}': up},
                 {f'got{r}': up * sign / 2})
          unit += 1
  return w


def one_cycle(nodes: int) -> Weights:
  """Whether a graph of cycles, given as each node's successor, is one cycle: token id = successor, position = node.

  ceil(log2 N) layers double the pointer and keep the least node on the way; the last layer averages the least node
  over all nodes, which is 0 for one cycle and at least 1/N for more. Logit 1 says one cycle, logit 0 more.
  """
  rounds = max(1, math.ceil(math.log2(nodes)))
  names = ('one', 'node', 'node2', 'next', 'least', 'next_there', 'least_there', 'others')
  w = Weights(names, max(nodes, 2), nodes, layers=rounds + 1, heads=1, head_width=2, feedforward=5,
              mask='bidirectional')
  for i in range(nodes):
    w.embed(i, {'next': i, 'one': 1})
    w.place(i, {'node': i, 'node2': i * i, 'least': i})
  for layer in range(rounds):
    w.head(layer, 0, [({'next': 2 * SHARP}, {'node': 1}), ({'one': -SHARP}, {'node2': 1})],
           {'next_there': {'next': 1}, 'least_there': {'least': 1}})
    w.unit(layer, 0, {'least': 1, 'least_there': -1}, {'least': -1})
    w.unit(layer, 1, {'next_there': 1, 'next': -1}, {'next': 1})
    w.unit(layer, 2, {'next': 1, 'next_there': -1}, {'next': -1})
    w.unit(layer, 3, {'next_there': 1}, {'next_there': -1})
    w.unit(layer, 4, {'least_there': 1}, {'least_there': -1})
  w.head(rounds, 0, [], {'others': {'least': 1}})
  w.say(1, {'one': 1})
  w.say(0, {'others': 4 * nodes})
  return w


def cycles(lengths: Sequence[int], seed: int) -> np.ndarray:
  """Successors of a graph of cycles of the given lengths on shuffled nodes."""
  order = np.random.default_rng(seed).permutation(sum(lengths))
  following = np.empty(len(order), int)
  for part in np.split(order, np.cumsum(lengths)[:-1]):
    following[part] = np.roll(part, -1)
  return following
