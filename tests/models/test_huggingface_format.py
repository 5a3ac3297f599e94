"""Folders in Hugging Face's format, written and read without PyTorch; tests/peers compares with transformers."""

import dataclasses
import json
import re
import sys

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

safetensors_numpy = pytest.importorskip('safetensors.numpy')

from framework.config import ConfigError, Model
from framework.models import contract, huggingface
from tests.networks import build

V, LENGTH = 17, 11
GPT2 = Model(layers=2, width=12, heads=3, feedforward=20, position='learned', norm='layernorm', norm_epsilon=3e-4,
             bias=True, dropout=0.25)
LLAMA = Model(layers=3, width=12, heads=6, kv_heads=2, feedforward=10, rope_base=500.0, norm_epsilon=3e-4,
              activation='swiglu', tied_head=False)


def random_params(model, dtype=np.float32):
  ours = huggingface.our_parameters(huggingface.resolved(model), V, LENGTH)
  rng = np.random.default_rng(0)
  return traverse_util.unflatten_dict({k: rng.normal(size=p.value.shape).astype(dtype) for k, p in ours.items()},
                                      sep='.')


def assert_equal(a, b):
  a, b = (traverse_util.flatten_dict(x, sep='.') for x in (a, b))
  assert a.keys() == b.keys()
  for path in a:
    assert a[path].dtype == b[path].dtype and a[path].shape == b[path].shape
    assert a[path].tobytes() == np.asarray(b[path]).tobytes(), path


@pytest.mark.parametrize('model', [
    GPT2, dataclasses.replace(GPT2, activation='relu', tied_head=False, feedforward=0),
    LLAMA, dataclasses.replace(LLAMA, tied_head=True, kv_heads=0, feedforward=0), dataclasses.replace(LLAMA, bias=True),
])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_is_saved_is_loaded_bit_for_bit(model, dtype, tmp_path):
  model = dataclasses.replace(model, param_dtype=dtype)
  params = random_params(model, jnp.dtype(dtype))
  huggingface.save(tmp_path / 'a' / 'b', model, V, LENGTH, jax.tree.map(jnp.asarray, params))
  loaded, vocabulary, length, again = huggingface.load(tmp_path / 'a' / 'b')
  dropout = model.dropout if model.position == 'learned' else 0.0
  assert (loaded, vocabulary, length) == (dataclasses.replace(huggingface.resolved(model), dropout=dropout), V, LENGTH)
  assert_equal(again, params)
  assert sorted(path.name for path in (tmp_path / 'a' / 'b').iterdir()) == ['config.json', 'model.safetensors']


def test_what_the_model_initialises_can_be_saved_and_runs_when_loaded(tmp_path):
  model = dataclasses.replace(LLAMA, layers=1)
  module = build(huggingface.resolved(model), V, LENGTH)
  params = contract.init(module, jax.random.key(0))
  huggingface.save(tmp_path, model, V, LENGTH, params)
  *settings, again = huggingface.load(tmp_path)
  assert build(*settings) == module
  ids = jnp.arange(8).reshape(1, 8)
  run = jax.jit(lambda params: module.logits(params, module.apply({'params': params}, ids, ids, ids * 0 + 1)[0]))
  np.testing.assert_array_equal(run(params), run(again))


def test_layouts_are_those_of_the_sources():
  """One number each, followed by hand: GPT-2's fused [in, q|k|v] and Llama's [out, in]."""
  params = random_params(GPT2)
  _, tensors = huggingface.to_gpt2(GPT2, V, LENGTH, params)
  fused = tensors['transformer.h.1.attn.c_attn.weight']
  assert fused.shape == (12, 36)
  assert fused[5, 12 + 2 * 4 + 3] == params['blocks']['key']['weight'][1, 5, 2, 3]
  assert tensors['transformer.h.1.attn.c_attn.bias'][24 + 4 + 1] == params['blocks']['value']['bias'][1, 1, 1]
  assert tensors['transformer.h.0.attn.c_proj.weight'][4 + 2, 7] == params['blocks']['out']['weight'][0, 1, 2, 7]
  params = random_params(LLAMA)
  _, tensors = huggingface.to_llama(LLAMA, V, LENGTH, params)
  assert tensors['model.layers.2.self_attn.k_proj.weight'].shape == (4, 12)
  assert tensors['model.layers.2.self_attn.k_proj.weight'][2 + 1, 5] == params['blocks']['key']['weight'][2, 5, 1, 1]
  assert tensors['model.layers.2.self_attn.o_proj.weight'][7, 4 + 1] == params['blocks']['out']['weight'][2, 2, 1, 7]
  assert tensors['model.layers.0.mlp.down_proj.weight'][3, 9] == params['blocks']['down']['weight'][0, 9, 3]


