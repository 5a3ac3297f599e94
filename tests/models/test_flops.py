"""Counts by formula against XLA's count and the parameters that exist."""

import jax
import jax.numpy as jnp
import pytest

from foundation import entries
from framework import config as config_lib
from framework import models
from framework.models import contract, flops
from framework.tiered import flops as of_tiers
from framework.tiered import model as tiered
from framework.training.losses import cross_entropy
from tests.networks import build


def model(**settings):
  return config_lib.resolve(config_lib.Config(model=config_lib.Model(**settings))).model


@pytest.mark.parametrize('settings', [
    {'layers': 3, 'width': 64, 'heads': 4}, {'layers': 2, 'width': 128, 'heads': 8, 'kv_heads': 2},
    {'layers': 2, 'width': 64, 'heads': 4, 'activation': 'geglu', 'head_width': 24, 'query_norm': 'head', 'parallel': True},
    {'layers': 2, 'width': 96, 'heads': 4, 'activation': 'swiglu', 'tied_head': False, 'position': 'learned'}])
def test_training_flops_are_within_five_per_cent_of_xla(settings):
  m, V, L, B = model(**settings), 512, 64, 2
  module = build(m, V, L)
  params = contract.shapes(module)
  rows = jax.ShapeDtypeStruct((B, L), 'int32')
  batch = {name: rows for name in ('tokens', 'targets', 'segments', 'positions')}
  batch['weights'] = jax.ShapeDtypeStruct((B, L), 'float32')
  # Counted from the products themselves: the CPU backend's own count leaves out those it hands to a library.
  jaxpr = jax.make_jaxpr(jax.grad(cross_entropy.sum_loss, argnums=1), static_argnums=0)(module, params, batch, None)
  assert count_products(jaxpr.jaxpr) == pytest.approx(B * module.flops().train, rel=0.05)


def count_products(jaxpr) -> int:
  """2 FLOPs for every multiply-add of every dot_general, in sub-programs too."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      out = 1
      for size in equation.outvars[0].aval.shape:
        out *= size
      for axis in contracted:
        out *= equation.invars[0].aval.shape[axis]
      total += 2 * out
    times = equation.params['length'] if equation.primitive.name == 'scan' else 1
    for value in equation.params.values():
      for inner in value if isinstance(value, (list, tuple)) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          total += times * count_products(inner)
  return total


@pytest.mark.parametrize('settings', [
    {}, {'tiers': 3, 'widths': '32,64,64', 'layers': '1,2,3', 'samples': 2}, {'layout': 'stamp', 'tiers': 3},
    {'layout': 'cross', 'samples': 2, 'tiers': 3}, {'layout': 'cross', 'read': 'hidden', 'widths': '32,64'},
    {'starts': 'entropy', 'most_starts': 2}])
def test_flops_of_tiers_are_within_five_per_cent_of_xla(settings):
  counted, formula = tiers_counted(**settings)
  assert counted == pytest.approx(formula(), rel=0.05)


def tiers_counted(**settings):
  """FLOPs of a training step as XLA is given it, and the formula for it."""
  V, B, c = 257, 2, config_lib.Config(
      model=config_lib.Model(name='tiered', layers=2, width=64, heads=4), data=config_lib.Data(window=96),
      tiered=config_lib.Tiered(**{'period': 32, 'rollout': 8} | settings))
  module = models.build(config_lib.resolve(c), V)
  params = contract.shapes(module)
  rows = jax.ShapeDtypeStruct((B, 96), 'int32')
  batch = {name: rows for name in ('tokens', 'targets', 'segments', 'positions')} | {
      'weights': jax.ShapeDtypeStruct((B, 96), 'float32'), 'start': jax.ShapeDtypeStruct((B,), 'uint32')}
  def loss(top, params, batch):
    return cross_entropy.sum_loss(module, params | top, batch, None)
  top = f'tier_{c.tiered.tiers}'
  jaxpr = jax.make_jaxpr(jax.grad(loss))({top: params[top]}, params, batch)
  return count_products(jaxpr.jaxpr), lambda: B * module.flops().train


def test_the_count_sees_what_a_formula_leaves_out(monkeypatch):
  """Resume nodes, the writing, the reading of rollouts: each is more than the five per cent."""
  counted, formula = tiers_counted()
  mutants = {(of_tiers, 'tier_nodes'): lambda t, number, window: window, (of_tiers, 'write'): lambda *_: 0.0,
             (flops, 'head'): lambda model, vocabulary, count: 0.0,
             (flops, 'blocks'): lambda model, count, keys, right=flops.blocks: right(model, count, 0)}
  for (module, name), mutant in mutants.items():
    with monkeypatch.context() as patch:
      patch.setattr(module, name, mutant)
      assert counted != pytest.approx(formula(), rel=0.05), name
  assert counted == pytest.approx(formula(), rel=0.05)


def test_rollouts_cost_what_the_notes_say():
  """Written out from the papers' accounting: body 24 n d^2, head 2 V d, 4 n d a visible key, rho = K R / P."""
  n, d, V, window, P, R, K = 4, 128, 256, 512, 64, 16, 1
  c = config_lib.resolve(config_lib.Config(
      model=config_lib.Model(name='tiered', layers=n, width=d, heads=4), data=config_lib.Data(window=window),
      tiered=config_lib.Tiered(period=P, rollout=R, samples=K)))
  body, head, key, rho = 24 * n * d * d, 2 * V * d, 4 * n * d, K * R / P
  # Without a kernel that skips masked blocks every key counts, and the last token of a rollout is not read.
  expected = body + key * window + head / P + (R - 1) / R * rho * (body + head + key * (window + R))
  assert of_tiers.write(tiered.tier_models(c), c.tiered, 1, V, window) / window == pytest.approx(expected, rel=1e-12)


