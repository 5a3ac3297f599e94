"""Five sizes from 10 to 115 thousand parameters and three token counts, for the quickstart: a minute.

  python -m experiments.sweep --sweep=experiments/sweeps/first.py

It is too short for a law to be trusted far from it: see quick.py and hour.py, which also check the learning rates.
"""

from experiments.sweeping.cells import Sweep, over, product
from experiments.sweeps import quick


def get_sweep() -> Sweep:
  base = quick.base()
  base.training.batch = 4
  base.evaluation.windows = 1024
  sizes = [quick.size(*shape) for shape in [(16, 2), (24, 2), (32, 2), (48, 2), (64, 2)]]
  return Sweep(base, product(sizes, over('training.steps', [200, 400, 800])),
               allow=('short_range', 'no_interior_minimum'))
