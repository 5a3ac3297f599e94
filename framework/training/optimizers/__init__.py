"""Optimizers, one file each: `optimizer.name=NAME`, or the path of a file elsewhere.

An optimizer is a file that holds

  build(c, rate, parameters) -> optax.GradientTransformation

of the section `optimizer`, the learning rate of each step (it is given a count of updates, and gives the rate of the
step of training, which is later where steps were skipped), and what is known of every parameter:
{path: framework.models.contract.Parameter}, whose axes and role say what is a matrix, what decays, what a layer is.
`contract.where(parameters, test)` turns a test of a parameter into a mask for optax.
"""

import sys
import types

from foundation import entries


def find(name: str) -> types.ModuleType:
  """The optimizer of that name or path. Raises ConfigError if there is none, or half of one."""
  return entries.find(sys.modules[__name__], name, 'optimizer.name', ('build(c, rate, parameters)',))
