"""nanoGPT's published CPU setting for Tiny Shakespeare: characters, window 64, batch 12, 4 layers, width 128.

  python -m experiments.train --config=experiments/configs/shakespeare_nanogpt.py --workdir=runs/shakespeare \\
    --config.data.path=tinyshakespeare.txt

Run on 2 cores of a shared Intel Xeon (jax 0.10.2, Python 3.11): 2000 steps in 45 s, 0.6 GB of memory, 1.777 nats a
character on the last tenth of the text (nanoGPT's own recipe publishes 1.88).
"""

from framework.config import Config, Data, Evaluation, Model, Optimizer, Training


def get_config() -> Config:
  return Config(
      model=Model(layers=4, width=128, heads=4, position='learned', norm='layernorm'),
      data=Data(tokenizer='chars', window=64),
      optimizer=Optimizer(learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=100, beta2=0.99,
                          weight_decay=0.1, clip_norm=1.0),
      training=Training(steps=2000, batch=12),
      evaluation=Evaluation(every_steps=250, windows=240),
  )
