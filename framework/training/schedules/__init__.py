"""Learning rates by step, one file each: `optimizer.schedule=NAME`, or the path of a file elsewhere.

A schedule is a file that holds

  after_warmup(c, steps) -> optax.Schedule   the rate of each step after the linear warm-up, of the section
                                             `optimizer` and a number of steps in all; step 0 is the first after it

and may hold

  decay_start(c, steps) -> int   the number of steps whose rates are those of any longer run: such runs share a trunk
  DECAYS = False                 it does not go down to optimizer.final_learning_rate
"""

import sys
import types

from foundation import entries


def find(name: str) -> types.ModuleType:
  """The schedule of that name or path. Raises ConfigError if there is none, or half of one."""
  return entries.find(sys.modules[__name__], name, 'optimizer.schedule', ('after_warmup(c, steps)',),
                      ('decay_start(c, steps)',))
