"""Converts decoders from and to Hugging Face's GPT-2 and Llama: a folder of `config.json` and `model.safetensors`.

Sources: transformers' `models/gpt2/modeling_gpt2.py` and `models/llama/modeling_llama.py` (read at 5.23), and
https://huggingface.co/docs/safetensors. Both architectures are settings of `Decoder`, so that a conversion renames,
reshapes and transposes; no number changes. Theirs has one tensor a layer, ours stacks the N layers. GPT-2's Conv1D
keeps a matrix as [in, out], as here, and query, key and value in one; Llama's Linear keeps it as [out, in]. Both
rotate channel k with channel k + K/2; checkpoints in Meta's own layout, which pairs neighbours, are not read.

What a folder does not hold is left at its default by `load`: the dtype of the arithmetic, the attention backend,
scan and remat. Dropout is GPT-2's `resid_pdrop` (Llama has none; neither here has one on attention weights).
"""

import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from foundation import files, reading
from framework import config as config_lib
from framework.config import ConfigError, Model
from framework.models import contract
from framework.models.decoder import Decoder

Tensors = Mapping[str, np.ndarray]
Loaded = tuple[Model, int, int, dict[str, Any]]  # settings, vocabulary V, longest position, parameters
Saved = tuple[dict[str, Any], dict[str, np.ndarray]]  # what goes into config.json, tensors

# Our modules of a block -> their name for it; several of ours lie side by side in one of theirs.
BLOCK = {
    'gpt2': {'attention_norm': 'ln_1', 'query key value': 'attn.c_attn', 'out': 'attn.c_proj',
             'feedforward_norm': 'ln_2', 'up': 'mlp.c_fc', 'down': 'mlp.c_proj'},
    'llama': {'attention_norm': 'input_layernorm', 'query': 'self_attn.q_proj', 'key': 'self_attn.k_proj',
              'value': 'self_attn.v_proj', 'out': 'self_attn.o_proj', 'feedforward_norm': 'post_attention_layernorm',
              'up': 'mlp.up_proj', 'gate': 'mlp.gate_proj', 'down': 'mlp.down_proj'},
}
TOP = {
    'gpt2': {'embedding': 'wte.weight', 'position': 'wpe.weight', 'norm.scale': 'ln_f.weight',
             'norm.bias': 'ln_f.bias', 'head': 'lm_head.weight'},
    'llama': {'embedding': 'embed_tokens.weight', 'norm.scale': 'norm.weight', 'head': 'lm_head.weight'},
}
ROOT = {'gpt2': 'transformer.', 'llama': 'model.'}  # of every name but the head's
LAYER = {'gpt2': 'h.{}.', 'llama': 'layers.{}.'}
BUFFERS = re.compile(r'\.attn\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$')  # constants that old files carry

# Settings of ours that a family can express.
COMMON: dict[str, tuple] = {'name': ('decoder',), 'head_width': (0,), 'relative_bias': (0,), 'mask': ('causal',),
                            'attention_scale': ('sqrt',), 'loops': (1,)}
NEEDS: dict[str, dict[str, tuple]] = {
    'gpt2': {'position': ('learned',), 'norm': ('layernorm',), 'activation': ('gelu', 'relu', 'relu2'),
             'bias': (True,)},
    'llama': {'position': ('rope',), 'norm': ('rmsnorm',), 'activation': ('swiglu',)},
}
# Settings of theirs that Decoder can express; a key that is absent has the first value.
GPT2_ACTIVATIONS = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu', 'relu': 'relu',
                    'relu2': 'relu2'}
ALLOWED: dict[str, dict[str, tuple]] = {
    'gpt2': {'activation_function': tuple(GPT2_ACTIVATIONS), 'scale_attn_weights': (True,),
             'scale_attn_by_inverse_layer_idx': (False,), 'add_cross_attention': (False,)},
    'llama': {'hidden_act': ('silu', 'swish'), 'sliding_window': (None,), 'partial_rotary_factor': (None, 1.0)},
}


def resolved(model: Model) -> Model:
  """A resolved copy of `model`."""
  return config_lib.resolve(config_lib.Config(model=model)).model


