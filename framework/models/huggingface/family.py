"""What a family of models is, and how its tensors become our parameters and back.

Sources: the modeling files of transformers (read at 5.24) and https://huggingface.co/docs/safetensors. A family is some
settings of `Decoder`, so that a conversion renames, reshapes and transposes; no number changes unless the family says
so. Theirs has one tensor a layer, ours stacks the N layers. Their Linear keeps a matrix as [out, in], GPT-2's Conv1D as
[in, out], as here. All rotate channel k with channel k + R/2 of R rotated ones; checkpoints in Meta's own layout, which
pairs neighbours, are not read.

What a folder does not hold is left at its default: the dtype of the arithmetic, the attention backend, scan and remat.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework.config import BIASED, ConfigError, Model
from framework.models import contract
from framework.models.decoder import Decoder
from framework.models.huggingface.settings import Settings

Tensors = Mapping[str, np.ndarray]
Loaded = tuple[Model, int, int, dict[str, Any]]  # settings, vocabulary V, longest position, parameters
Saved = tuple[dict[str, Any], dict[str, np.ndarray]]  # what goes into config.json, tensors

BUFFERS = re.compile(r'\.(attn|attention)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$')  # constants of old files
# Settings that say how a model is computed, or that no format has: they are free.
FREE = {'layers', 'width', 'heads', 'kv_heads', 'feedforward', 'norm_epsilon', 'tied_head', 'dropout', 'bias', 'bias_on',
        'norm_scale', 'dtype', 'param_dtype', 'attention', 'sequence', 'scan', 'remat'}


@dataclasses.dataclass(frozen=True)
class Family:
  """A model_type of transformers.

  read: its settings in ours, without the sizes that `sizes` reads. write: what config.json has of ours besides.
  needs: settings of ours -> the values that it can express, all other settings being at their defaults.
  biases: the sets of parts (see model.bias_on) that may have a bias.
  blocks: our modules of a block -> their name; several of ours lie side by side in one of theirs, or, where `by_head`,
    head by head. top: our paths outside of blocks -> their names. root: of every name but the head's.
  keys: their names of layers, width, heads, feedforward, longest position and the norm's epsilon.
  offset: what our norms' scales have more than theirs. skipped: rows of their table of positions before ours.
  change: (settings, tensors) -> tensors that need no more than renaming.
  harmless: keys that only this family has, and that change no logit.
  """
  name: str
  architecture: str
  read: Callable[[Settings], dict[str, Any]]
  write: Callable[[Model], dict[str, Any]]
  needs: Mapping[str, tuple]
  biases: tuple[frozenset, ...]
  blocks: Mapping[str, str]
  top: Mapping[str, str]
  keys: Mapping[str, str]
  root: str = 'model.'
  layer: str = 'layers.{}.'
  flip: bool = True
  by_head: bool = False
  norm_scale: bool = True
  offset: float = 0.0
  skipped: int = 0
  tied: bool = False  # where config.json says nothing
  change: Callable[[Settings, Tensors], Tensors] = lambda settings, tensors: tensors
  harmless: tuple[str, ...] = ()


SIZES = {'layers': 'num_hidden_layers', 'width': 'hidden_size', 'heads': 'num_attention_heads',
         'feedforward': 'intermediate_size', 'length': 'max_position_embeddings', 'norm_epsilon': 'rms_norm_eps'}
LAYERNORM_SIZES = SIZES | {'norm_epsilon': 'layer_norm_eps'}
EVERY = frozenset(BIASED)
LINEAR = frozenset(('qkv', 'out', 'feedforward'))
ATTENTION = frozenset(('qkv', 'out'))
NONE: frozenset = frozenset()


def resolved(model: Model) -> Model:
  """A resolved copy of `model`."""
  return config_lib.resolve(config_lib.Config(model=model)).model


def biased(model: Model) -> frozenset:
  """The parts that have a bias."""
  parts = NONE if not model.bias else EVERY if model.bias_on == 'all' else frozenset(model.bias_on.split(','))
  return parts if model.norm == 'layernorm' else parts - {'norm'}


def bias_of(parts: frozenset, norm: str) -> dict[str, Any]:
  """The settings of a model in which these parts have a bias."""
  whole = EVERY if norm == 'layernorm' else LINEAR
  return {'bias': bool(parts), 'bias_on': 'all' if parts in (NONE, whole) else
          ','.join(part for part in BIASED if part in parts)}


def unmet(family: Family, model: Model) -> list[str]:
  """A phrase for every setting of `model` that `family` cannot express."""
  out, plain = [], Model()
  for field in dataclasses.fields(Model):
    value = getattr(model, field.name)
    values = family.needs.get(field.name, (getattr(plain, field.name),))
    if field.name not in (family.needs.keys() | FREE) or field.name in family.needs:
      if not any(one(model) if callable(one) else value == one for one in values):
        words = ' or '.join('another' if callable(one) else repr(one) for one in values)
        out.append(f'model.{field.name} is {value!r} ({family.name} needs {words})')
  if not expressed(family, model):
    said = ', '.join(sorted(biased(model))) or 'nothing'
    out.append(f"model.bias_on has {said} ({family.name} has "
               f"{' or '.join(','.join(p for p in BIASED if p in one) or 'nothing' for one in family.biases)})")
  return out


def expressed(family: Family, model: Model) -> Model | None:
  """The model with the biases and scales that the family has besides, to be zero and one; None if it lacks some."""
  have = biased(model)
  able = [parts for parts in family.biases if have <= parts]
  if not able or model.norm_scale and not family.norm_scale:
    return None
  parts = min(able, key=len)
  scale = family.norm_scale if model.norm != 'none' else model.norm_scale
  own = {} if parts == have else bias_of(parts, model.norm)
  return dataclasses.replace(model, norm_scale=scale, **own)


def param_dtype(tensors: Tensors) -> str:
  """What holds every tensor exactly: bfloat16 if all are, else float32."""
  dtypes = {tensor.dtype.name: name for name, tensor in tensors.items() if not BUFFERS.search(name)}
  for dtype in sorted(dtypes.keys() - {'float32', 'float16', 'bfloat16'}):
    raise ConfigError(f"tensor '{dtypes[dtype]}' is {dtype}; expected float32, float16 or bfloat16")
  return 'bfloat16' if dtypes.keys() == {'bfloat16'} else 'float32'


def our_parameters(model: Model, vocabulary: int, length: int) -> dict[str, contract.Parameter]:
  """Dotted path -> parameter; asked of the model, so that there is no second list to keep true."""
  tree = jax.eval_shape(lambda: Decoder(model, vocabulary, length).parameters(jax.random.key(0)))
  return traverse_util.flatten_dict(tree, sep='.')


def matrix_shape(parameter: contract.Parameter) -> tuple[int, ...]:
  """[N, *in, *out] -> [N, in, out] for a weight, [N, *out] -> [N, out] for a bias or a norm."""
  stacked, inputs, outputs = parameter.sizes(parameter.value.shape)
  return (*stacked, *([math.prod(inputs)] if inputs else []), math.prod(outputs))


@dataclasses.dataclass(frozen=True)
class Row:
  """One name of theirs, or one a layer: our paths in it, whose last axes have these sizes, and the shape in the file."""
  paths: list[str]
  outs: list[int]
  shape: tuple[int, ...]
  flip: bool
  heads: int = 0  # side by side head by head

  def join(self, parts: list[np.ndarray]) -> np.ndarray:
    """[N, ..., out] each -> as theirs, a layer each."""
    if self.heads:
      parts = [part.reshape(*part.shape[:-1], self.heads, -1) for part in parts]
      joined = np.stack(parts, axis=-2).reshape(*parts[0].shape[:-2], -1)
    else:
      joined = np.concatenate(parts, axis=-1)
    return joined.swapaxes(1, 2) if self.flip else joined

  def split(self, x: np.ndarray) -> list[np.ndarray]:
    """The inverse of `join`."""
    x = x.swapaxes(1, 2) if self.flip else x
    if self.heads:
      x = x.reshape(*x.shape[:-1], self.heads, len(self.paths), -1)
      return [x[..., place, :].reshape(*x.shape[:-3], -1) for place in range(len(self.paths))]
    return np.split(x, np.cumsum(self.outs)[:-1], axis=-1)


def layout(family: Family, model: Model, ours: Mapping[str, contract.Parameter]) -> dict[str, Row]:
  """Their names, '{}' for the layer -> what of ours is in them."""
  def top_row(path):
    rows, *rest = ours[path].value.shape
    return Row([path], [], (rows + (family.skipped if path == 'position' else 0), *rest), False)
  rows = {('' if path == 'head' else family.root) + theirs: top_row(path)
          for path, theirs in family.top.items() if path in ours}
  for modules, theirs in family.blocks.items():
    for kind, suffix in (('weight', 'weight'), ('scale', 'weight'), ('bias', 'bias')):
      paths = [f'blocks.{module}.{kind}' for module in modules.split()]
      if paths[0] in ours:
        *inputs, _ = matrix_shape(ours[paths[0]])[1:]
        outs = [matrix_shape(ours[path])[-1] for path in paths]
        shape, flip = (*inputs, sum(outs)), family.flip and len(inputs) == 1
        heads = model.heads if family.by_head and len(paths) > 1 else 0
        rows[f'{family.root}{family.layer}{theirs}.{suffix}'] = Row(
            paths, outs, shape[::-1] if flip else shape, flip, heads)
  if left := set(ours) - {path for row in rows.values() for path in row.paths}:
    raise ConfigError(f"parameter '{min(left)}' has no counterpart in {family.name}")
  return rows


def compare(what: str, actual: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
  """Raises ConfigError for the first name that is missing, unknown or of another shape."""
  for names, verb in ((sorted(expected.keys() - actual), 'missing'), (sorted(actual.keys() - expected), 'unknown')):
    if names:
      others = f' (and {len(names) - 1} more)' if len(names) > 1 else ''
      raise ConfigError(f"{what} '{names[0]}' {list((expected | actual)[names[0]])} is {verb}{others}")
  for name, shape in expected.items():
    if actual[name] != shape:
      raise ConfigError(f"{what} '{name}' has shape {list(actual[name])}; expected {list(shape)}")


def names_of(family: Family, tensors: Tensors, tied: bool) -> dict[str, np.ndarray]:
  """Tensors under the names of `layout`: with the root that bare models lack, without old files' constants and without
  a second copy of a tied embedding."""
  found = {name if name == family.top['head'] else family.root + name.removeprefix(family.root): tensor
           for name, tensor in tensors.items() if not BUFFERS.search(name)}
  embedding = family.root + family.top['embedding']
  if tied and (head := found.pop(family.top['head'], None)) is not None:  # some tools write both
    if not np.array_equal(head, found.get(embedding, head)):
      raise ConfigError(f"tensor '{family.top['head']}' is not the embedding; expected tie_word_embeddings false")
  return found


def read(family: Family, hf: Mapping[str, Any], tensors: Tensors) -> Loaded:
  """The four results of `load`. Raises ConfigError for what Decoder cannot express."""
  settings, keys = Settings(hf), family.keys
  settings.ignored(*family.harmless)
  sizes: dict[str, Any] = {name: settings.whole(keys[name]) for name in ('layers', 'width', 'heads')}
  sizes['feedforward'] = settings.whole(keys['feedforward'], 4 * sizes['width'] if family.name == 'gpt2' else None)
  own = family.read(settings)
  vocabulary, longest = settings.whole('vocab_size'), settings.whole(keys['length'])
  if 'norm_epsilon' in keys:
    own['norm_epsilon'] = settings.number(keys['norm_epsilon'], 1e-6 if keys['norm_epsilon'] == 'rms_norm_eps' else 1e-5)
  tied = settings.flag('tie_word_embeddings', family.tied)
  settings.finish()
  dtype = param_dtype(tensors)
  tensors = names_of(family, tensors, tied)
  changed = family.change(settings, tensors)
  inexact = family.offset or any(changed[name] is not tensors.get(name) for name in changed)
  own['head_width'] = 0 if own.get('head_width', 0) * sizes['heads'] == sizes['width'] else own.get('head_width', 0)
  model = resolved(Model(**sizes | own, tied_head=tied, param_dtype='float32' if inexact else dtype,
                         norm_scale=family.norm_scale))
  return model, vocabulary, longest, from_tensors(family, model, vocabulary, longest, changed)


def from_tensors(family: Family, model: Model, vocabulary: int, longest: int, tensors: Tensors) -> dict[str, Any]:
  """Our parameters, in the dtype that the model has. Raises ConfigError for names, shapes or values that do not fit."""
  ours = our_parameters(model, vocabulary, longest)
  rows = layout(family, model, ours)
  layers = lambda name: range(model.layers if '{}' in name else 1)  # a name without '{}' is its own format
  compare('tensor', {name: tensor.shape for name, tensor in tensors.items()},
          {name.format(n): row.shape for name, row in rows.items() for n in layers(name)})
  flat = {}
  for name, row in rows.items():
    x = np.stack([tensors[name.format(n)] for n in layers(name)])
    if not np.isfinite(x.astype(np.float32)).all():
      bad = next(n for n in layers(name) if not np.isfinite(np.asarray(tensors[name.format(n)], np.float32)).all())
      raise ConfigError(f"tensor '{name.format(bad)}' has values that are not finite; expected numbers")
    for path, part in zip(row.paths, row.split(x) if '{}' in name else [x]):
      part = part[:, family.skipped:] if path == 'position' else part
      part = part.astype(np.float32) + np.float32(family.offset) if path.endswith('scale') and family.offset else part
      flat[path] = np.ascontiguousarray(part.reshape(ours[path].value.shape), dtype=jnp.dtype(model.param_dtype))
  return traverse_util.unflatten_dict(flat, sep='.')


def write(family: Family, model: Model, vocabulary: int, length: int, params: Any) -> Saved:
  """config.json and tensors of transformers' model, each contiguous, in the dtype of `params`.

  Biases that the format has besides ours are 0, and factors 1. Raises ConfigError for what the family cannot express.
  """
  model = resolved(model)
  if problems := unmet(family, model):
    raise ConfigError(f"the model cannot be saved as {family.name}: {', '.join(problems)}")
  flat = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep='.').items()}
  own, whole = our_parameters(model, vocabulary, length), expressed(family, model)
  assert whole is not None
  compare('parameter', {path: leaf.shape for path, leaf in flat.items()},
          {path: parameter.value.shape for path, parameter in own.items()})
  ours = our_parameters(whole, vocabulary, length)
  for path, parameter in ours.items():
    flat.setdefault(path, np.full(parameter.value.shape, float(path.endswith('scale')), flat['embedding'].dtype))
  tensors: dict[str, np.ndarray] = {}
  for name, row in layout(family, whole, ours).items():
    parts = [flat[path].reshape(matrix_shape(ours[path])) if '{}' in name else flat[path][None] for path in row.paths]
    if family.offset and row.paths[0].endswith('scale'):
      parts = [(part.astype(np.float32) - np.float32(family.offset)).astype(part.dtype) for part in parts]
    if family.skipped and row.paths == ['position']:
      parts = [np.pad(part, [(0, 0), (family.skipped, 0), (0, 0)]) for part in parts]
    x = row.join(parts) if '{}' in name else parts[0]
    # safetensors writes an array's memory as it lies, whatever its strides.
    tensors |= {name.format(n): np.ascontiguousarray(x[n]) for n in range(len(x))}
  sizes = {theirs: length if ours_ == 'length' else getattr(whole, ours_) for ours_, theirs in family.keys.items()}
  return {'model_type': family.name, 'architectures': [family.architecture], 'vocab_size': vocabulary} | sizes | {
      'tie_word_embeddings': model.tied_head, 'dtype': param_dtype(tensors),
      'bos_token_id': None, 'eos_token_id': None,  # their defaults need not be in this vocabulary
      } | family.write(whole), tensors
