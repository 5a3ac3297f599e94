"""What training minimises, one file each: `training.loss=NAME`, or the path of a file elsewhere.

A loss is a file that holds

  sum_loss(model, params, batch, keys_B) -> float32 scalar

the sum over the batch's targets, each times its weight; it is divided once by their number. `model` is a
framework.models.contract.Model, `batch` is of framework.data.windows, `keys_B` are dropout keys or None. Evaluation is
in nats whatever was minimised.
"""

import sys
import types

from foundation import entries


def find(name: str) -> types.ModuleType:
  """The loss of that name or path. Raises ConfigError if there is none, or half of one."""
  return entries.find(sys.modules[__name__], name, 'training.loss', ('sum_loss(model, params, batch, keys_B)',))
