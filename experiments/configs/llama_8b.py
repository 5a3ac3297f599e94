"""The shape of Llama 3.1 8B (Llama Team 2024, arXiv:2407.21783), to plan with: it has not been trained here.

  python -m experiments.plan --config=experiments/configs/llama_8b.py --target=h100:8
"""

from framework.config import Config, Data, Model, Optimizer, Training


def get_config() -> Config:
  return Config(
      model=Model(layers=32, width=4096, heads=32, kv_heads=8, feedforward=14336, activation='swiglu', tied_head=False,
                  rope_base=500000.0, dtype='bfloat16', scan=True, remat='full'),
      data=Data(tokenizer='bpe', vocabulary=128256, window=8192),
      optimizer=Optimizer(learning_rate=3e-4, final_learning_rate=3e-5, warmup_steps=2000),
      training=Training(steps=100_000, batch=16, partition='mesh', mesh='data=-1,fsdp=8'),
  )