def test_xla_agrees_on_a_single_product():
  cost = jax.jit(lambda a, b: a @ b).lower(jnp.ones((8, 16)), jnp.ones((16, 32))).cost_analysis()
  assert cost['flops'] == 2 * 8 * 16 * 32


def test_parameters_by_part():
  m = model(layers=2, width=16, heads=2, position='learned', tied_head=False)
  module = build(m, 11, 8)
  params, counts = contract.shapes(module), contract.counts(module)
  assert counts == {'total': sum(p.size for p in jax.tree.leaves(params)), 'embedding': 11 * 16 + 8 * 16,
                    'head': 11 * 16}
  assert counts['total'] - counts['embedding'] - counts['head'] == 2 * (4 * 16**2 + 2 * 4 * 16**2 + 2 * 16) + 16


@pytest.mark.parametrize('name,settings', [(name, {}) for name in entries.names(models, 'build') if name != 'ngram'] + [
    ('encoder_decoder', {'encoder.kind': kind}) for kind in ('right_to_left', 'right_to_left_scan', 'prefix')])
def test_every_model_of_the_registry_counts_its_own_flops(name, settings):
  """What it says a window's prediction costs, against the products that XLA is given."""
  values = {'model.name': name, 'model.layers': 2, 'model.width': 64, 'model.heads': 4, 'data.window': 64,
            'tiered.period': 16, 'tiered.rollout': 8} | settings
  if name == 'encoder_decoder':
    values |= {'data.stride': 24, 'evaluation.stride': 24}
  module, B = models.build(config_lib.resolve(config_lib.from_flat(values)), 211), 2
  rows = jax.ShapeDtypeStruct((B, 64), 'int32')
  batch = {key: rows for key in ('tokens', 'targets', 'segments', 'positions')} | {
      'weights': jax.ShapeDtypeStruct((B, 64), 'float32'), 'start': jax.ShapeDtypeStruct((B,), 'uint32')}
  jaxpr = jax.make_jaxpr(lambda params, batch: module.logits(params, module.hidden(params, batch)))(
      contract.shapes(module), batch)
  assert count_products(jaxpr.jaxpr) == pytest.approx(B * module.flops().forward, rel=0.05)
