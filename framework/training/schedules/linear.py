"""A straight line down to the final rate."""

import optax


def after_warmup(c, steps: int) -> optax.Schedule:
  return optax.linear_schedule(c.learning_rate, c.final_learning_rate, max(1, steps - c.warmup_steps))
