"""The tiered model against itself: layouts, batches, devices, starts, warm starts, stop-gradients, what it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from framework import config as config_lib
from framework import cross_entropy, timestamps
from framework.models import contract
from framework.tiered import content as contents
from framework.tiered import nodes, rollouts
from framework.tiered import model as tiered
from framework.tiered.model import Written
from framework.training import evaluation, layout, optimizer, partition, state, step
from tests.tiered.test_model import B, K, L, LAYOUTS, P, R, V, fresh, jit, logits, made, text, written


def decoder_logits(model, params, batch, number=2):
  """The decoder of a tier, alone."""
  tier, own = model.tiers[number - 1], params[f'tier_{number}']
  blocks = {name: x for name, x in own['decoder']['blocks'].items() if not name.startswith('cross')}
  own = own | {'decoder': own['decoder'] | {'blocks': blocks}}
  x, _ = jit(lambda p, b: tier.decoder.apply({'params': p['decoder']}, b['tokens'], b['positions'], b['segments']))(
      own, batch)
  return tier.logits(own, x)


def test_stream_equals_the_same_edges_by_stamps():
  """All nodes unsorted, with the mask of the stream's order, which is written out here."""
  model, params = made()
  batch, tier = text(), model.tiers[1]
  starts, (said,) = written(model, params, batch)
  real = nodes.tokens_only(*(jnp.asarray(batch[name]) for name in ('tokens', 'positions', 'segments')))
  unsorted = nodes.concatenate(real, nodes.rollout_nodes(real, starts, [said], 0),
                               nodes.resume_nodes(real, starts, V, 1, 0))
  place = np.zeros(unsorted.tau.shape, int)
  for b in range(B):
    groups = [0] * L + [1] * (said.size // B) + [2] * starts.shape[1]
    order = sorted(range(len(groups)), key=lambda n: (int(unsorted.tau[b, n]), groups[n], n))
    place[b, order] = np.arange(len(order))
  mask = jnp.asarray(place[:, None, :] <= place[:, :, None])
  x, _ = jit(lambda p, n, m: tier.read(p, n, mask_BxNxT=m, key=n))(params['tier_2'], unsorted, mask)
  found = np.asarray(tier.logits(params['tier_2'], x))
  expected = np.asarray(logits(model, params, batch))
  for b in range(B):
    for i in range(L):
      speaker = L + said.size // B + list(np.asarray(starts[b])).index(i) if i in starts[b] else i
      np.testing.assert_allclose(found[b, speaker], expected[b, i], atol=2e-4)


@pytest.mark.parametrize('name', ['stream', 'stamp', 'cross'])
def test_before_the_first_start_a_tier_is_a_decoder(name):
  model, params = made(**LAYOUTS[name])
  batch = text()
  starts, _ = written(model, params, batch)
  alone, whole = decoder_logits(model, params, batch), logits(model, params, batch)
  for b in range(B):
    first = int(starts[b, 0])
    np.testing.assert_allclose(whole[b, :first], alone[b, :first], atol=2e-4)
    assert np.abs(whole[b, first] - alone[b, first]).max() > 1e-3


@pytest.mark.parametrize('name', ['stream', 'stamp', 'cross'])
def test_the_first_tokens_see_rollouts_that_are_read_too_early(name, monkeypatch):
  model, params = made(**LAYOUTS[name])
  batch = text()
  starts, _ = written(model, params, batch)
  alone = decoder_logits(model, params, batch)
  right = timestamps.rollout_stamps
  monkeypatch.setattr(timestamps, 'rollout_stamps', lambda starts, length, delay: right(starts, length, delay - 2))
  whole = fresh()(model, params, batch)
  for b in range(B):
    assert np.abs(whole[b, int(starts[b, 0]) - 1] - alone[b, int(starts[b, 0]) - 1]).max() > 1e-3


def test_a_closed_gate_is_the_decoder_alone():
  model, _ = made(layout='cross')
  params = contract.init(model, jax.random.key(0))
  batch = text()
  np.testing.assert_allclose(logits(model, params, batch), decoder_logits(model, params, batch), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('settings,tolerance', [({'layout': 'cross'}, 1e-6),
                                                ({'layout': 'stamp', 'first_bias': -20.0}, 1e-6)])
def test_a_warm_tier_begins_as_the_tier_below(settings, tolerance):
  model, _ = made(**settings)
  params, new = (contract.init(model, jax.random.key(n)) for n in (0, 1))
  start = tiered.warm_start(params | {'tier_2': new['tier_2']}, 2)
  batch = text()
  below = decoder_logits(model, params, batch, 1)
  assert np.abs(logits(model, start, batch) - below).max() <= tolerance * np.abs(below).max()
  cold = logits(model, params | {'tier_2': new['tier_2']}, batch)
  assert np.abs(cold - below).max() > 0.1 * np.abs(below).max()


def test_rollouts_do_not_depend_on_their_batch():
  model, params = made()
  batch = text(rows=4)
  starts, (said,) = written(model, params, batch)
  order = [2, 0]
  few_starts, (few,) = written(model, params, {name: x[order] for name, x in batch.items()})
  np.testing.assert_array_equal(few_starts, starts[np.array(order)])
  np.testing.assert_array_equal(few, said[np.array(order)])
  elsewhere = written(model, params, batch | {'start': batch['start'] + 1})[1][0]
  assert (elsewhere != said).any()  # keys do depend on the place


def test_rollouts_do_not_depend_on_the_window_that_shows_their_document():
  """The same document at two places of a window, after another document."""
  model, params = made(starts='trigger', trigger=3, most_starts=2)
  document = np.array([10, 1, 2, 3, 5, 6, 3, 7], np.int32)
  def window(offset):
    batch = text(rows=1, seed=offset)
    tokens = np.where(batch['tokens'] == 3, 4, batch['tokens'])
    tokens[0, offset:offset + 8] = document
    segments, positions = batch['segments'].copy(), batch['positions'].copy()
    segments[0, offset:], positions[0, offset:] = 2, np.arange(L - offset)
    return batch | {'tokens': tokens, 'segments': segments, 'positions': positions,
                    'start': np.array([500 - offset], np.uint32)}
  (one_starts, (one,)), (two_starts, (two,)) = (written(model, params, window(offset)) for offset in (4, 9))
  np.testing.assert_array_equal(one_starts + 5, two_starts)
  np.testing.assert_array_equal(one, two)


def one_by_one(run):
  """How many rollouts differ between all starts of a window together and each of them alone, and of how many."""
  model, params = made()
  batch = text()
  starts, (said,) = run(model, params, batch)
  differ = count = 0
  for g in range(starts.shape[1]):
    alone = jnp.where(jnp.arange(starts.shape[1]) == g, starts, nodes.NEVER)
    found = run(model, params, batch | {'starts': alone})[1][0]
    there = np.asarray(starts[:, g]) < nodes.NEVER
    differ += int((found[:, g][there] != said[:, g][there]).any((1, 2)).sum())
    count += int(there.sum())
  return differ, count


def test_starts_together_equal_each_start_alone():
  differ, count = one_by_one(written)
  assert differ == 0 and count > B


def test_the_test_of_starts_sees_keys_that_count_from_the_first_start(monkeypatch):
  right = rollouts.keys
  monkeypatch.setattr(rollouts, 'keys', lambda seed, tier, place, samples: right(
      seed, tier, place - place.min(axis=1, keepdims=True), samples))
  def run(model, params, batch):
    starts = model.starts(params, batch)
    return starts, [w.tokens_BxGxKxR for w in model.write(params, batch, starts)]
  assert one_by_one(jit(run, static_argnums=0))[0] > 0


def gradient(model, params, batch):
  def loss(params):
    return cross_entropy.sum_nats(model.hidden(params, batch), model.head(params), batch['targets'], batch['weights'])
  return jit(jax.grad(loss))(params)


@pytest.mark.parametrize('layout', ['stream', 'cross'])
def test_no_gradient_reaches_a_lower_tier(layout):
  model, params = made(tiers=3, layout=layout, **({'read': 'hidden'} if layout == 'cross' else {}))
  found = gradient(model, params, text())
  for name in ('tier_1', 'tier_2'):
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(found[name]))
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found['tier_3']['decoder']['blocks']))