def test_names_and_copies_of_older_files_are_understood():
  config, tensors = huggingface.to_gpt2(GPT2, V, LENGTH, random_params(GPT2))
  old = {name.removeprefix('transformer.'): tensor for name, tensor in tensors.items()}
  old['h.0.attn.bias'] = np.tril(np.ones((1, 1, LENGTH, LENGTH), np.uint8))
  old['lm_head.weight'] = old['wte.weight'].copy()
  assert_equal(huggingface.from_gpt2(config, old)[3], random_params(GPT2))
  with pytest.raises(ConfigError, match='lm_head.weight'):
    huggingface.from_gpt2(config, old | {'lm_head.weight': old['wte.weight'] + 1})
  config, tensors = huggingface.to_llama(LLAMA, V, LENGTH, random_params(LLAMA))
  config = {k: v for k, v in config.items() if k not in ('rope_parameters', 'head_dim', 'mlp_bias', 'attention_bias')}
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(1, np.float32)
  assert huggingface.from_llama(config, tensors)[0] == huggingface.resolved(LLAMA)
  assert huggingface.from_llama(config | {'rope_theta': 70.0, 'rope_scaling': None}, tensors)[0].rope_base == 70.0
  assert huggingface.from_llama(config | {'rope_parameters': {'rope_theta': 80}}, tensors)[0].rope_base == 80.0


def test_half_precision_is_read_exactly_as_float32():
  config, tensors = huggingface.to_gpt2(GPT2, V, LENGTH, random_params(GPT2, np.float16))
  model, _, _, params = huggingface.from_gpt2(config, tensors)
  assert model.param_dtype == 'float32'
  assert_equal(params, jax.tree.map(lambda x: x.astype(np.float32), random_params(GPT2, np.float16)))


def test_shards_are_read_and_a_missing_one_is_named(tmp_path):
  config, tensors = huggingface.to_llama(LLAMA, V, LENGTH, random_params(LLAMA))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  shards = {name: f'model-{i % 2}.safetensors' for i, name in enumerate(tensors)}
  for shard in set(shards.values()):
    safetensors_numpy.save_file({k: v for k, v in tensors.items() if shards[k] == shard}, tmp_path / shard)
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': shards}))
  assert_equal(huggingface.load(tmp_path)[3], random_params(LLAMA))
  (tmp_path / 'model-1.safetensors').unlink()
  with pytest.raises(ConfigError, match='model-1.safetensors cannot be read'):
    huggingface.load(tmp_path)


@pytest.mark.parametrize('model, words', [
    (dataclasses.replace(GPT2, position='sinusoidal'), "model.position is 'sinusoidal' (gpt2 needs 'learned')"),
    (dataclasses.replace(GPT2, bias=False), 'model.bias is False (gpt2 needs True)'),
    (dataclasses.replace(GPT2, kv_heads=1), 'model.kv_heads is 1 (gpt2 needs 3)'),
    (dataclasses.replace(LLAMA, activation='relu'), "model.activation is 'relu' (llama needs 'swiglu')"),
    (dataclasses.replace(LLAMA, norm='layernorm'), "model.norm is 'layernorm' (llama needs 'rmsnorm')"),
    (dataclasses.replace(LLAMA, position='none'), "model.position is 'none' (llama needs 'rope')"),
    (dataclasses.replace(LLAMA, name='other'), "model.name is 'other'"),
    (dataclasses.replace(LLAMA, heads=5), 'model.heads is 5; expected a divisor'),
])
def test_a_model_that_neither_can_express_names_its_setting(model, words, tmp_path):
  with pytest.raises(ConfigError, match=re.escape(words)) as error:
    huggingface.save(tmp_path / 'new', model, V, LENGTH, {})
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'new').exists()


