"""Settings that published families need, on a mesh that splits parameters, heads and channels: the losses of one device."""

import jax
import numpy as np
import pytest

from framework import config as config_lib
from framework.config import ConfigError
from framework.training import layout, setup
from tests.training.test_partition import L, V, batch_of

SETTINGS = {
    'olmo2': {'norm_place': 'after', 'query_norm': 'whole', 'bias': True, 'bias_on': 'qkv,out', 'activation': 'geglu'},
    'gemma3': {'norm_place': 'both', 'query_norm': 'head', 'sliding_window': 5, 'global_every': 2, 'scan': True,
               'rope_base_local': 50.0, 'embedding_scale': 4.0, 'kv_heads': 2},
    'neox': {'parallel': True, 'rope_share': 0.5, 'norm': 'layernorm', 'bias': True, 'norm_scale': False},
}


def losses(mesh, sizes, **settings):
  config = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(**{'layers': 2, 'width': 16, 'heads': 4} | settings), data=config_lib.Data(window=L),
      optimizer=config_lib.Optimizer(learning_rate=1e-2, warmup_steps=1),
      training=config_lib.Training(steps=3, batch=16, partition='mesh', mesh=mesh)))
  s = setup.set_up(config, V, layout.make_mesh(jax.devices()[:int(np.prod(list(sizes.values())))], sizes))
  layout.check(config, s.module, s.mesh.shape)
  spread, state, out = s.compile_step(), s.init(), []
  for number in range(3):
    state, metrics = spread(state, layout.split_rows(batch_of(number), s.mesh))
    out.append(float(metrics['loss']))
  return out


@pytest.mark.parametrize('settings', [pytest.param(value, id=name, marks=[] if name == 'gemma3' else pytest.mark.slow)
                                      for name, value in SETTINGS.items()])
def test_a_mesh_gives_the_losses_of_one_device(settings):
  one = losses('data=1', {'data': 1}, **settings)
  split = losses('fsdp=2,tensor=2', {'fsdp': 2, 'tensor': 2}, **settings)
  np.testing.assert_allclose(split, one, atol=2e-5, rtol=0)
  assert one[2] < one[0]


def test_a_window_is_refused_where_windows_are_split():
  with pytest.raises(ConfigError, match='which splits windows, with model.sliding_window 5; expected 0'):
    losses('sequence=2', {'sequence': 2}, sliding_window=5)