def test_the_gradient_test_sees_a_path_through_hidden_states(monkeypatch):
  model, params = made(layout='cross', read='hidden')
  monkeypatch.setattr(jax.lax, 'stop_gradient', lambda x: x)
  found = gradient(model, params, text())
  assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found['tier_1']))


def test_the_mean_of_draws_is_taken_over_probabilities():
  """Beside the code length of one draw stands that of the mean of several: shorter, and the seeds' own."""
  model, params = made()
  mesh = layout.make_mesh(jax.devices()[:1])
  batch = layout.split_rows(text(), mesh)
  found = evaluation.compile_nats(model, mesh, draws=3)(params, batch)
  @jit
  def nats(params, batch, seed):
    one = dataclasses.replace(model, seed=seed)
    return cross_entropy.token_nats(one.hidden(params, batch), one.head(params), batch['targets'])
  each = np.stack([nats(params, batch, seed) for seed in range(3)])
  np.testing.assert_allclose(found, -np.log(np.exp(-each).mean(0)), rtol=1e-4, atol=1e-5)
  assert found.mean() < each.mean() - 1e-3  # and so it is not the mean of the lengths
  np.testing.assert_allclose(evaluation.compile_nats(model, mesh)(params, batch), each[0], rtol=1e-4, atol=1e-5)


