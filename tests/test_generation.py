"""Sampling: greedy with the cache equals greedy without, for prompts of unequal length; filters; stopping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework import generation, models
from framework.models import contract
from tests.networks import build

V, WINDOW = 17, 24
GREEDY = generation.Sampling(temperature=0.0)


@functools.cache
def made(position='rope', scan=False):
  model = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(layers=2, width=32, heads=4, kv_heads=2, position=position, scan=scan,
                             tied_head=False))).model
  module = build(model, V, WINDOW)
  params = contract.init(module, jax.random.key(3))
  return module, jax.tree.map(lambda x: x * 2.5, params)  # sharper than at initialisation, so that text varies


@functools.partial(jax.jit, static_argnums=0)
def next_logits(module, params, tokens_1xL):
  L = tokens_1xL.shape[1]
  x, _ = module.apply({'params': params}, tokens_1xL, jnp.arange(L)[None], jnp.ones((1, L), jnp.int32))
  return module.logits(params, x)


def greedy_without_cache(module, params, prompt, tokens):
  """One row, the whole text read again for every token, padded on the right, which causality hides."""
  row = list(prompt)
  for _ in range(tokens):
    padded = np.zeros((1, WINDOW), np.int32)
    padded[0, :len(row)] = row
    row.append(int(np.argmax(next_logits(module, params, padded)[0, len(row) - 1])))
  return row[len(prompt):]


def run(prompts, tokens, settings=GREEDY, seed=0, window=WINDOW, chunk=4, **kwargs):
  module, params = made(**kwargs)
  prompts = [np.array(p, np.int32) for p in prompts]
  return np.concatenate(list(generation.generate(module, params, prompts, tokens=tokens, window=window,
                                                 settings=settings, seed=seed, chunk=chunk)), axis=1)


PROMPTS = [[16, 1, 2, 3, 4, 5, 6], [16, 9], [16, 3, 3, 8]]


@pytest.mark.parametrize('position', ['rope', 'learned', 'sinusoidal', 'none'])
@pytest.mark.parametrize('scan', [False, True])
def test_greedy_with_cache_equals_greedy_without(position, scan):
  out = run(PROMPTS, 15, position=position, scan=scan)
  module, params = made(position, scan)
  for row, prompt in zip(out, PROMPTS):
    assert list(row) == greedy_without_cache(module, params, prompt, 15)
  assert len(set(out.ravel())) > 1


def test_the_comparison_sees_a_cache_without_segments(monkeypatch):
  """Left padding that is read like text must change what is written."""
  module, params = made()
  right = run(PROMPTS, 15)
  class Leaky(type(module)):
    def apply(self, variables, tokens, positions, segments, **kwargs):
      return super().apply(variables, tokens, positions, jnp.ones_like(segments), **kwargs)
  leaky = Leaky(module.config, module.vocabulary, module.length)
  wrong = np.concatenate(list(generation.generate(
      leaky, params, [np.array(p, np.int32) for p in PROMPTS], tokens=15, window=WINDOW, settings=GREEDY, seed=0)), 1)
  assert (wrong[0] == right[0]).all() and (wrong[1:] != right[1:]).any()


def test_a_row_does_not_depend_on_its_batch():
  together = run(PROMPTS, 12)
  for row, prompt in zip(together, PROMPTS):
    np.testing.assert_array_equal(run([prompt], 12)[0], row)


def test_chunks_only_cut_the_stream():
  settings = generation.Sampling(temperature=1.0)
  np.testing.assert_array_equal(run(PROMPTS, 13, settings, chunk=1), run(PROMPTS, 13, settings, chunk=13))


def test_text_longer_than_the_window_continues_from_its_later_half():
  out = run([PROMPTS[0]], 60)
  assert out.shape == (1, 60)
  module, params = made()
  text = PROMPTS[0] + list(out[0])
  first = WINDOW - len(PROMPTS[0])  # then the cache is full
  again = text[:len(PROMPTS[0]) + first][-(WINDOW // 2):]
  assert list(out[0][first:first + WINDOW // 2]) == greedy_without_cache(module, params, again, WINDOW // 2)


def test_an_over_long_prompt_keeps_its_later_part():
  prompt = list(np.random.default_rng(0).integers(0, V, 100))
  module, params = made()
  assert list(run([prompt], 5)[0]) == greedy_without_cache(module, params, prompt[-(WINDOW // 2):], 5)


def test_seeds_differ_and_repeat():
  settings = generation.Sampling(temperature=1.0)
  one, same, other = run(PROMPTS, 12, settings, seed=1), run(PROMPTS, 12, settings, seed=1), run(PROMPTS, 12, settings,
                                                                                                   seed=2)
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()


def test_stop_fills_the_row():
  free = run(PROMPTS, 12)
  stop = int(free[0][4])
  out = run(PROMPTS, 12, generation.Sampling(temperature=0.0, stop=stop))
  first = list(free[0]).index(stop)
  assert list(out[0][:first + 1]) == list(free[0][:first + 1]) and (out[0][first:] == stop).all()
  for row, unstopped in zip(out[1:], free[1:]):
    end = list(unstopped).index(stop) if stop in unstopped else len(row)
    np.testing.assert_array_equal(row[:end], unstopped[:len(row)][:end])


def probabilities(logits, **settings):
  return np.asarray(jax.nn.softmax(generation.filter_logits(jnp.array([logits]), generation.Sampling(**settings))))[0]


def test_top_k_top_p_and_temperature_by_hand():
  logits = np.log([0.5, 0.25, 0.15, 0.1]).astype(np.float32)
  np.testing.assert_allclose(probabilities(logits, top_k=2), [2 / 3, 1 / 3, 0, 0], atol=1e-6)
  np.testing.assert_allclose(probabilities(logits, top_p=0.7), [2 / 3, 1 / 3, 0, 0], atol=1e-6)
  np.testing.assert_allclose(probabilities(logits, top_p=0.76), np.array([0.5, 0.25, 0.15, 0]) / 0.9, atol=1e-6)
  np.testing.assert_allclose(probabilities(logits, top_p=1e-6), [1, 0, 0, 0], atol=1e-6)
  np.testing.assert_allclose(probabilities(logits, top_k=3, top_p=0.5), [1, 0, 0, 0], atol=1e-6)
  squared = np.array([0.5, 0.25, 0.15, 0.1])**2
  np.testing.assert_allclose(probabilities(logits, temperature=0.5), squared / squared.sum(), atol=1e-6)
  np.testing.assert_allclose(probabilities(logits[::-1].copy(), top_k=1), [0, 0, 0, 1], atol=1e-6)


def test_samples_have_the_models_frequencies():
  logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.2])), (20000, 1))
  counts = np.bincount(generation.sample(logits, jax.random.key(0), 0, generation.Sampling()), minlength=3) / 20000
  np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.015)
