"""The same rate to the end."""

import optax

DECAYS = False


def decay_start(c, steps: int) -> int:
  """It never does: any longer run begins with all of these steps."""
  return steps


def after_warmup(c, steps: int) -> optax.Schedule:
  return optax.constant_schedule(c.learning_rate)
