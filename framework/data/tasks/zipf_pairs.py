"""Keys of two symbols with Zipf's frequencies, each followed by a value: a language of facts whose entropy is known.

The text is triples b1 b2 v. The key (b1, b2) is one of V^2, the k-th most frequent with p_k ~ k^-(1+z); its value is
always the same symbol, or, one time in 1/noise, a uniform one. What can be learnt are the frequencies and the facts,
rare ones last, so loss falls with parameters and tokens as a power law towards an entropy in closed form. The three
places of a triple have alphabets of their own, so that a reader who starts anywhere knows the place.

Laws of facts with Zipf's frequencies: Hutter 2021, arXiv:2102.04074; Michaud et al. 2023, arXiv:2303.13506.
"""

import dataclasses
import functools

import numpy as np

from framework.data import tasks

TRIPLES = 32  # in a block


@dataclasses.dataclass(frozen=True)
class Task:
  """symbols: V of each place; exponent: z; noise: how often a value is drawn uniformly."""
  symbols: int = 64
  exponent: float = 0.5
  noise: float = 0.2

  def __post_init__(self):
    tasks.check_range(self, symbols=(2, 1024), exponent=(0.0, 10.0), noise=(0.0, 1.0))

  @property
  def length(self) -> int:
    return 3 * TRIPLES

  @property
  def alphabet(self) -> str:
    return tasks.characters(3 * self.symbols)

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """p of the keys, most frequent first, float64 [V^2]. Key k is b1 = k mod V, b2 = k div V."""
    p = np.arange(1.0, self.symbols ** 2 + 1) ** -(1.0 + self.exponent)
    return p / p.sum()

  @functools.cached_property
  def values(self) -> np.ndarray:
    """The value of each key, int [V^2]."""
    return np.random.Generator(np.random.Philox(key=0)).integers(self.symbols, size=self.symbols ** 2)

  @functools.cached_property
  def _cumulated(self) -> np.ndarray:
    return np.cumsum(self.probabilities)[:-1]

  def block(self, rng: np.random.Generator) -> np.ndarray:
    V = self.symbols
    pick, noisy, uniform = rng.random((3, TRIPLES))
    keys = np.searchsorted(self._cumulated, pick, side='right')
    value = np.where(noisy < self.noise, (uniform * V).astype(np.int64), self.values[keys])
    return np.stack([keys % V, V + keys // V, 2 * V + value], 1).ravel()

  def nats(self, tokens: np.ndarray) -> np.ndarray:
    """-ln p of each token after those before it, float64, of a text that begins with a triple."""
    V = self.symbols
    b1, b2, v = np.asarray(tokens).reshape(-1, 3).T - np.array([[0], [V], [2 * V]])
    p_KxV = self.probabilities.reshape(V, V)  # [b2, b1]
    known = v == self.values[b1 + V * b2]
    p = np.stack([p_KxV.sum(0)[b1], p_KxV[b2, b1] / p_KxV.sum(0)[b1],
                  np.where(known, 1.0 - self.noise, 0.0) + self.noise / V], 1)
    return -np.log(p).ravel()

  @property
  def entropies(self) -> tuple[float, float, float]:
    """H(b1), H(b2 | b1), H(v | b1 b2) in nats: what no reader can go below, at each place of a triple."""
    p_KxV = self.probabilities.reshape(self.symbols, self.symbols)  # [b2, b1]
    first = _entropy(p_KxV.sum(0))
    likely = 1.0 - self.noise + self.noise / self.symbols
    value = _entropy(np.array([likely] + [self.noise / self.symbols] * (self.symbols - 1)))
    return first, _entropy(p_KxV) - first, value

  @property
  def entropy(self) -> float:
    """Nats per token."""
    return sum(self.entropies) / 3.0


def _entropy(p: np.ndarray) -> float:
  p = p[p > 0]
  return float(-(p * np.log(p)).sum())


def memoriser_loss(facts, samples, exponent: float = 0.5, least: float = 1.0, cost: float = 1.0,
                   known: int = 2**22) -> np.ndarray:
  """Expected loss of a learner that stores the `facts` most frequent facts once it has met them in `samples` samples.

  least + cost * sum_k p_k [1 - 1(k <= facts) (1 - exp(-samples p_k))], p_k ~ k^-(1+exponent), over `known` facts and
  the tail beyond them, which nobody stores. Exact, with theory alpha = z, beta = z/(1+z), E = least. Broadcasts.
  """
  k = np.arange(1.0, known + 1)
  p = k ** -(1.0 + exponent)
  tail = (known + 0.5) ** -exponent / exponent  # of the sum beyond `known`, by the midpoint rule
  p /= p.sum() + tail
  facts, samples = np.broadcast_arrays(np.asarray(facts, np.int64), np.asarray(samples, float))
  if facts.size and facts.max() > known:
    raise ValueError(f'{facts.max()} facts are stored; expected at most the {known} that are summed')
  out = np.empty(facts.shape)
  for place in np.ndindex(facts.shape):
    stored = p[:facts[place]]
    out[place] = least + cost * (1.0 - (stored * -np.expm1(-samples[place] * stored)).sum())
  return out
