"""The optimizer and the learning rate of a run, from the files of `optimizers` and `schedules`."""

from collections.abc import Mapping

import jax
import numpy as np
import optax

from foundation import entries
from framework import config as config_lib
from framework import expressions
from framework.models import contract
from framework.training import optimizers, schedules

CHUNK = 1 << 20  # steps whose rates are compared at once


def schedule(c: config_lib.Optimizer, steps: int) -> optax.Schedule:
  """Learning rate of each step: linear warm-up from lr / warmup, then that of `c.schedule` over the rest.

  At each step of `c.rewarm` that begins anew, from the last rate of `c.schedule` in place of 0 (Ibrahim et al. 2024,
  arXiv:2403.08763): until then the rates are those of a run that ends there.
  """
  parts = expressions.segments(c.rewarm, c.warmup_steps, steps)
  low = c.final_learning_rate if getattr(schedules.find(c.schedule), 'DECAYS', True) else c.learning_rate
  rates = [_warmed_up(c, count, low if begin else 0.0) for begin, count in parts]
  return optax.join_schedules(rates, [begin for begin, _ in parts[1:]]) if len(parts) > 1 else rates[0]


def _warmed_up(c: config_lib.Optimizer, steps: int, low: float) -> optax.Schedule:
  after = after_warmup(c, steps)
  if not c.warmup_steps:
    return after
  first = low + (c.learning_rate - low) / c.warmup_steps if low else c.learning_rate / c.warmup_steps
  warmup = optax.linear_schedule(first, c.learning_rate, max(1, c.warmup_steps - 1))
  return optax.join_schedules([warmup, after], [c.warmup_steps])


def equal_rates(one: tuple[config_lib.Optimizer, int], other: tuple[config_lib.Optimizer, int]) -> int:
  """The number of steps, from the first on, whose rates are the same in two trainings, each of so many steps."""
  end = min(one[1], other[1])
  rates = [schedule(*one), schedule(*other)]
  for first in range(0, end, CHUNK):
    steps = np.arange(first, min(first + CHUNK, end), dtype=np.int32)
    differ = np.flatnonzero(np.not_equal(*(np.broadcast_to(np.asarray(rate(steps)), steps.shape) for rate in rates)))
    if len(differ):
      return first + int(differ[0])
  return end


def after_warmup(c: config_lib.Optimizer, steps: int) -> optax.Schedule:
  """Learning rate of each step after the warm-up. Raises ConfigError where the file of the schedule gives no such."""
  after, subject = schedules.find(c.schedule).after_warmup(c, steps), f"optimizer.schedule is '{c.schedule}'"
  entries.gives(after, callable(after), 'a function of the step', subject, 'after_warmup(c, steps)')
  entries.check_takes(after, 'rate(step)', subject, schedules.__name__)
  return after


def named(c: config_lib.Optimizer, rate: optax.Schedule, parameters: Mapping[str, contract.Parameter]
          ) -> optax.GradientTransformation:
  """The optimizer of that name, alone. Raises ConfigError where its file does not give one."""
  update, subject = optimizers.find(c.name).build(c, rate, parameters), f"optimizer.name is '{c.name}'"
  entries.gives(update, isinstance(update, optax.GradientTransformation), 'an optax.GradientTransformation', subject,
                'build(c, rate, parameters)')
  entries.check_takes(update.init, 'init(params)', subject, optimizers.__name__)
  entries.check_takes(update.update, 'update(updates, state, params)', subject, optimizers.__name__)
  return update


def build(c: config_lib.Optimizer, steps: int, parameters: Mapping[str, contract.Parameter], trained: str = ''
          ) -> optax.GradientTransformationExtraArgs:
  """Clipping by the global norm, then the optimizer of that name with decoupled weight decay.

  Its `update` takes `step`, whose rate is then applied, whatever count of updates the optimizer asks the rate of: where
  steps were skipped there are fewer updates than steps. Without `step` the count is taken for it.

  Args:
    parameters: of the model, by path; see `contract.describe`.
    trained: the one entry of the parameters that is trained, all others stay as they are and have no optimizer state;
      '': all are.
  """
  rate = schedule(c, steps)
  now: list[jax.Array] = []  # the step of the update under way
  update = named(c, lambda count: rate(now[-1] if now else count), parameters)
  if c.clip_norm:
    update = optax.chain(optax.clip_by_global_norm(c.clip_norm), update)
  inner = optax.with_extra_args_support(only(update, trained) if trained else update)

  def at_step(updates, state, params=None, *, step=None, **extra):
    now.extend([] if step is None else [step])
    try:
      return inner.update(updates, state, params, **extra)
    finally:
      now.clear()

  return optax.GradientTransformationExtraArgs(inner.init, at_step)


def only(update: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
  """`update` for the parameters below `name`; all others stay as they are and have no optimizer state."""
  def labels(params):
    return {key: jax.tree.map(lambda _: 'trained' if key == name else 'frozen', part) for key, part in params.items()}
  return optax.partition({'trained': update, 'frozen': optax.set_to_zero()}, labels)
