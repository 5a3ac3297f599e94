"""In bfloat16 the gradient of a table adds up in float32: a common token is taken thousands of times in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from framework import config as config_lib
from framework import models, sharding
from framework.models import contract
from framework.training import layout, losses

VOCABULARY = 64
CASES = [{}, {'model.position': 'learned'}, {'model.name': 'lstm'}, {'model.name': 'birnn'}, {'model.name': 'tiered', 'tiered.period': 8, 'tiered.rollout': 4}, {'model.name': 'markov'},
         {'model.name': 'encoder_decoder', 'encoder.kind': 'right_to_left_scan', 'data.stride': 16}]


def relative(x, y):
  return float(np.linalg.norm(np.float64(x) - np.float64(y)) / np.linalg.norm(np.float64(y)))


@pytest.fixture(scope='module')
def common():
  """Tokens of which few make up most, as in text."""
  rng, share = np.random.default_rng(0), 1 / np.arange(1, VOCABULARY + 1)
  return rng.choice(VOCABULARY, 20_000, p=share / share.sum()).astype(np.int32)


def test_rows_of_a_table_add_up_in_float32(common):
  g_ND = np.asarray(jnp.asarray(np.random.default_rng(1).normal(0.05, 1, (len(common), 8)), jnp.bfloat16))
  true = np.zeros((VOCABULARY, 8))
  np.add.at(true, common, np.float64(g_ND))
  table = jnp.zeros((VOCABULARY, 8))
  def of(take):
    return jax.jit(lambda g: jax.vjp(take, table)[1](g[None])[0])(g_ND)
  assert relative(of(lambda t: sharding.lookup(t, common[None], jnp.bfloat16)), true) < 1e-5
  assert relative(of(lambda t: t.astype(jnp.bfloat16)[common[None]]), true) > 0.02  # what this is for
  narrow = jax.jit(lambda g: jax.vjp(lambda t: sharding.lookup(t, common[None], jnp.bfloat16),
                                     table.astype(jnp.bfloat16))[1](g[None])[0])(g_ND)
  assert relative(narrow, true) < 3e-3  # rounded once
  with sharding.by_products():
    assert relative(of(lambda t: sharding.lookup(t, common[None], jnp.bfloat16)), true) < 1e-5


def equations(jaxpr):
  """All equations of a program, those of its inner programs too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
        yield from equations(getattr(inner, 'jaxpr', inner))


@pytest.mark.parametrize('settings', CASES, ids=lambda s: ' '.join(map(str, s.values())) or 'decoder')
def test_no_model_adds_up_rows_in_bfloat16(settings):
  c = config_lib.changed(config_lib.Config(), {
      'model.layers': 1, 'model.width': 16, 'model.heads': 2, 'data.window': 32, 'model.dtype': 'bfloat16', **settings})
  module = models.build(c, 64)
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), layout.batch_shapes(4, c.data.window))
  grad = jax.grad(lambda p: losses.find('cross_entropy').sum_loss(module, p, batch, None))
  program = jax.make_jaxpr(grad)(jax.eval_shape(lambda: contract.init(module, jax.random.key(0))))
  scatters = [eqn.outvars[0].aval for eqn in equations(program.jaxpr) if eqn.primitive.name == 'scatter-add']
  tables = [x for x in scatters if x.ndim == 2]  # others turn the rows of a batch round
  assert tables and [x for x in tables if x.dtype == jnp.bfloat16] == []
