"""The same rate to the end."""

import optax

DECAYS = False


def after_warmup(c, steps: int) -> optax.Schedule:
  return optax.constant_schedule(c.learning_rate)
