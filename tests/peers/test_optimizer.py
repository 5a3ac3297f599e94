"""Muon against PyTorch's, whose products are in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from framework import config as config_lib
from framework.models import contract
from framework.training import optimizer

pytestmark = pytest.mark.peers
torch = pytest.importorskip('torch')


def test_muon_takes_pytorchs_steps():
  settings = config_lib.Optimizer(name='muon', learning_rate=0.1, warmup_steps=0, schedule='constant', weight_decay=0.5,
                                  clip_norm=0.0)
  rng = np.random.default_rng(0)
  start = {'up': rng.normal(size=(2, 16, 64)), 'down': rng.normal(size=(2, 64, 16)),
           'out': rng.normal(size=(2, 16, 16))}
  params = {'blocks': {name: {'weight': jnp.asarray(x, jnp.float32)} for name, x in start.items()}}
  theirs = {name: [torch.nn.Parameter(torch.tensor(m, dtype=torch.float32)) for m in x] for name, x in start.items()}
  muon = torch.optim.Muon([m for x in theirs.values() for m in x], lr=0.1, weight_decay=0.5,
                          adjust_lr_fn='match_rms_adamw')
  axes = 'layers', 'width', 'feedforward'
  described = {jax.tree_util.keystr(path): contract.Parameter(leaf, axes, 'hidden', ('width',)) for path, leaf in
               jax.tree_util.tree_leaves_with_path(params)}
  update = optimizer.build(settings, 10, described)
  state = update.init(params)
  for _ in range(5):
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    updates, state = jax.jit(update.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
    for name, x in theirs.items():
      for m, g in zip(x, grads['blocks'][name]['weight']):
        m.grad = torch.tensor(g)
    muon.step()
  for name, x in theirs.items():
    ours = params['blocks'][name]['weight'] - start[name]
    expected = np.stack([m.detach().numpy() for m in x]) - start[name]
    assert np.linalg.norm(ours - expected) < 0.01 * np.linalg.norm(expected), name
