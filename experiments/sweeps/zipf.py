"""Known truth: five sizes and five token counts on a language whose entropy is 1.45259 nats per token, exactly.

  python -m experiments.sweep --sweep=experiments/sweeps/zipf.py

25 cells, 6 to 62 thousand parameters and a quarter to 4 million tokens of framework/data/tasks/zipf_pairs.py. The
report ends with the fitted E, its standard error, and how far that is from the entropy of the language and from that of
the held-out text, which is a draw of 2^18 tokens. Two widths were tried and left out, because their cells bend the law:
at 8, below a million tokens, a model has not yet learnt to look at the symbol before the last; 96 would need a learning
rate of its own, at this one it is worse than 64.
"""

from experiments.sweeping.cells import Sweep, over, product
from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Training


def get_sweep() -> Sweep:
  base = Config(
      model=Model(layers=1, heads=4),
      data=Data(task='zipf_pairs', window=96),
      optimizer=Optimizer(name='muon', learning_rate=0.015, schedule='wsd', warmup_steps=40, final_learning_rate=0.0,
                          beta2=0.98, weight_decay=0.0),
      training=Training(batch=8, devices=1, log_every=40),
      evaluation=Evaluation(batch=64),
      checkpoint=Checkpoint(every_steps=0, at_decay=True),
  )
  return Sweep(base, product(over('model.width', [16, 24, 32, 48, 64]),
                             over('training.steps', [320, 640, 1280, 2560, 5120])))
