"""Times the rollouts of all starts of a window, and what they cost in training, beside the formulas of
framework.models.flops.

  python -m benchmarks.rollouts

Ways to the same tokens, in turns: all starts together from one reading of the window; each start alone with a cache of
its own, one row at a time and all rows at once; and, for the scale, one forward pass. A formula gives FLOPs; seconds
are those of the forward pass per FLOP, in the same round, so a ratio above 1 is what the shapes of rollouts cost beyond
their arithmetic. One device works; as in training, a device of a CPU has one thread. By the formula alone all starts
together are 3.4 times as cheap as each alone, where the text before each start is read again.
"""

import functools
import statistics
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared import launch
from framework import config as config_lib
from framework.models import contract
from framework.models import flops as count
from framework.tiered import model as tiered
from framework.tiered import nodes, rollouts
from framework.training import optimizer, state, step

WINDOW = flags.DEFINE_integer('window', 512, 'tokens of a window', lower_bound=2)
PERIOD = flags.DEFINE_integer('period', 64, 'tokens between starts', lower_bound=1)
ROLLOUT = flags.DEFINE_integer('rollout', 16, 'tokens of a rollout', lower_bound=2)
BATCH = flags.DEFINE_integer('batch', 8, 'windows', lower_bound=1)
WIDTH = flags.DEFINE_integer('width', 128, 'of both tiers', lower_bound=8)
LAYERS = flags.DEFINE_integer('layers', 4, 'of both tiers', lower_bound=1)
ROUNDS = flags.DEFINE_integer('rounds', 7, 'turns of each', lower_bound=1)
VOCABULARY = 257


def made(rollout: int, period: int) -> tuple[config_lib.Config, tiered.Tiered]:
  c = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=LAYERS.value, width=WIDTH.value, heads=4),
      data=config_lib.Data(window=WINDOW.value), training=config_lib.Training(batch=BATCH.value),
      tiered=config_lib.Tiered(period=period, rollout=rollout, random_phase=False, rollout_dropout=0.0)))
  return c, tiered.build(c, VOCABULARY)


def rows() -> dict[str, jax.Array]:
  B, L = BATCH.value, WINDOW.value
  tokens = jax.random.randint(jax.random.key(0), (B, L + 1), 0, VOCABULARY)
  return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'segments': jnp.ones((B, L), jnp.int32),
          'positions': jnp.tile(jnp.arange(L), (B, 1)), 'weights': jnp.ones((B, L)), 'rows': jnp.arange(B),
          'start': (jnp.arange(B) * L).astype(jnp.uint32)}


def alone(model: tiered.Tiered, params, batch, starts_G: list[int]):
  """Two functions that give [B, G, K, R]: for every start of all rows, and for every start of every row, the text up to
  it is read into a cache, which then grows by a token at a time."""
  tier, own, R = model.tiers[0], params['tier_1'], model.settings.rollout
  sampler = rollouts.Sampler(model.settings.temperature)

  @functools.partial(jax.jit, static_argnames='length')
  def one(own, batch, length: int):
    B = batch['tokens'].shape[0]
    real = jax.tree.map(lambda x: x[:, :length], nodes.tokens_only(*(batch[n] for n in ('tokens', 'positions',
                                                                                       'segments'))))
    keys_BxM = rollouts.keys(model.seed, 1, batch['start'][:, None] + jnp.uint32(length - 1), 1)
    x, cache = tier.read(own, real, cache=tier.decoder.empty_cache(B, length + R))
    first = sampler(keys_BxM, 0, tier.logits(own, x[:, -1:]))
    def body(carry, number):
      token_Bx1, cache = carry
      zero = jnp.zeros((B, 1), jnp.int32)
      new = nodes.Nodes(token_Bx1, zero + length + number, zero + 1, zero, zero, zero, zero)
      x, cache = tier.read(own, new, cache=cache)
      return (sampler(keys_BxM, number + 1, tier.logits(own, x)), cache), token_Bx1
    (last, _), tokens = jax.lax.scan(body, (first, cache), jnp.arange(R - 1))
    return jnp.concatenate([tokens, last[None]])[..., 0].T

  def each_start():
    return np.stack([np.asarray(one(own, batch, s + 1)) for s in starts_G], axis=1)[:, :, None]

  def each_start_of_each_row():
    single = [{name: x[b:b + 1] for name, x in batch.items()} for b in range(len(batch['tokens']))]
    return np.concatenate([np.stack([np.asarray(one(own, row, s + 1)) for s in starts_G], axis=1)[:, :, None]
                           for row in single])

  return each_start, each_start_of_each_row