def unmet(family: str, model: Model) -> list[str]:
  """A phrase for every setting of `model` that `family` cannot express."""
  needs = COMMON | NEEDS[family] | ({'kv_heads': (model.heads,)} if family == 'gpt2' else {})
  return [f"model.{key} is {getattr(model, key)!r} ({family} needs {' or '.join(map(repr, values))})"
          for key, values in needs.items() if getattr(model, key) not in values]


def check_allowed(family: str, hf: Mapping[str, Any]) -> None:
  for key, values in ALLOWED[family].items():
    if (value := hf.get(key, values[0])) not in values:
      raise ConfigError(f"config.json has {key} {value!r}; expected {' or '.join(map(repr, values))}")


def whole(hf: Mapping[str, Any], key: str) -> int:
  """The positive whole number that config.json has under `key`."""
  if type(value := hf.get(key)) is not int or not 1 <= value < 2**31:
    raise ConfigError(f'config.json has {key} {value!r}; expected a positive whole number below 2^31')
  return value


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


def layout(family: str, ours: Mapping[str, contract.Parameter]) -> dict[str, tuple[list[str], tuple[int, ...], bool]]:
  """Their names, '{}' for the layer -> (our paths, side by side in the last axis; shape in the file; transposed?)."""
  rows = {('' if path == 'head' else ROOT[family]) + theirs: ([path], ours[path].value.shape, False)
          for path, theirs in TOP[family].items() if path in ours}
  for modules, theirs in BLOCK[family].items():
    for kind, suffix in (('weight', 'weight'), ('scale', 'weight'), ('bias', 'bias')):
      paths = [f'blocks.{module}.{kind}' for module in modules.split()]
      if paths[0] in ours:
        *inputs, outputs = matrix_shape(ours[paths[0]])[1:]
        shape, flip = (*inputs, outputs * len(paths)), family == 'llama' and len(inputs) == 1
        rows[f'{ROOT[family]}{LAYER[family]}{theirs}.{suffix}'] = paths, shape[::-1] if flip else shape, flip
  if left := set(ours) - {path for paths, *_ in rows.values() for path in paths}:
    raise ConfigError(f"parameter '{min(left)}' has no counterpart in {family}")
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


def from_tensors(family: str, hf: Mapping[str, Any], model: Model, length: str, tensors: Tensors) -> Loaded:
  """The four results of `load`; `length` is the name of that setting in `hf`."""
  model, vocabulary, longest = resolved(model), whole(hf, 'vocab_size'), whole(hf, length)
  root = ROOT[family]  # absent from a bare GPT2Model or LlamaModel, such as OpenAI's own files
  tensors = {name if name == 'lm_head.weight' else root + name.removeprefix(root): tensor
             for name, tensor in tensors.items() if not BUFFERS.search(name)}
  if model.tied_head and (head := tensors.pop('lm_head.weight', None)) is not None:  # some tools write both
    if not np.array_equal(head, tensors.get(root + TOP[family]['embedding'], head)):
      raise ConfigError("tensor 'lm_head.weight' is not the embedding; expected tie_word_embeddings false")
  ours = our_parameters(model, vocabulary, longest)
  rows = layout(family, ours)
  layers = lambda name: range(model.layers if '{}' in name else 1)  # a name without '{}' is its own format
  compare('tensor', {name: tensor.shape for name, tensor in tensors.items()},
          {name.format(n): shape for name, (_, shape, _) in rows.items() for n in layers(name)})
  flat = {}
  for name, (paths, _, flip) in rows.items():
    x = np.stack([tensors[name.format(n)] for n in layers(name)])
    for path, part in zip(paths, np.split(x.swapaxes(1, 2) if flip else x, len(paths), axis=-1)):
      flat[path] = np.ascontiguousarray(part.reshape(ours[path].value.shape), dtype=jnp.dtype(model.param_dtype))
  return model, vocabulary, longest, traverse_util.unflatten_dict(flat, sep='.')