def train_step(devices):
  """Losses of three steps of tier 2, on so many devices."""
  model, params = made()
  update = optimizer.only(optax.adam(1e-2), 'tier_2')
  settings = config_lib.Training(batch=4)
  mesh = layout.make_mesh(jax.devices()[:devices])
  zero = jnp.zeros((), jnp.int32)
  now = state.State(zero, zero, params, update.init(params))
  where = layout.shardings(now, model, mesh)
  pure = step.make(partition.spread_gradient(model, settings, mesh), update, lambda _: 0.01, settings)
  spread = partition.spread(pure, mesh, where)
  now = layout.put(now, where)  # copies: the step reuses its buffers
  losses = []
  for number in range(3):
    now, metrics = spread(now, layout.split_rows(text(rows=4, seed=number), mesh))
    losses.append(float(metrics['loss']))
  return losses


def test_four_devices_equal_one():
  assert len(jax.devices()) == 4
  np.testing.assert_allclose(train_step(4), train_step(1), rtol=3e-5)


# What it learns from uniform noise: nothing, unless something leaks.


def noise(number, rows=32):
  key = jax.random.fold_in(jax.random.key(7), number)
  tokens = jax.random.randint(key, (rows, L + 1), 0, V)
  base = {name: jnp.asarray(x) for name, x in text(rows=rows).items()}
  return base | {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:],
                 'start': (jnp.arange(rows) * 50 + number * 50 * rows).astype(jnp.uint32)}


def echo(self, params, batch, starts):
  """A bottom that says the token at its start again and again: whoever reads it too early knows that token."""
  tokens = nodes.take(batch['tokens'], starts)
  return [Written(jnp.broadcast_to(tokens[:, :, None, None], (*tokens.shape, K, R)))]


def learn(model, steps=200):
  """Nats [rows, L] of new noise after training tier 2 on noise, and the starts."""
  params = contract.init(model, jax.random.key(3))
  update = optimizer.only(optax.adam(optax.warmup_cosine_decay_schedule(0, 2e-2, 50, steps)), 'tier_2')
  def loss(params, batch):
    x = model.hidden(params, batch)
    return cross_entropy.sum_nats(x, model.head(params), batch['targets'], batch['weights']) / batch['weights'].sum()
  def one(carry, number):
    params, opt = carry
    grads = jax.grad(loss)(params, noise(number))
    updates, opt = update.update(grads, opt, params)
    return (optax.apply_updates(params, updates), opt), None
  @jax.jit
  def everything(params):
    (params, _), _ = jax.lax.scan(one, (params, update.init(params)), jnp.arange(steps))
    batch = noise(10**4, 256)
    nats = cross_entropy.token_nats(model.hidden(params, batch), model.head(params), batch['targets'])
    return nats, model.starts(params, batch)
  return jax.device_get(everything(params))


@pytest.mark.parametrize('name', [pytest.param('stream', marks=pytest.mark.slow), 'stamp_last'])
def test_uniform_noise_cannot_be_predicted(name, monkeypatch):
  monkeypatch.setattr(tiered.Tiered, 'write', echo)
  nats, _ = learn(made(**LAYOUTS[name])[0], steps=100)
  assert nats.mean() > np.log(V) - 3 * nats.std() / nats.size**0.5