def without(tensors, name):
  return {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize('family, change, words', [
    ('gpt2', {'activation_function': 'gelu'}, "activation_function 'gelu'; expected 'gelu_new' or"),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx True; expected False'),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights False'),
    ('gpt2', {'n_inner': 21}, "'transformer.h.0.mlp.c_fc.weight' has shape [12, 20]; expected [12, 21]"),
    ('gpt2', {'n_layer': None}, 'n_layer None; expected a positive whole number'),
    ('gpt2', {'n_layer': 3}, "'transformer.h.2.attn.c_attn.bias' [36] is missing (and 11 more)"),
    ('gpt2', {'n_layer': 1}, "'transformer.h.1.attn.c_attn.bias' [36] is unknown (and 11 more)"),
    ('gpt2', {'tie_word_embeddings': False}, "'lm_head.weight' [17, 12] is missing"),
    ('gpt2', {'vocab_size': 18}, "'transformer.wte.weight' has shape [17, 12]; expected [18, 12]"),
    ('gpt2', {'layer_norm_epsilon': 'small'}, "model.norm_epsilon is 'small'; expected float"),
    ('llama', {'hidden_act': 'gelu'}, "hidden_act 'gelu'; expected 'silu' or 'swish'"),
    ('llama', {'sliding_window': 4096}, 'sliding_window 4096; expected None'),
    ('llama', {'head_dim': 4}, 'head_dim 4; expected hidden_size / heads = 2'),
    ('llama', {'attention_bias': True}, 'attention_bias True; expected that of mlp_bias'),
    ('llama', {'rope_scaling': {'type': 'linear', 'factor': 2.0}}, "expected rope_type 'default'"),
    ('llama', {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 5e5}}, "expected rope_type 'default'"),
    ('llama', {'rope_parameters': {'rope_theta': 5e5, 'partial_rotary_factor': 0.5}}, "expected rope_type 'default'"),
    ('llama', {'num_key_value_heads': 4}, 'model.kv_heads is 4; expected a divisor of model.heads 6'),
    ('llama', {'num_key_value_heads': 3}, "k_proj.weight' has shape [4, 12]; expected [6, 12]"),
])
def test_a_config_that_cannot_be_honoured_is_one_line(family, change, words):
  model = {'gpt2': GPT2, 'llama': LLAMA}[family]
  config, tensors = huggingface.TO[family](model, V, LENGTH, random_params(model))
  with pytest.raises(ConfigError, match=re.escape(words)) as error:
    huggingface.FROM[family](config | change, tensors)
  assert '\n' not in str(error.value)


def test_tensors_that_cannot_be_honoured_are_named():
  config, tensors = huggingface.to_llama(LLAMA, V, LENGTH, random_params(LLAMA))
  name = 'model.layers.1.mlp.up_proj.weight'
  for wrong, words in (
      (without(tensors, name), f"tensor '{name}' [10, 12] is missing"),
      (tensors | {name: tensors[name].T}, f"tensor '{name}' has shape [12, 10]; expected [10, 12]"),
      (tensors | {'model.extra': tensors[name]}, "tensor 'model.extra' [10, 12] is unknown"),
      (tensors | {name: tensors[name].astype(np.int8)}, f"tensor '{name}' is int8; expected float32"),
  ):
    with pytest.raises(ConfigError, match=re.escape(words)):
      huggingface.from_llama(config, wrong)
  params = random_params(LLAMA)
  params['blocks']['up']['weight'] = params['blocks']['up']['weight'][:, :, :-1]
  with pytest.raises(ConfigError, match=r"'blocks.up.weight' has shape \[3, 12, 9\]; expected \[3, 12, 10\]"):
    huggingface.to_llama(LLAMA, V, LENGTH, params)
  with pytest.raises(ConfigError, match="parameter 'extra' has no counterpart in llama"):
    ours = huggingface.our_parameters(huggingface.resolved(LLAMA), V, LENGTH)
    huggingface.layout('llama', ours | {'extra': ours['norm.scale']})


