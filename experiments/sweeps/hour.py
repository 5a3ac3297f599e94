"""Seven sizes from 10 to 819 thousand parameters, token counts doubling from a half to 8 million, about an hour.

  python -m experiments.sweep --sweep=experiments/sweeps/hour.py

33 cells on the Python standard library's bytes: the five smallest sizes to 8 million tokens, the two largest to 4, and
then the largest size at 8 million, which is predicted first. Two more seeds of the two smallest sizes show the noise, and
three learning rates at both ends whether the rate is at its optimum. Not run to its end yet; by the speed of quick.py
2 cores need about an hour.
"""

from experiments.cells import Sweep, chain, over, product, together
from experiments.sweeps import quick


def get_sweep() -> Sweep:
  small = together(over('model.width', [16, 24, 32, 48, 64]), over('model.layers', [2, 2, 2, 3, 3]))
  large = together(over('model.width', [96, 128]), over('model.layers', [4, 4]))
  largest = together(over('model.width', [128]), over('model.layers', [4]))
  ends = together(over('model.width', [16, 64]), over('model.layers', [2, 3]))
  rate = quick.base().optimizer.learning_rate
  return Sweep(quick.base(), chain(
      product(small, over('training.steps', [488, 977, 1953, 3906, 7812])),
      product(large, over('training.steps', [488, 977, 1953, 3906])),
      product(largest, over('training.steps', [7812])),
      product(together(over('model.width', [16, 32]), over('model.layers', [2, 2])),
              over('training.steps', [488]), over('training.seed', [1, 2])),
      product(ends, over('training.steps', [488]), over('optimizer.learning_rate', [rate / 2, rate * 2]))))
