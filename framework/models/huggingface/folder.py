"""Folders of Hugging Face's format, read and written without PyTorch."""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from foundation import files, reading
from foundation.errors import ConfigError, nearest
from foundation.printable import printable
from framework.config import Model
from framework.models.huggingface import family as family_lib
from framework.models.huggingface.family import Family, Loaded, Saved, Tensors
from framework.models.huggingface.gemma import GEMMA, GEMMA3
from framework.models.huggingface.gpt2 import GPT2, OPT
from framework.models.huggingface.llama import ARCEE, LLAMA, MISTRAL, OLMO, OLMO2, PHI3, QWEN2, QWEN3
from framework.models.huggingface.neox import NEOX, STARCODER2

FAMILIES: dict[str, Family] = {family.name: family for family in (
    LLAMA, GPT2, NEOX, OLMO, OLMO2, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA, GEMMA3, ARCEE, STARCODER2, OPT)}
DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
INDEX = f'{WEIGHTS}.index.json'


def import_safetensors() -> Any:
  """The package, which nothing else here needs."""
  try:
    import safetensors.numpy
  except ImportError as error:
    raise ConfigError("safetensors is not installed; expected the extra 'hf': pip install -e '.[hf]'") from error
  return safetensors


def store(folder: pathlib.Path) -> pathlib.Path:
  """Below which the files of a folder lie: itself, or, of a snapshot in the hub's cache, the model's, as links."""
  folder = folder.resolve()
  return folder.parents[1] if folder.parent.name == 'snapshots' else folder


def read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return reading.value(path, below=store(path.parent))
  except (OSError, ConfigError) as error:
    raise ConfigError(f'{path} cannot be read as a JSON object: {error}') from error