def timed(ways: dict[str, object]) -> dict[str, list[float]]:
  """Seconds of each way in each round; every way has run once before."""
  times = {name: [] for name in ways}
  for way in ways.values():
    jax.block_until_ready(way())
  for _ in range(ROUNDS.value):
    for name, way in ways.items():
      begin = time.perf_counter()
      jax.block_until_ready(way())
      times[name].append(time.perf_counter() - begin)
  return times


def generation() -> None:
  c, model = made(ROLLOUT.value, PERIOD.value)
  params, batch = contract.init(model, jax.random.key(0)), rows()
  tier = model.tiers[0]
  starts_BxG = model.starts(params, batch)

  @jax.jit
  def forward(params, batch):
    real = nodes.tokens_only(batch['tokens'], batch['positions'], batch['segments'])
    return tier.logits(params['tier_1'], tier.read(params['tier_1'], real)[0])

  @jax.jit
  def together(params, batch):
    return model.write(params, batch, starts_BxG)[0].tokens_BxGxKxR

  same, each = alone(model, params, batch, [int(s) for s in starts_BxG[0]])
  assert (np.asarray(together(params, batch)) == each()).mean() > 0.99, 'the two ways write different text'
  times = timed({'forward': lambda: forward(params, batch), 'together': lambda: together(params, batch), 'alone': each,
                 'rows': same})
  formula = count.write(count.tier_models(c), c.tiered, 1, VOCABULARY, WINDOW.value)
  plain = count.forward(tier.decoder.config, VOCABULARY, WINDOW.value)
  expected = [t * formula / plain for t in times['forward']]
  for name, seconds in times.items():
    print(f'{name:10} {1e3 * statistics.median(seconds):9.1f} ms')
  over = statistics.median(a / b for a, b in zip(times['together'], expected))
  faster = statistics.median(a / b for a, b in zip(times['alone'], times['together']))
  print(f'by the formula {formula / plain:.2f} forward passes; measured {over:.2f} times that')
  grouped = statistics.median(a / b for a, b in zip(times['rows'], times['together']))
  print(f'all {starts_BxG.size} starts together are {faster:.1f} times as fast as each alone, and {grouped:.1f} times '
        f'as fast as the {BATCH.value} rows of each start together')


def training() -> None:
  print(f"{'rho':>6} {'R':>4} {'P':>4} {'formula':>8} {'measured':>9}   of a step of the same decoder without rollouts")
  for rollout, period in ((8, 64), (16, 64), (64, 64)):
    c, model = made(rollout, period)
    plain = tiered.build(c, VOCABULARY, tiers=1)
    batch, ways = rows(), {}
    for name, module in (('plain', plain), ('tiered', model)):
      params = contract.init(module, jax.random.key(0))
      update = optimizer.only(optax.adam(1e-3), list(params)[-1])
      zero = jnp.zeros((), jnp.int32)
      first = state.State(zero, zero, params, update.init(params))
      one = jax.jit(step.make(step.make_gradient(module, c.training), update, lambda _: 1e-3, c.training))
      ways[name] = functools.partial(one, first, batch)
    times = timed(ways)
    measured = statistics.median(a / b for a, b in zip(times['tiered'], times['plain']))
    formula = count.train_window(c, VOCABULARY) / count.train(plain.config, VOCABULARY, WINDOW.value)
    print(f'{rollout / period:6.3f} {rollout:4d} {period:4d} {formula:8.2f} {measured:9.2f}')


def main(_) -> None:
  launch.start_jax(made(ROLLOUT.value, PERIOD.value)[0])
  generation()
  training()


if __name__ == '__main__':
  app.run(main)
