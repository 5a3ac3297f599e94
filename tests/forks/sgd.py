"""Stochastic gradient descent with momentum."""

import optax


def build(c, rate, parameters):
  return optax.sgd(rate, momentum=c.beta1)
