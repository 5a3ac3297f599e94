"""Five sizes and four token counts on the Python standard library's bytes."""

from experiments.cells import Sweep, chain, over, product, together
from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Training

TOKENS = 8 * 128  # a step


def base() -> Config:
  return Config(
      model=Model(heads=2),
      data=Data(tokenizer='bytes', window=128),
      optimizer=Optimizer(schedule='wsd', warmup_steps=20, final_learning_rate=0.0, beta2=0.98),
      training=Training(batch=8, devices=1, log_every=20),
      evaluation=Evaluation(windows=2048, batch=64),
      checkpoint=Checkpoint(every_steps=0, at_decay=True),
  )


def get_sweep() -> Sweep:
  sizes = together(over('model.width', [16, 32, 48, 64, 96]), over('model.layers', [2, 2, 3, 3, 4]),
                   over('optimizer.learning_rate', [0.02, 0.014, 0.011, 0.01, 0.008]))
  return Sweep(base(), product(sizes, over('training.steps', [244, 488, 977, 1953])))
