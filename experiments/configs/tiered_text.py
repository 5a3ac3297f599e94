"""Two tiers on the Python standard library's sources: a byte-level decoder of half the width writes a rollout of 16
bytes every 64, and a decoder over text and rollouts predicts the next byte.

  python -m experiments.train --config=experiments/configs/tiered_text.py --workdir=runs/tiered --resume
  python -m experiments.generate --workdir=runs/tiered --prompt='def main(' --show_rollouts

runs/tiered/tier_1 and tier_2 are run folders of their own. A rollout is 1/4 of a byte a byte (R/P): by the formula of
framework.models.flops, tier 2 costs 1.9 times a step of the same decoder without rollouts.
"""

from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Tiered, Training


def get_config() -> Config:
  return Config(
      model=Model(name='tiered', layers=4, width=128, heads=4),
      data=Data(tokenizer='bytes', window=128),
      optimizer=Optimizer(name='muon', learning_rate=1e-2, final_learning_rate=1e-4, warmup_steps=50),
      training=Training(steps=500, batch=16),
      tiered=Tiered(tiers=2, widths='64,128', layers='4,4', steps='300,500', period=64, rollout=16),
      evaluation=Evaluation(every_steps=100, windows=512, batch=64),
      checkpoint=Checkpoint(every_steps=100),
  )