def to_tensors(family: str, model: Model, vocabulary: int, length: int, params: Any) -> dict[str, np.ndarray]:
  """Their tensors, each contiguous, in the dtype of `params`."""
  if problems := unmet(family, model):
    raise ConfigError(f"the model cannot be saved as {family}: {', '.join(problems)}")
  ours = our_parameters(model, vocabulary, length)
  tensors: dict[str, np.ndarray] = {}
  flat = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep='.').items()}
  compare('parameter', {path: leaf.shape for path, leaf in flat.items()},
          {path: parameter.value.shape for path, parameter in ours.items()})
  for name, (paths, _, flip) in layout(family, ours).items():
    x = np.concatenate([flat[path].reshape(matrix_shape(ours[path])) if '{}' in name else flat[path][None]
                        for path in paths], axis=-1)
    x = x.swapaxes(1, 2) if flip else x
    # safetensors writes an array's memory as it lies, whatever its strides.
    tensors |= {name.format(n): np.ascontiguousarray(x[n]) for n in range(len(x))}
  return tensors


def from_gpt2(hf: Mapping[str, Any], tensors: Tensors) -> Loaded:
  """The inverse of `to_gpt2`. Raises ConfigError."""
  check_allowed('gpt2', hf)
  model = Model(
      layers=whole(hf, 'n_layer'), width=whole(hf, 'n_embd'), heads=whole(hf, 'n_head'),
      feedforward=hf.get('n_inner') or 0, position='learned', norm='layernorm', bias=True,
      norm_epsilon=hf.get('layer_norm_epsilon', 1e-5), tied_head=hf.get('tie_word_embeddings', True),
      dropout=hf.get('resid_pdrop', 0.1), param_dtype=param_dtype(tensors),
      activation=GPT2_ACTIVATIONS[hf.get('activation_function', 'gelu_new')])
  return from_tensors('gpt2', hf, model, 'n_positions', tensors)


def to_gpt2(model: Model, vocabulary: int, length: int, params: Any) -> Saved:
  """config.json and tensors of transformers' GPT2LMHeadModel. Raises ConfigError for what GPT-2 cannot express."""
  model = resolved(model)
  tensors = to_tensors('gpt2', model, vocabulary, length, params)
  return {
      'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'vocab_size': vocabulary, 'n_positions': length,
      'n_layer': model.layers, 'n_embd': model.width, 'n_head': model.heads, 'n_inner': model.feedforward,
      'activation_function': {'gelu': 'gelu_new'}.get(model.activation, model.activation),
      'layer_norm_epsilon': model.norm_epsilon, 'tie_word_embeddings': model.tied_head, 'resid_pdrop': model.dropout,
      'embd_pdrop': model.dropout, 'attn_pdrop': 0.0, 'dtype': param_dtype(tensors),
      'bos_token_id': None, 'eos_token_id': None,  # their default, 50256, need not be in this vocabulary
  }, tensors


def rope_base(hf: Mapping[str, Any]) -> float:
  """The base from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (4)."""
  kind = (dict.fromkeys(('rope_type', 'type'), (str, None)), None)
  reading.check('config.json', hf, dict.fromkeys(('rope_parameters', 'rope_scaling'), kind))
  rope = (hf.get('rope_parameters') or {}) | (hf.get('rope_scaling') or {})
  kinds = {rope.get('rope_type', 'default'), rope.get('type', 'default')}
  if kinds != {'default'} or rope.get('partial_rotary_factor', 1) != 1:
    raise ConfigError(f"config.json has rope_parameters or rope_scaling {rope!r}; expected rope_type 'default'")
  return rope.get('rope_theta', hf.get('rope_theta', 10000.0))


