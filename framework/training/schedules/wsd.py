"""Warm-up, stable, decay: a constant rate, then a straight line down (Hu et al. 2024, arXiv:2404.06395)."""

import optax


def decay_start(c, steps: int) -> int:
  """The number of steps whose rate is that of any longer run: the warm-up and the stable phase."""
  return max(c.warmup_steps, steps - _decay(c, steps))


def _decay(c, steps: int) -> int:
  return max(1, round(c.decay_fraction * steps))


def after_warmup(c, steps: int) -> optax.Schedule:
  decay = optax.linear_schedule(c.learning_rate, c.final_learning_rate, _decay(c, steps))
  return optax.join_schedules([optax.constant_schedule(c.learning_rate), decay],
                              [decay_start(c, steps) - c.warmup_steps])
