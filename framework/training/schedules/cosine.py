"""Half a cosine down to the final rate (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

import optax


def after_warmup(c, steps: int) -> optax.Schedule:
  peak, final = c.learning_rate, c.final_learning_rate
  return optax.cosine_decay_schedule(peak, max(1, steps - c.warmup_steps), alpha=final / peak if peak else 0.0)
