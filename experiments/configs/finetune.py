"""Continues a run on other text: a tenth of a usual rate, which is warmed up and falls linearly at the end.

  python -m experiments.train --start=runs/smollm --config=experiments/configs/finetune.py --workdir=runs/tuned \\
    --config.data.path=novels/

The model and the tokenizer are those of the run that --start names; a run in bfloat16 goes on with float32 weights.
"""

from framework.config import Checkpoint, Config, Data, Evaluation, Optimizer, Training


def get_config() -> Config:
  return Config(
      data=Data(window=256),
      optimizer=Optimizer(learning_rate=1e-4, final_learning_rate=1e-6, warmup_steps=20, schedule='wsd', beta2=0.95),
      training=Training(steps=200, batch=8),
      evaluation=Evaluation(windows=256),
      checkpoint=Checkpoint(every_steps=100),
  )
