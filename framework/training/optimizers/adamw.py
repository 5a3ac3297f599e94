"""Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from collections.abc import Mapping

import optax

from framework.models import contract


def build(c, rate: optax.Schedule, parameters: Mapping[str, contract.Parameter], nesterov: bool = False
          ) -> optax.GradientTransformation:
  return optax.adamw(rate, c.beta1, c.beta2, c.epsilon, weight_decay=c.weight_decay,
                     mask=contract.where(parameters, contract.decays), nesterov=nesterov)
