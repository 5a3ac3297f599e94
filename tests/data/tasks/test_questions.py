"""What all tasks with a question share: one block from numpy and jax.numpy, and refusals in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework.config import ConfigError
from framework.data import stream, tasks

SMALL = ('one_way', 'k_hop:text=30,symbols=3', 'addition:digits=4,chain=2', 'path_star:arms=4,nodes=17')


@pytest.mark.parametrize('text', SMALL)
def test_jax_and_numpy_spell_alike(text):
  task = stream.task_of(text)
  assert isinstance(task, tasks.Question)
  u = np.random.default_rng(0).random((64, task.draws)).astype(np.float32)
  u[0] = np.float32(1) - np.float32(2)**-24  # the highest: rounding must not lead beyond the last symbol
  blocks = jax.jit(jax.vmap(lambda row: task.spell(row, jnp)))(u)
  assert blocks.shape == (64, task.length) and blocks.max() == task.end and (blocks[:, 1:] < task.end).all()
  np.testing.assert_array_equal(blocks, [task.spell(row, np) for row in u])


@pytest.mark.parametrize('choices', [3, 7, 10, 1000])
def test_pick_stays_below_its_choices(choices):
  u = np.array([0.0, 1 - 2**-24], np.float32)
  assert list(tasks.pick(u, choices, np)) == [0, choices - 1]


@pytest.mark.parametrize('text,words', [
    ('addition:chain=8', 'chain=8; expected 0 to 7, nearest is 7'), ('addition:base=1', 'base=1; expected 2 to 1000'),
    ('k_hop:hops=0', 'hops=0; expected 1 to 10000, nearest is 1'), ('k_hop:symbols=1', 'symbols=1; expected 2'),
    ('path_star:arms=1', 'arms=1; expected 2'), ('path_star:nodes=10', 'nodes=10; expected 16'),
    ('path_star:arms=900,nodes_of_arm=9', 'at most 128'), ('zipf_pairs:noise=nan', 'nearest is 0.0'),
    ('one_way:p=7', 'p=7.*no permutation'), ('one_way:p=9', 'p=9.*prime'), ('one_way:kind=cub', "did you mean 'cube'"),
    ('one_way:maps=1', 'maps=1'), ('one_way:maps=21', '2 to 20'), ('one_way:steps=0', 'steps=0; expected 1')])
def test_refusals(text, words):
  with pytest.raises(ConfigError, match=words):
    stream.task_of(text)
