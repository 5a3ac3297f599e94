"""Learning-rate schedules and optimizers, from optax."""

from typing import Any

import jax
import optax
import optax.contrib

from framework import config as config_lib


def decay_start(c: config_lib.Optimizer, steps: int) -> int:
  """The number of steps of a wsd run whose learning rate is that of any longer run: its warm-up and stable phase."""
  return max(c.warmup_steps, steps - max(1, round(c.decay_fraction * steps)))


def schedule(c: config_lib.Optimizer, steps: int) -> optax.Schedule:
  """Learning rate of each step: linear warm-up from lr / warmup, then the decay of `c.schedule` over the rest."""
  peak, final = c.learning_rate, c.final_learning_rate
  rest = max(1, steps - c.warmup_steps)
  if c.schedule == 'constant':
    after = optax.constant_schedule(peak)
  elif c.schedule == 'cosine':  # Loshchilov and Hutter 2017, arXiv:1608.03983
    after = optax.cosine_decay_schedule(peak, rest, alpha=final / peak if peak else 0.0)
  elif c.schedule == 'linear':
    after = optax.linear_schedule(peak, final, rest)
  else:  # warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395
    decay = max(1, round(c.decay_fraction * steps))
    after = optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)],
                                 [decay_start(c, steps) - c.warmup_steps])
  if not c.warmup_steps:
    return after
  warmup = optax.linear_schedule(peak / c.warmup_steps, peak, max(1, c.warmup_steps - 1))
  return optax.join_schedules([warmup, after], [c.warmup_steps])


UNDECAYED = ('bias', 'scale', 'relative_bias')
MATRICES = ('weight', 'kernel')


def _name(path) -> str:
  return path[-1].key


def is_matrix(params: Any) -> Any:
  """True on weights, embeddings and heads, false on biases and norm scales: what weight decay applies to."""
  return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in UNDECAYED, params)


def muon_dimensions(params: Any) -> Any:
  """Muon's matrices: the hidden weights, stacked over layers; a head axis belongs to the side of its heads.

  `weight` is this framework's name of them, `kernel` flax's.
  """
  def dimensions(path, leaf):
    names = [p.key for p in path]
    if 'blocks' not in names or names[-1] not in MATRICES:
      return None
    axes = tuple(range(1, leaf.ndim))
    inputs = 2 if names[-2] == 'out' and len(axes) == 3 else 1
    return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])
  return jax.tree_util.tree_map_with_path(dimensions, params)


def _decayed_beside_muon(params: Any) -> Any:
  """True on the matrices that are not Muon's: embeddings and heads."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: _name(path) not in (*UNDECAYED, *MATRICES) or (
          _name(path) in MATRICES and 'blocks' not in [p.key for p in path]), params)


def build(c: config_lib.Optimizer, steps: int) -> optax.GradientTransformation:
  """Clipping by the global norm, then the optimizer with decoupled weight decay on matrices only."""
  rate = schedule(c, steps)
  if c.name == 'adamw':  # Loshchilov and Hutter 2019, arXiv:1711.05101
    update = optax.adamw(rate, c.beta1, c.beta2, c.epsilon, weight_decay=c.weight_decay, mask=is_matrix)
  elif c.name == 'lion':  # Chen et al. 2023, arXiv:2302.06675
    update = optax.lion(rate, c.beta1, c.beta2, weight_decay=c.weight_decay, mask=is_matrix)
  else:
    # Jordan 2024, with the scaling of Liu et al. 2025 (arXiv:2502.16982), under which AdamW's learning rates fit.
    # Embeddings, heads, biases and norms get AdamW.
    update = optax.chain(
        optax.contrib.muon(rate, eps=c.epsilon, weight_decay=c.weight_decay, consistent_rms=0.2, adam_b1=c.beta1,
                           adam_b2=c.beta2, muon_weight_dimension_numbers=muon_dimensions),
        # optax decays either all or none of what AdamW gets; biases and norms must not decay.
        optax.add_decayed_weights(lambda count: -c.weight_decay * rate(count), mask=_decayed_beside_muon))
  return optax.chain(optax.clip_by_global_norm(c.clip_norm), update) if c.clip_norm else update


def only(update: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
  """`update` for the parameters below `name`; all others stay as they are and have no optimizer state."""
  def labels(params):
    return {key: jax.tree.map(lambda _: 'trained' if key == name else 'frozen', part) for key, part in params.items()}
  return optax.partition({'trained': update, 'frozen': optax.set_to_zero()}, labels)
