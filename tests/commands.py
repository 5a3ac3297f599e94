"""The project's commands, started as users start them."""

import os
import pathlib
import random
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def environment() -> dict[str, str]:
  """Without what conftest.py tells XLA: the devices that there are, and programs that are optimised."""
  return {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}


def launch(name, *arguments, timeout=300):
  """`python -m experiments.name arguments`, to its end."""
  return subprocess.run([sys.executable, '-m', f'experiments.{name}', *map(str, arguments)], cwd=ROOT,
                        env=environment(), capture_output=True, text=True, timeout=timeout)


def write_config(folder, **sections):
  """config.py of a tiny decoder on the texts of the folder's `text`; `sections` are the arguments of the others."""
  rest = ',\n      '.join(f'{name}=config.{name.title()}({arguments})' for name, arguments in sections.items())
  (folder / 'config.py').write_text(f"""
from framework import config
def get_config():
  return config.Config(
      model=config.Model(layers=1, width=16, heads=2), optimizer=config.Optimizer(warmup_steps=2),
      data=config.Data(path={str(folder / 'text')!r}, cache={str(folder / 'cache')!r}, window=16),
      {rest})
""")


def write_documents(folder, seed=0, letters='abcdefgh', longest=6, vocabulary=50, documents=40, length=400,
                    name='{:02d}.txt'):
  """The folder, with small documents of pseudo-words in it."""
  rng = random.Random(seed)
  words = [''.join(rng.choices(letters, k=rng.randint(1, longest))) for _ in range(vocabulary)]
  for n in range(documents):
    (folder / name.format(n)).write_text(' '.join(rng.choices(words, k=length)), encoding='utf-8')
  return folder