def test_folders_that_cannot_be_used_are_named(tmp_path, monkeypatch):
  params = random_params(GPT2)
  (tmp_path / 'notes.txt').write_text('keep me')
  with pytest.raises(ConfigError, match='expected a new or an empty folder'):
    huggingface.save(tmp_path, GPT2, V, LENGTH, params)
  with pytest.raises(ConfigError, match='expected a new or an empty folder'):
    huggingface.save(tmp_path / 'notes.txt', GPT2, V, LENGTH, params)
  assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
  with pytest.raises(ConfigError, match='config.json cannot be read'):
    huggingface.load(tmp_path)
  for text, words in (('[1]', 'JSON object'), ('{"a"', 'JSON object'), ('{}', "model_type None; expected 'gpt2' or"),
                      ('{"model_type": "bert"}', "model_type 'bert'; expected 'gpt2' or 'llama'"),
                      ('{"model_type": "gpt2"}', 'model.safetensors cannot be read')):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ConfigError, match=words):
      huggingface.load(tmp_path)
  (tmp_path / 'model.safetensors').write_bytes(b'not a header at all')
  with pytest.raises(ConfigError, match='model.safetensors cannot be read'):
    huggingface.load(tmp_path)
  monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
  with pytest.raises(ConfigError, match="the extra 'hf'"):
    huggingface.load(tmp_path)


def test_a_failed_save_leaves_no_half_folder_that_loads(tmp_path, monkeypatch):
  def fail(tensors, path, metadata):
    path.write_bytes(b'half')
    raise OSError('disk full')
  monkeypatch.setattr(safetensors_numpy, 'save_file', fail)
  with pytest.raises(OSError, match='disk full'):
    huggingface.save(tmp_path / 'new', GPT2, V, LENGTH, random_params(GPT2))
  assert not list((tmp_path / 'new').iterdir())


def test_nothing_outside_the_folder_is_loaded_but_the_blobs_of_the_hub(tmp_path):
  params = random_params(GPT2)
  huggingface.save(tmp_path / 'blobs', GPT2, V, LENGTH, params)
  secret = tmp_path / 'blobs' / 'model.safetensors'
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / 'config.json').write_text((tmp_path / 'blobs' / 'config.json').read_text())
  for name in ('../blobs/model.safetensors', str(secret), '..', 3, [], 'a/../x'):
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'wte.weight': name}}))
    with pytest.raises(ConfigError, match='expected names of files beside it|expected a text|leaves its folder'):
      huggingface.load(folder)
  (folder / 'model.safetensors').symlink_to(secret)
  with pytest.raises(ConfigError, match='leaves its folder'):
    huggingface.load(folder)
  snapshot = tmp_path / 'snapshots' / 'f00'
  snapshot.mkdir(parents=True)
  for name in ('config.json', 'model.safetensors'):
    (snapshot / name).symlink_to(f'../../blobs/{name}')
  assert_equal(huggingface.load(snapshot)[-1], params)


@pytest.mark.parametrize('model', [GPT2, LLAMA])
def test_a_wrong_value_of_a_config_is_one_line(model, monkeypatch):
  known, ask = {}, huggingface.our_parameters
  monkeypatch.setattr(huggingface, 'our_parameters', lambda *model: known.get(repr(model)) or known.setdefault(
      repr(model), ask(*model)))  # which traces the model
  family = 'gpt2' if model is GPT2 else 'llama'
  config, tensors = huggingface.TO[family](model, V, LENGTH, random_params(model))
  for key in config:
    for wrong in ('x', -1, float('inf'), [], {}, [[None]], 10**280, True, {'rope_type': []}):
      try:
        huggingface.FROM[family](config | {key: wrong}, tensors)
      except ConfigError as error:
        assert '\n' not in str(error)
