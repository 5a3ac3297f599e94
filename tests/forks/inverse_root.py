"""The rate falls with the root of the step (Vaswani et al. 2017)."""


def after_warmup(c, steps):
  return lambda step: c.learning_rate * (1 + step) ** -0.5
