"""Seven sizes from 10 to 819 thousand parameters, token counts doubling from a half to 8 million, about an hour.

  python -m experiments.sweep --sweep=experiments/sweeps/hour.py

34 cells on the Python standard library's bytes: the five smallest sizes to 8 million tokens, the two largest to 4, and
then the largest size at 8 million, which is predicted first. Two more seeds of two small sizes show the noise, and
three learning rates at both ends that the rate is at its optimum. It has not been run to its end; its FLOPs are 6.5
times those of quick.py.
"""

from experiments.sweeping.cells import Sweep, chain, over, product
from experiments.sweeps.quick import base, rates, size


def get_sweep() -> Sweep:
  small = [size(16, 2), size(24, 2), size(32, 2), size(48, 3), size(64, 3)]
  large = [size(96, 4), size(128, 4)]
  seeds = product([size(16, 2), size(32, 2)], over('training.seed', [1, 2]))
  ends = chain(rates(16, 2, (1 / 3, 3.0)), rates(128, 4, (1 / 3, 3.0)))
  return Sweep(base(), chain(
      product(small, over('training.steps', [488, 977, 1953, 3906, 7812])),
      product(large, over('training.steps', [488, 977, 1953, 3906])),
      product([size(128, 4)], over('training.steps', [7812])),
      product(chain(seeds, ends), over('training.steps', [488]))))
