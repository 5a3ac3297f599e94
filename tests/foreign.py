"""A folder of Hugging Face's format with random weights and a tokenizer of its own, made without PyTorch."""

import json
import pathlib

import jax
import numpy as np
import tokenizers

from framework.config import Model
from framework.models import contract, huggingface
from framework.models.huggingface.family import resolved
from tests import commands, networks

LLAMA = Model(layers=2, width=32, heads=4, kv_heads=2, feedforward=48, activation='swiglu', rope_base=500.0, tied_head=False)
VOCABULARY = 320


def write_tokenizer(folder: pathlib.Path, texts: list[str]) -> None:
  """tokenizer.json with BOS 0 and EOS 1, and what names them."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer, made.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
  made.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
      vocab_size=300, initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
      special_tokens=['<bos>', '<eos>'], show_progress=False))
  (folder / 'tokenizer.json').write_text(made.to_str())
  (folder / 'tokenizer_config.json').write_text(json.dumps(
      {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<bos>', 'eos_token': '<eos>'}))


def write_folder(folder: pathlib.Path, text: pathlib.Path, model: Model = LLAMA, seed: int = 0, length: int = 64) -> None:
  """config.json, model.safetensors and a tokenizer of the documents in `text`."""
  model = resolved(model)
  params = contract.init(networks.build(model, VOCABULARY, length), jax.random.key(seed))
  huggingface.save(folder, model, VOCABULARY, length, jax.tree.map(lambda x: np.asarray(x) * 2, params))
  write_tokenizer(folder, [path.read_text() for path in sorted(text.iterdir())])


def write_text(folder: pathlib.Path) -> pathlib.Path:
  folder.mkdir()
  return commands.write_documents(folder, length=60)
