from experiments.cells import Sweep, over, product, together
from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Training


def base() -> Config:
  return Config(
      model=Model(heads=2),
      data=Data(task='zipf_pairs', window=96),
      optimizer=Optimizer(schedule='wsd', warmup_steps=40, final_learning_rate=0.0, beta2=0.98, weight_decay=0.0),
      training=Training(batch=8, devices=1, log_every=40),
      evaluation=Evaluation(batch=64),
      checkpoint=Checkpoint(every_steps=0, at_decay=True),
  )


def get_sweep() -> Sweep:
  sizes = together(over('model.width', [8, 12, 16, 24, 32, 48]), over('model.layers', [1, 1, 1, 1, 2, 2]),
                   over('optimizer.learning_rate', [0.03, 0.025, 0.02, 0.015, 0.01, 0.007]))
  return Sweep(base(), product(sizes, over('training.steps', [320, 640, 1280, 2560])))
