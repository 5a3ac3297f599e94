"""The sign of a mean of gradients (Chen et al. 2023, arXiv:2302.06675)."""

from collections.abc import Mapping

import optax

from framework.models import contract


def build(c, rate: optax.Schedule, parameters: Mapping[str, contract.Parameter]) -> optax.GradientTransformation:
  return optax.lion(rate, c.beta1, c.beta2, weight_decay=c.weight_decay,
                    mask=contract.where(parameters, contract.decays))