def shards(index: pathlib.Path) -> list[str]:
  """The files that an index names, all beside it."""
  entries = read_json(index)
  reading.check(index, entries, {'weight_map': ({str: str}, None)})
  names = sorted(set((entries.get('weight_map') or {}).values()))
  if wrong := next((name for name in names if pathlib.PurePath(name).name != name), None):
    raise ConfigError(f'{index} names {wrong!r}; expected names of files beside it')
  return names


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a folder, of one file or of shards. Raises ConfigError."""
  safetensors = import_safetensors()
  index = folder / INDEX
  tensors: dict[str, np.ndarray] = {}
  whole = (folder / WEIGHTS).exists() or not index.exists()
  if whole and not (folder / WEIGHTS).exists() and (old := next(folder.glob('pytorch_model*.bin'), None)):
    raise ConfigError(f'{folder} has {printable(old.name)} alone, a pickle, which runs code of its author when it is read; '
                      f"expected {WEIGHTS}: where you trust it, transformers converts it: python -c \"from transformers "
                      "import AutoModelForCausalLM as A; A.from_pretrained('FOLDER').save_pretrained('NEW')\"")
  for name in [WEIGHTS] if whole else shards(index):
    try:
      with reading.opened(folder / name, store(folder)):  # refuses a link elsewhere, or a pipe
        check_dtypes(folder / name, safetensors)
        tensors |= safetensors.numpy.load_file(folder / name)
    except (OSError, safetensors.SafetensorError) as error:
      raise ConfigError(f'{folder / name} cannot be read: {error}') from error
  return tensors


def check_dtypes(path: pathlib.Path, safetensors: Any) -> None:
  """Raises ConfigError for a tensor of a dtype that NumPy has not, or whose numbers need scales beside them."""
  with safetensors.safe_open(path, framework='np') as file:
    for name in file.keys():
      dtype = file.get_slice(name).get_dtype()
      if dtype not in DTYPES and not family_lib.BUFFERS.search(name):
        raise ConfigError(f"{path}: tensor '{printable(name, 80)}' is {dtype}; expected {', '.join(DTYPES.values())}: "
                          'weights that are quantised, as to 8 bits, have to be converted first')


def family_of(hf: Mapping[str, Any]) -> Family:
  """The family that a config.json names. Raises ConfigError."""
  name = hf.get('model_type')
  if not isinstance(name, str) or name not in FAMILIES:
    near = nearest(name, FAMILIES) if isinstance(name, str) else ''
    raise ConfigError(f"config.json has model_type {printable(repr(name), 60)}; expected "
                      f"{' or '.join(map(repr, FAMILIES))}{near}")
  return FAMILIES[name]


def from_tensors(hf: Mapping[str, Any], tensors: Tensors) -> Loaded:
  """(settings, vocabulary V, longest position, NumPy parameters) of the content of config.json and of the tensors.

  Raises ConfigError for a tensor or setting that is missing, unknown, or that Decoder cannot express.
  """
  return family_lib.read(family_of(hf), hf, tensors)


def to_tensors(model: Model, vocabulary: int, length: int, params: Any, family: str = '') -> Saved:
  """What goes into config.json, and the tensors, of a family, or of the one that expresses the model best.

  Raises ConfigError for settings that it cannot express, naming them.
  """
  model = family_lib.resolved(model)
  if family and family not in FAMILIES:
    raise ConfigError(f"family is '{family}'; expected one of {', '.join(FAMILIES)}{nearest(family, FAMILIES)}")
  def cost(one: Family) -> tuple[int, bool]:  # the nearest says what it cannot express; one that fits needs no zeros
    return len(family_lib.unmet(one, model)), family_lib.expressed(one, model) != model
  chosen = FAMILIES[family] if family else min(FAMILIES.values(), key=cost)
  return family_lib.write(chosen, model, vocabulary, length, params)


def load(folder: str | os.PathLike) -> Loaded:
  """(settings, vocabulary V, longest position, NumPy parameters) of a folder that `save_pretrained` wrote.

  Raises ConfigError for a file, tensor or setting that is missing or that Decoder cannot express.
  """
  return load_with_source(folder)[0]


def load_with_source(folder: str | os.PathLike) -> tuple[Loaded, dict[str, Any]]:
  """As `load`, and what tells where it comes from: the family and a digest of all tensors by name, shape and bits."""
  folder = pathlib.Path(folder)
  import_safetensors()
  hf = read_json(folder / CONFIG)
  family_of(hf)
  tensors = read_tensors(folder)
  return from_tensors(hf, tensors), {'family': hf['model_type'], 'weights': digest(tensors), 'settings': hf}


def digest(tensors: Tensors) -> str:
  """Of all tensors by name, dtype, shape and bits: the first 32 hexadecimal digits of a SHA-256."""
  sha = hashlib.sha256()
  for name in sorted(tensors):
    x = np.ascontiguousarray(tensors[name])
    sha.update(json.dumps([name, x.dtype.name, x.shape]).encode() + x.view(np.uint8).data)
  return sha.hexdigest()[:32]


def save(folder: str | os.PathLike, model: Model, vocabulary: int, length: int, params: Any, family: str = '',
         settings: Mapping[str, Any] | None = None) -> str:
  """Writes a folder for transformers' `AutoModelForCausalLM.from_pretrained`, and returns the family's name.

  Args:
    family: a model_type; '' is the one that expresses the model best.
    settings: that config.json has besides, as the ids of special tokens.

  Raises:
    ConfigError: settings that the family cannot express, other shapes, or a folder with files in it.
  """
  folder, safetensors = pathlib.Path(folder), import_safetensors()
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise ConfigError(f'{folder} exists; expected a new or an empty folder')
  hf, tensors = to_tensors(model, vocabulary, length, params, family)
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f'.{WEIGHTS}.{os.getpid()}.tmp'
  try:
    safetensors.numpy.save_file(tensors, temporary, metadata={'format': 'pt'})
    os.replace(temporary, folder / WEIGHTS)
  finally:
    temporary.unlink(missing_ok=True)
  files.write_json(folder / CONFIG, hf | dict(settings or {}))  # last: a folder cut short has none, and cannot be loaded
  return hf['model_type']
