"""The Zipf language's entropies against counting, and the memoriser's loss against simulation."""

import itertools
import math

import numpy as np
import pytest

from framework.data import stream
from framework.data.tasks import zipf_pairs


def test_entropy_is_the_mean_surprise_of_every_triple():
  task = zipf_pairs.Task(symbols=3, exponent=0.7, noise=0.3)
  weights = [(k + 1) ** -1.7 for k in range(9)]
  joint = {}
  for k, v in itertools.product(range(9), range(3)):
    p = weights[k] / sum(weights) * (0.7 * (v == task.values[k]) + 0.3 / 3)
    joint[k % 3, k // 3, v] = p
  assert math.isclose(sum(joint.values()), 1.0)
  direct = -sum(p * math.log(p) for p in joint.values())
  assert math.isclose(task.entropy, direct / 3, rel_tol=1e-12)
  first = [sum(p for key, p in joint.items() if key[0] == b) for b in range(3)]
  assert math.isclose(task.entropies[0], -sum(p * math.log(p) for p in first), rel_tol=1e-12)


def test_the_surprise_of_every_triple_adds_to_its_probability():
  task = zipf_pairs.Task(symbols=3, exponent=0.7, noise=0.3)
  triples = np.array([(b1, 3 + b2, 6 + v) for b1, b2, v in itertools.product(range(3), repeat=3)])
  nats = task.nats(triples.ravel()).reshape(-1, 3)
  p = np.exp(-nats.sum(1))
  assert math.isclose(p.sum(), 1.0) and math.isclose((p * nats.sum(1)).sum() / 3, task.entropy)
  np.testing.assert_allclose((p[:, None] * nats).sum(0), task.entropies)
  text = stream.Stream(zipf_pairs.Task(), 0, 2**18).read(0, 96 * 2000)
  nats = zipf_pairs.Task().nats(text)
  assert abs(nats.mean() - zipf_pairs.Task().entropy) < 4 * nats.reshape(-1, 3).mean(1).std() / math.sqrt(64000)


def test_default_entropy():
  task = zipf_pairs.Task()
  assert round(task.entropy, 5) == 1.45259 and round(task.entropies[2], 4) == 1.3117


def test_drawn_text_has_the_frequencies_it_claims():
  task = zipf_pairs.Task(symbols=4, noise=0.4)
  b1, b2, v = stream.Stream(task, 0, 300_000).read(0, 300_000).reshape(-1, 3).T
  assert b1.max() == 3 and b2.min() == 4 and b2.max() == 7 and v.min() == 8 and v.max() == 11
  keys, n = b1 + 4 * (b2 - 4), len(b1)
  counts = np.bincount(keys, minlength=16)
  expected = n * task.probabilities
  assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi^2 of 15 degrees at 0.1 %
  hit = (v - 8 == task.values[keys]).mean()
  assert abs(hit - (0.6 + 0.4 / 4)) < 4 * math.sqrt(0.21 / n)


@pytest.mark.parametrize('facts,samples', [(3, 5), (40, 30), (200, 1000)])
def test_memoriser_loss_is_that_of_a_simulated_memoriser(facts, samples):
  known = 2**14
  p = np.arange(1.0, known + 1) ** -1.5
  tail = 2.0 * (known + 0.5) ** -0.5
  p /= p.sum() + tail
  rng, losses = np.random.default_rng(0), []
  for _ in range(4000):
    met = rng.random(facts) < -np.expm1(-samples * p[:facts])  # samples arrive as a Poisson process
    losses.append(1.0 + 2.0 * (1.0 - p[:facts][met].sum()))
  exact = float(zipf_pairs.memoriser_loss(facts, samples, 0.5, cost=2.0, known=known))
  assert abs(np.mean(losses) - exact) < 4 * np.std(losses) / math.sqrt(len(losses))


def test_memoriser_laws_in_the_limits():
  n = np.array([100, 400])
  by_facts = zipf_pairs.memoriser_loss(n, 1e12) - 1.0
  assert math.isclose(np.log(by_facts[0] / by_facts[1]) / np.log(4), 0.5, abs_tol=0.01)  # alpha = z
  by_samples = zipf_pairs.memoriser_loss(2**20, [1e4, 8e4]) - 1.0
  assert math.isclose(np.log(by_samples[0] / by_samples[1]) / np.log(8), 1 / 3, abs_tol=0.01)  # beta = z/(1+z)
  with pytest.raises(ValueError, match='at most the 100'):
    zipf_pairs.memoriser_loss(101, 5, known=100)