def test_noise_behind_a_mask_off_by_one_can_be_predicted(monkeypatch):
  monkeypatch.setattr(tiered.Tiered, 'write', echo)
  rule = timestamps.may_read
  monkeypatch.setattr(timestamps, 'may_read', lambda q, k, *segments: rule(q + 1, k, *segments))
  nats, _ = learn(made(**LAYOUTS['stamp_last'])[0])
  assert nats.mean() < np.log(V) - 10 * nats.std() / nats.size**0.5


def oracle():
  """Nats of noise after training on the true future, and which of its targets a rollout covered."""
  nats, starts = learn(made(content='oracle', random_phase=False, samples=1)[0], steps=600)
  covered = np.zeros(nats.shape, bool)  # target i + 1 is in a rollout of start s where s < i + 1 <= s + R
  for row, s_G in enumerate(starts):
    for s in s_G[s_G < nodes.NEVER]:
      covered[row, s:s + R] = True
  return nats, covered


def test_the_oracle_tells_what_it_covers_and_nothing_else():
  nats, covered = oracle()
  assert nats[covered].max() < 0.02
  error = nats[~covered].std() / (~covered).sum()**0.5
  assert abs(nats[~covered].mean() - np.log(V)) < 0.002 + 3 * error


@pytest.mark.slow
def test_the_oracle_test_sees_an_oracle_that_looks_one_token_too_far(monkeypatch):
  right = contents.control
  monkeypatch.setattr(contents, 'control', lambda below, batch, starts, *more: right(below, batch, starts + 1, *more))
  nats, covered = oracle()
  assert nats[covered].max() > 1 and nats[:, P - 1::P].mean() > 0.9 * np.log(V)


def test_controls_put_what_they_say_in_place_of_rollouts():
  batch = text(rows=3)
  def read(content):
    model, params = made(content=content, corruption=0.5)
    starts, (said,) = written(model, params, batch)
    (out,) = contents.control([Written(said)], batch, starts, model.settings, V, 0)
    return np.asarray(starts), np.asarray(said), np.asarray(out.tokens_BxGxKxR)
  starts, said, own = read('own')
  np.testing.assert_array_equal(own, said)
  assert (read('filler')[2] == V + 1).all()
  np.testing.assert_array_equal(read('shuffled')[2], np.roll(said, 1, axis=0))
  oracle, corrupted, other = (read(content)[2] for content in ('oracle', 'corrupted', 'other_document'))
  whole = np.concatenate([batch['tokens'], batch['targets'][:, -1:]], axis=1)
  compared = 0
  for b, s_G in enumerate(starts):
    for g, s in enumerate(s_G):
      if s + R <= L:
        np.testing.assert_array_equal(oracle[b, g], np.tile(whole[b, s + 1:s + R + 1], (K, 1)))
        np.testing.assert_array_equal(other[b, g], np.tile(whole[b - 1, s + 1:s + R + 1], (K, 1)))
        assert ((corrupted[b, g] == oracle[b, g]) | (corrupted[b, g] == said[b, g])).all()
        compared += 1
  assert compared > 4 and 0.2 < (corrupted != oracle).mean() < 0.7
  one = {name: x[:1] for name, x in batch.items()}
  with pytest.raises(config_lib.ConfigError, match='at least 2'):
    contents.control([Written(said[:1])], one, starts[:1], made(content='shuffled')[0].settings, V, 0)


def test_dropped_starts_are_as_if_they_were_none():
  model, params = made()
  batch = text()
  starts, said = written(model, params, batch)
  keys = jax.random.split(jax.random.key(0), B)
  left, below = contents.drop(starts, [Written(said[0])], keys, 0.5)
  assert (np.sort(np.asarray(left), axis=1) == np.asarray(left)).all() and (left != starts).any()
  for b in range(B):
    for g, s in enumerate(np.asarray(left)[b]):
      if s < nodes.NEVER:
        np.testing.assert_array_equal(below[0].tokens_BxGxKxR[b, g], said[0][b, list(np.asarray(starts)[b]).index(s)])
  none, _ = contents.drop(starts, [Written(said[0])], keys, 1.0)
  assert (none == nodes.NEVER).all()
  np.testing.assert_allclose(logits(model, params, batch | {'starts': none}), decoder_logits(model, params, batch),
                             atol=2e-4)
