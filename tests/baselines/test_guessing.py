"""Shannon's bounds: his own small cases, an ideal subject of a known language, and the ranks of a model."""

import math

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.baselines import guessing
from framework.models import contract
from tests.networks import build


def test_cases_by_hand():
  assert guessing.bounds(np.ones(50, int)) == (0.0, 0.0)
  lower, upper = guessing.bounds(np.repeat([1, 2, 3, 4], 25))
  assert lower == pytest.approx(2) and upper == pytest.approx(2)
  # q = 1/2, 1/4, 1/4: 1 (1/4) 0 + 2 (0) 1 + 3 (1/4) log2 3, and 1.5 bits.
  lower, upper = guessing.bounds(np.array([1, 1, 2, 3]))
  assert lower == pytest.approx(0.75 * math.log2(3)) and upper == pytest.approx(1.5)


def test_an_ideal_subject_brackets_the_entropy_of_its_language():
  rng = np.random.default_rng(0)
  p_CxV = rng.dirichlet(np.full(12, 0.4), 6)  # six contexts, all equally common
  entropy = float(-(p_CxV * np.log2(p_CxV)).sum(1).mean())
  ranks = [1 + np.argsort(np.argsort(-p))[rng.choice(12, 40000, p=p)] for p in p_CxV]
  lower, upper = guessing.bounds(np.concatenate(ranks))
  assert lower < entropy < upper
  assert not guessing.bounds(13 - np.concatenate(ranks))[1] < entropy  # the upper one holds for any subject


def test_ranks_of_a_model():
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(name='markov', width=16, heads=2)))
  module = build(config.model, 11, 8)
  params = contract.init(module, jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {name: rng.integers(0, 11, (3, 8)).astype(np.int32) for name in ('tokens', 'targets')}
  batch |= {'positions': np.tile(np.arange(8, dtype=np.int32), (3, 1)), 'segments': np.ones((3, 8), np.int32)}
  found = np.asarray(guessing.guesses(module, params, batch))
  logits = np.asarray(module.logits(params, module.hidden(params, batch)))
  for row in range(3):
    for place in range(8):
      order = list(np.argsort(-logits[row, place], kind='stable'))
      assert found[row, place] == 1 + order.index(batch['targets'][row, place])
  equal = guessing.guesses(module, jax.tree.map(np.zeros_like, params), batch)
  np.testing.assert_array_equal(equal, batch['targets'] + 1)