def from_llama(hf: Mapping[str, Any], tensors: Tensors) -> Loaded:
  """The inverse of `to_llama`. Raises ConfigError."""
  check_allowed('llama', hf)
  reading.check('config.json', hf, {'head_dim': (int, None)})
  width, heads, bias = whole(hf, 'hidden_size'), whole(hf, 'num_attention_heads'), hf.get('attention_bias', False)
  if bias != hf.get('mlp_bias', False):
    raise ConfigError(f'config.json has attention_bias {bias}; expected that of mlp_bias, as model.bias is both')
  if (head_dim := hf.get('head_dim')) is not None and head_dim * heads != width:
    raise ConfigError(f'config.json has head_dim {head_dim}; expected hidden_size / heads = {width / heads:g}')
  model = Model(
      layers=whole(hf, 'num_hidden_layers'), width=width, heads=heads, kv_heads=hf.get('num_key_value_heads') or 0,
      feedforward=whole(hf, 'intermediate_size'), position='rope', rope_base=rope_base(hf), norm='rmsnorm',
      norm_epsilon=hf.get('rms_norm_eps', 1e-6), activation='swiglu', bias=bias,
      tied_head=hf.get('tie_word_embeddings', False), param_dtype=param_dtype(tensors))
  return from_tensors('llama', hf, model, 'max_position_embeddings', tensors)


def to_llama(model: Model, vocabulary: int, length: int, params: Any) -> Saved:
  """config.json and tensors of transformers' LlamaForCausalLM. Raises ConfigError for what Llama cannot express."""
  model = resolved(model)
  tensors = to_tensors('llama', model, vocabulary, length, params)
  return {
      'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'vocab_size': vocabulary,
      'max_position_embeddings': length, 'num_hidden_layers': model.layers, 'hidden_size': model.width,
      'num_attention_heads': model.heads, 'num_key_value_heads': model.kv_heads, 'hidden_act': 'silu',
      'head_dim': model.width // model.heads, 'intermediate_size': model.feedforward,
      'rms_norm_eps': model.norm_epsilon, 'attention_bias': model.bias, 'mlp_bias': model.bias,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': model.rope_base},
      'rope_theta': model.rope_base,  # transformers 4 reads this one, and without it takes 10000 and says nothing
      'tie_word_embeddings': model.tied_head, 'dtype': param_dtype(tensors), 'bos_token_id': None, 'eos_token_id': None,
  }, tensors


FROM = {'gpt2': from_gpt2, 'llama': from_llama}
TO = {'gpt2': to_gpt2, 'llama': to_llama}


def import_safetensors():
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


def load(folder: str | os.PathLike) -> Loaded:
  """(settings, vocabulary V, longest position, NumPy parameters) of a folder that `save_pretrained` wrote.

  Raises ConfigError for a file, tensor or setting that is missing or that Decoder cannot express.
  """
  folder, safetensors = pathlib.Path(folder), import_safetensors()
  tensors: dict[str, np.ndarray] = {}
  hf, index = read_json(folder / 'config.json'), folder / 'model.safetensors.index.json'
  if (family := hf.get('model_type')) not in FROM:
    raise ConfigError(f"config.json has model_type {family!r}; expected {' or '.join(map(repr, FROM))}")
  whole_file = (folder / 'model.safetensors').exists() or not index.exists()
  for name in ['model.safetensors'] if whole_file else shards(index):
    try:
      with reading.opened(folder / name, store(folder)):  # refuses a link elsewhere, or a pipe
        tensors |= safetensors.numpy.load_file(folder / name)
    except (OSError, safetensors.SafetensorError) as error:
      raise ConfigError(f'{folder / name} cannot be read: {error}') from error
  return FROM[family](hf, tensors)


def save(folder: str | os.PathLike, model: Model, vocabulary: int, length: int, params: Any) -> None:
  """Writes a folder for transformers' `AutoModelForCausalLM.from_pretrained`: GPT-2's or Llama's, by the settings.

  Raises ConfigError for settings that neither can express, other shapes, or a folder with files in it.
  """
  folder, model, safetensors = pathlib.Path(folder), resolved(model), import_safetensors()
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise ConfigError(f'{folder} exists; expected a new or an empty folder')
  family = min(TO, key=lambda family: len(unmet(family, model)))  # the nearer one says what it cannot express
  hf, tensors = TO[family](model, vocabulary, length, params)
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f'.model.safetensors.{os.getpid()}.tmp'
  try:
    safetensors.numpy.save_file(tensors, temporary, metadata={'format': 'pt'})
    os.replace(temporary, folder / 'model.safetensors')
  finally:
    temporary.unlink(missing_ok=True)
  files.write_json(folder / 'config.json', hf)  # last: a folder cut short has none, and cannot be loaded
