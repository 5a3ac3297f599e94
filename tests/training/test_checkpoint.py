"""Checkpoints: policy, exactness, fingerprints, and a state that is overwritten while it is being saved."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework.training import checkpoint, setup


@pytest.fixture(scope='module')
def made():
  config = config_lib.resolve(config_lib.Config(model=config_lib.Model(layers=2, width=64, heads=2)))
  s = setup.set_up(config, 300)
  return s, s.init()


def keep(**policy):
  return config_lib.Checkpoint(**policy)


def at(state, step):
  return state.replace(step=jnp.full_like(state.step, step))


def test_the_newest_and_every_kth_are_kept(made, tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep(keep=2, keep_every=30))
  for step in range(10, 101, 10):
    checkpoints.save(at(made[1], step), {})
    checkpoints.wait()
  assert checkpoints.steps() == [30, 60, 90, 100]
  checkpoints.close()


def test_restored_bits_and_record(made, tmp_path):
  s, state = made
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep())
  assert checkpoints.restore(s.like()) is None
  checkpoints.save(at(state, 7), {'targets': 2**40, 'seconds': 1.5})
  checkpoints.wait()
  restored, record = checkpoints.restore(s.like())
  jax.tree.map(np.testing.assert_array_equal, at(state, 7), restored)
  assert record['targets'] == 2**40 and record['seconds'] == 1.5 and record['step'] == 7
  checkpoints.close()


def test_buffers_may_be_overwritten_while_the_save_runs(made, tmp_path):
  s, state = made
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep())
  overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
  mine = jax.tree.map(jnp.copy, at(state, 3))
  expected = jax.device_get(mine)
  checkpoints.save(mine, {})
  for _ in range(20):
    mine = overwrite(mine)
  checkpoints.wait()
  jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(s.like())[0], expected)
  checkpoints.close()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int32'])
def test_a_fingerprint_sees_one_bit_and_two_swapped_values(dtype):
  x = jnp.arange(1, 13).reshape(3, 4).astype(dtype)
  base = checkpoint.fingerprint({'x': x})
  assert checkpoint.fingerprint({'x': x + 0}) == base
  swapped = x.at[0, 1].set(x[2, 3]).at[2, 3].set(x[0, 1])
  assert checkpoint.fingerprint({'x': swapped}) != base
  bits = np.asarray(x).copy().view(f'u{x.dtype.itemsize}')
  bits[1, 2] ^= 1
  assert checkpoint.fingerprint({'x': jnp.asarray(bits.view(x.dtype))}) != base


def test_a_fingerprint_sees_exchanged_signs_and_rows():
  """An even number of changed signs, and exchanged rows of bfloat16 values, once had the sum of the whole."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(16, 32)).astype(np.float32)
  base = checkpoint.fingerprint({'x': jnp.asarray(x)})
  assert len(base["['x']"]) == 32
  others = [-x, np.asarray(jnp.asarray(x, jnp.bfloat16)[::-1], np.float32)]
  for _ in range(100):
    changed = x.copy()
    changed.reshape(-1)[rng.choice(x.size, 2 * rng.integers(1, 20), replace=False)] *= -1
    others.append(changed)
  assert base not in [checkpoint.fingerprint({'x': jnp.asarray(other)}) for other in others]
  rough = jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)
  exchanged = rough.at[0].set(rough[3]).at[3].set(rough[0])
  assert checkpoint.fingerprint({'x': rough}) != checkpoint.fingerprint({'x': exchanged})


def change_record(folder, change):
  path = folder / 'record' / 'metadata'
  path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize('key, value', [('targets', 928), ('step', 0), ('shapes', {}), ('format', 3), ('format', 1)])
def test_a_changed_record_is_seen_and_the_one_before_is_used(made, tmp_path, key, value):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep())
  for step in (5, 6):
    checkpoints.save(at(made[1], step), {'targets': 128, 'seconds': 1.0})
  checkpoints.wait()
  change_record(tmp_path / 'c' / '6', lambda record: record | {key: value})
  assert checkpoints.restore(made[0].like())[1]['step'] == 5
  change_record(tmp_path / 'c' / '5', lambda record: {key: v for key, v in record.items() if key != 'digest'})
  with pytest.raises(config_lib.ConfigError, match='no usable checkpoint; checkpoint 6 cannot be used'):
    checkpoints.restore(made[0].like())
  checkpoints.close()


def test_a_checkpoint_of_the_first_format_is_read(made, tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep())
  checkpoints.save(at(made[1], 5), {'targets': 128, 'seconds': 1.0})
  checkpoints.wait()
  old = {'format': 1, 'fingerprint': checkpoint.fingerprint_1(at(made[1], 5))}
  change_record(tmp_path / 'c' / '5', lambda record: {k: v for k, v in record.items() if k != 'digest'} | old)
  assert checkpoints.restore(made[0].like())[1]['targets'] == 128
  old['fingerprint'][".params['embedding']"] ^= 1
  change_record(tmp_path / 'c' / '5', lambda record: record | old)
  with pytest.raises(config_lib.ConfigError, match="1 arrays differ from what was saved, first .params..embedding"):
    checkpoints.restore(made[0].like())
  checkpoints.close()


def test_a_reader_looks_again_when_the_run_has_removed_what_it_was_about_to_read(made, tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep(keep=1))
  checkpoints.save(at(made[1], 5), {})
  checkpoints.wait()
  reader = checkpoint.Checkpoints(tmp_path / 'c', read_only=True)
  assert reader.steps() == [5]
  checkpoints.save(at(made[1], 6), {})
  checkpoints.wait()
  assert checkpoints.steps() == [6]
  assert reader.restore(made[0].like())[1]['step'] == 6
  reader.close()
  checkpoints.close()


def test_another_shape_is_named(made, tmp_path):
  s, state = made
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep())
  checkpoints.save(at(state, 5), {})
  checkpoints.wait()
  other = setup.set_up(s.config, 301)
  with pytest.raises(config_lib.ConfigError, match=r"embedding.*\[300, 64\].*\[301, 64\]"):
    checkpoints.restore(other.like())
  checkpoints.close()


def test_parameters_are_read_without_the_optimizer(made, tmp_path):
  """A run can be evaluated by code whose optimizer keeps another state."""
  s, state = made
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep())
  checkpoints.save(at(state, 5), {})
  checkpoints.wait()
  checkpoints.close()
  config = dataclasses.replace(s.config, optimizer=dataclasses.replace(s.config.optimizer, name='muon'))
  like = setup.set_up(config, 300).like()
  reader = checkpoint.Checkpoints(tmp_path / 'c', read_only=True)
  with pytest.raises(config_lib.ConfigError, match=r'holds \.optimizer'):
    reader.restore(like)
  restored, record = reader.restore(like.replace(optimizer=None))
  jax.tree.map(np.testing.assert_array_equal, (at(state, 5).params, 5), (restored.params, record['step']))
  assert restored.optimizer is None
  with pytest.raises(config_lib.ConfigError, match=r'holds \.params'):
    reader.restore(setup.set_up(s.config, 301).like().replace(optimizer=None))
  reader.close()


def test_a_reader_leaves_an_unfinished_checkpoint_alone(made, tmp_path):
  s, state = made
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep())
  checkpoints.save(at(state, 5), {})
  checkpoints.wait()
  unfinished = tmp_path / 'c' / '9.orbax-checkpoint-tmp'
  unfinished.mkdir()
  reader = checkpoint.Checkpoints(tmp_path / 'c', read_only=True)
  assert reader.restore(s.like())[1]['step'] == 5
  reader.close()
  assert unfinished.is_dir()
  checkpoints.close()
