"""The quickstart: a byte-level decoder on the Python standard library's sources.

  python -m experiments.train --config=experiments/configs/bytes_small.py --workdir=runs/quickstart --resume
"""

from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Training


def get_config() -> Config:
  return Config(
      model=Model(layers=4, width=128, heads=4),
      data=Data(tokenizer='bytes', window=256),
      optimizer=Optimizer(learning_rate=3e-3, final_learning_rate=1e-4, warmup_steps=50),
      training=Training(steps=1000, batch=16),
      evaluation=Evaluation(every_steps=250, windows=64),
      checkpoint=Checkpoint(every_steps=200),
  )
