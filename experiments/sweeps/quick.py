"""Five sizes from 10 to 467 thousand parameters and four token counts, a quarter to 2 million bytes, in minutes.

  python -m experiments.sweep --sweep=experiments/sweeps/quick.py

20 cells on the Python standard library's bytes, and four more at a third and three times the learning rate, which show
that it is at its optimum at both ends of the sizes.

Run on 2 cores of an Intel Xeon (jax 0.10.2, Python 3.11): 384 seconds, killed twice on the way; the largest cell,
predicted at 1.332 [1.294, 1.372] nats per byte before it ran, measured 1.360; E .85, alpha .27, beta .48 and q .67 by
the coupled law, and N_opt ~ C^.64 (90 %: .59 to .69).
"""

from experiments.sweeping.cells import Sweep, chain, over, product
from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Training


def base() -> Config:
  """Steps of 1024 tokens; Muon, whose rate depends less on the size than Adam's."""
  return Config(
      model=Model(heads=2),
      data=Data(tokenizer='bytes', window=128),
      optimizer=Optimizer(name='muon', schedule='wsd', warmup_steps=20, final_learning_rate=0.0),
      training=Training(batch=8, devices=1, log_every=20),
      evaluation=Evaluation(windows=2048, batch=64),
      checkpoint=Checkpoint(every_steps=0, at_decay=True),
  )


def size(width: int, layers: int) -> dict:
  """A model and its learning rate, which falls with the width (measured at 244 steps: see the cells below)."""
  return {'model.width': width, 'model.layers': layers,
          'optimizer.learning_rate': round(0.05 * (16 / width) ** 0.9, 3)}


def rates(width: int, layers: int, factors: tuple[float, ...]) -> list[dict]:
  """A size at multiples of its learning rate."""
  one = size(width, layers)
  return [one | {'optimizer.learning_rate': round(factor * one['optimizer.learning_rate'], 4)} for factor in factors]


def get_sweep() -> Sweep:
  sizes = [size(16, 2), size(32, 2), size(48, 3), size(64, 3), size(96, 4)]
  ends = chain(rates(16, 2, (1 / 3, 3.0)), rates(96, 4, (1 / 3, 3.0)))
  return Sweep(base(), chain(product(sizes, over('training.steps', [244, 488, 977, 1953])),
                             product(ends, over('training.steps', [244]))))
