"""Times greedy generation of 512 tokens with the cache and without it, in turns, and prints the ratio.

  python -m benchmarks.generation
"""

import statistics
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework import generation
from framework.models import contract
from framework.models.decoder import Decoder

TOKENS = flags.DEFINE_integer('tokens', 512, 'tokens to write', lower_bound=2)
ROUNDS = flags.DEFINE_integer('rounds', 5, 'turns of each', lower_bound=1)


def main(_) -> None:
  model = config_lib.resolve(config_lib.Config(model=config_lib.Model(layers=4, width=128, heads=4))).model
  window = TOKENS.value + 16
  module = Decoder(model, 257, window)
  params = contract.init(module, jax.random.key(0))
  prompt = np.arange(8, dtype=np.int32)
  settings = generation.Sampling(temperature=0.0)

  def with_cache():
    return np.concatenate(list(generation.generate(module, params, [prompt], tokens=TOKENS.value, window=window,
                                                   settings=settings, seed=0)), axis=1)[0]

  @jax.jit
  def without(params, row):
    """The whole text is read again for every token, in one compiled loop."""
    def body(n, row):
      x, _ = module.apply({'params': params}, row[None], jnp.arange(window)[None], jnp.ones((1, window), jnp.int32))
      return row.at[n].set(jnp.argmax(module.logits(params, x[:, n - 1][:, None])[0, 0]).astype(jnp.int32))
    return jax.lax.fori_loop(len(prompt), len(prompt) + TOKENS.value, body, row)

  def without_cache():
    return np.asarray(without(params, jnp.zeros(window, jnp.int32).at[:len(prompt)].set(prompt)))[
        len(prompt):len(prompt) + TOKENS.value]

  assert (with_cache() == without_cache()).all(), 'greedy text differs'  # and both are compiled
  times = {with_cache: [], without_cache: []}
  for _ in range(ROUNDS.value):
    for way in times:
      begin = time.perf_counter()
      way()
      times[way].append(time.perf_counter() - begin)
  for way, seconds in times.items():
    print(f'{way.__name__:14} {TOKENS.value / statistics.median(seconds):10,.0f} tokens/s')
  ratio = statistics.median(b / a for a, b in zip(times[with_cache], times[without_cache]))
  print(f'the cache makes {TOKENS.value} tokens {ratio:.1f} times as fast (median of {ROUNDS.value} pairs)')


if __name__ == '__main__':
  app.run(main)
