"""Sampling: greedy with the cache equals greedy without, for prompts of unequal length; filters; stopping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework import generation, models
from framework.config import ConfigError
from framework.models import contract
from framework.tiered.rollouts import Sampler
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


def test_a_row_beyond_the_window_does_not_depend_on_its_batch():
  long = list(np.random.default_rng(0).integers(0, V, WINDOW + 9))
  for prompts in (PROMPTS, [PROMPTS[1], long, PROMPTS[0]]):
    together = run(prompts, 60)
    for row, prompt in zip(together, prompts):
      np.testing.assert_array_equal(run([prompt], 60)[0], row)
    assert len(set(together[:, WINDOW:].ravel())) > 1
  drawn = generation.Sampling(temperature=1.0)
  others = [PROMPTS[0], PROMPTS[0], PROMPTS[0]]  # of one length: all are read again at once
  np.testing.assert_array_equal(run(PROMPTS, 60, drawn)[0], run(others, 60, drawn)[0])


def test_a_row_that_has_stopped_leaves_the_others_alone():
  free = run(PROMPTS, 60)
  stop = next(t for t in range(V) if t in free[0, :9] and not all(t in row[:30] for row in free[1:]))
  out = run(PROMPTS, 60, generation.Sampling(temperature=0.0, stop=stop))
  for row, unstopped in zip(out, free):
    end = list(unstopped).index(stop) if stop in unstopped else out.shape[1]
    np.testing.assert_array_equal(row[:end], unstopped[:end])
    assert (row[end:] == stop).all()


@pytest.mark.parametrize('window', [1, 2, 3])
def test_the_smallest_windows(window):
  """Each token follows from the text since the row was last read again."""
  module, params = made()
  out = run(PROMPTS[:2], 7, window=window)
  for row, prompt in zip(out, PROMPTS):
    text, begin = list(prompt), 0 if len(prompt) < window else len(prompt) - max(1, window // 2)
    for token in row:
      assert [token] == greedy_without_cache(module, params, text[begin:], 1)
      text.append(int(token))
      begin = begin if len(text) - begin < window else len(text) - max(1, window // 2)


def test_nothing_asked_for_is_nothing_written():
  module, params = made()
  for prompts, tokens in ((PROMPTS, 0), ([], 5)):
    assert not list(generation.generate(module, params, prompts, tokens=tokens, window=WINDOW, settings=GREEDY, seed=0))
  with pytest.raises(ConfigError, match='prompt 1 is empty; expected at least 1 token'):
    run([[1], []], 5)


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


def test_extreme_temperatures_and_filters():
  rng = np.random.default_rng(0)
  logits = np.float32(rng.normal(size=9) * 30)
  greedy = np.eye(9)[logits.argmax()]
  for cold in (1e-5, 1e-7, 1e-30, 1e-40, 5e-324):
    np.testing.assert_array_equal(probabilities(logits, temperature=cold), greedy)
    np.testing.assert_array_equal(probabilities(logits, temperature=cold, top_k=4, top_p=0.5), greedy)
  for hot in (1e30, 1e40, 1.7e308, float('inf')):
    np.testing.assert_allclose(probabilities(logits, temperature=hot), np.full(9, 1 / 9), rtol=1e-6)
  ties = np.float32([1, 3, 3, -200])
  np.testing.assert_array_equal(probabilities(ties, temperature=1e-40), [0, 0.5, 0.5, 0])
  for all_of_them in (9, 10, 10**9):
    np.testing.assert_array_equal(probabilities(logits, top_k=all_of_them), probabilities(logits))
  for least in (1e-7, 1e-40, 5e-324):
    np.testing.assert_array_equal(probabilities(logits, top_p=least), greedy)
  many = jnp.tile(jnp.asarray(logits), (50, 1))
  assert set(map(int, generation.sample(many, jax.random.key(0), 0, generation.Sampling(1e-40)))) == {logits.argmax()}
  rollouts = Sampler(1e-40, 0)
  token_BxM = rollouts(jax.random.split(jax.random.key(0), (5, 10)), 0, many.reshape(5, 10, 9))
  assert set(map(int, token_BxM.ravel())) == {logits.argmax()}


@pytest.mark.parametrize('name,value,expected', [
    ('temperature', -1e-9, 'at least 0, nearest is 0'), ('temperature', float('nan'), 'at least 0'),
    ('top_k', -1, 'at least 0'), ('top_p', 0.0, 'more than 0 and at most 1, nearest is 1'),
    ('top_p', 1.5, 'more than 0'), ('top_p', float('nan'), 'more than 0')])
def test_settings_that_mean_nothing_are_refused(name, value, expected):
  with pytest.raises(ConfigError, match=f'{name} is {value}; expected {expected}'):
    generation.Sampling(**{name: value})


def test_samples_have_the_models_frequencies():
  logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.2])), (20000, 1))
  counts = np.bincount(generation.sample(logits, jax.random.key(0), 0, generation.Sampling()), minlength=3) / 20000
  np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.015)
