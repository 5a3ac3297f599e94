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
from framework.models.huggingface import family as families
from framework.models.huggingface import folder as folders
from tests.networks import build

V, LENGTH = 17, 11
GPT2 = Model(layers=2, width=12, heads=3, feedforward=20, position='learned', norm='layernorm', norm_epsilon=3e-4,
             bias=True, dropout=0.25)
LLAMA = Model(layers=3, width=12, heads=6, kv_heads=2, feedforward=10, rope_base=500.0, norm_epsilon=3e-4,
              activation='swiglu', tied_head=False)


def random_params(model, dtype=np.float32):
  ours = families.our_parameters(families.resolved(model), V, LENGTH)
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
  assert (loaded, vocabulary, length) == (dataclasses.replace(families.resolved(model), dropout=dropout), V, LENGTH)
  assert_equal(again, params)
  assert sorted(path.name for path in (tmp_path / 'a' / 'b').iterdir()) == ['config.json', 'model.safetensors']


def test_what_the_model_initialises_can_be_saved_and_runs_when_loaded(tmp_path):
  model = dataclasses.replace(LLAMA, layers=1)
  module = build(families.resolved(model), V, LENGTH)
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
  _, tensors = huggingface.to_tensors(GPT2, V, LENGTH, params)
  fused = tensors['transformer.h.1.attn.c_attn.weight']
  assert fused.shape == (12, 36)
  assert fused[5, 12 + 2 * 4 + 3] == params['blocks']['key']['weight'][1, 5, 2, 3]
  assert tensors['transformer.h.1.attn.c_attn.bias'][24 + 4 + 1] == params['blocks']['value']['bias'][1, 1, 1]
  assert tensors['transformer.h.0.attn.c_proj.weight'][4 + 2, 7] == params['blocks']['out']['weight'][0, 1, 2, 7]
  params = random_params(LLAMA)
  _, tensors = huggingface.to_tensors(LLAMA, V, LENGTH, params)
  assert tensors['model.layers.2.self_attn.k_proj.weight'].shape == (4, 12)
  assert tensors['model.layers.2.self_attn.k_proj.weight'][2 + 1, 5] == params['blocks']['key']['weight'][2, 5, 1, 1]
  assert tensors['model.layers.2.self_attn.o_proj.weight'][7, 4 + 1] == params['blocks']['out']['weight'][2, 2, 1, 7]
  assert tensors['model.layers.0.mlp.down_proj.weight'][3, 9] == params['blocks']['down']['weight'][0, 9, 3]


def test_names_and_copies_of_older_files_are_understood():
  config, tensors = huggingface.to_tensors(GPT2, V, LENGTH, random_params(GPT2))
  old = {name.removeprefix('transformer.'): tensor for name, tensor in tensors.items()}
  old['h.0.attn.bias'] = np.tril(np.ones((1, 1, LENGTH, LENGTH), np.uint8))
  old['lm_head.weight'] = old['wte.weight'].copy()
  assert_equal(huggingface.from_tensors(config, old)[3], random_params(GPT2))
  with pytest.raises(ConfigError, match='lm_head.weight'):
    huggingface.from_tensors(config, old | {'lm_head.weight': old['wte.weight'] + 1})
  config, tensors = huggingface.to_tensors(LLAMA, V, LENGTH, random_params(LLAMA))
  config = {k: v for k, v in config.items() if k not in ('rope_parameters', 'head_dim', 'mlp_bias', 'attention_bias')}
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(1, np.float32)
  assert huggingface.from_tensors(config, tensors)[0] == families.resolved(LLAMA)
  assert huggingface.from_tensors(config | {'rope_theta': 70.0, 'rope_scaling': None}, tensors)[0].rope_base == 70.0
  assert huggingface.from_tensors(config | {'rope_parameters': {'rope_theta': 80}}, tensors)[0].rope_base == 80.0


def test_half_precision_is_read_exactly_as_float32():
  config, tensors = huggingface.to_tensors(GPT2, V, LENGTH, random_params(GPT2, np.float16))
  model, _, _, params = huggingface.from_tensors(config, tensors)
  assert model.param_dtype == 'float32'
  assert_equal(params, jax.tree.map(lambda x: x.astype(np.float32), random_params(GPT2, np.float16)))


def test_shards_are_read_and_a_missing_one_is_named(tmp_path):
  config, tensors = huggingface.to_tensors(LLAMA, V, LENGTH, random_params(LLAMA))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  shards = {name: f'model-{i % 2}.safetensors' for i, name in enumerate(tensors)}
  for shard in set(shards.values()):
    safetensors_numpy.save_file({k: v for k, v in tensors.items() if shards[k] == shard}, tmp_path / shard)
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': shards}))
  assert_equal(huggingface.load(tmp_path)[3], random_params(LLAMA))
  (tmp_path / 'model-1.safetensors').unlink()
  with pytest.raises(ConfigError, match='model-1.safetensors cannot be read'):
    huggingface.load(tmp_path)


@pytest.mark.parametrize('model, family, words', [
    (dataclasses.replace(GPT2, position='sinusoidal'), '', "model.position is 'sinusoidal' (gpt2 needs 'learned')"),
    (dataclasses.replace(GPT2, kv_heads=1), 'gpt2', 'model.kv_heads is 1 (gpt2 needs another)'),
    (dataclasses.replace(LLAMA, activation='relu'), 'llama', "model.activation is 'relu' (llama needs 'swiglu')"),
    (dataclasses.replace(LLAMA, norm='layernorm'), 'llama', "model.norm is 'layernorm' (llama needs 'rmsnorm')"),
    (dataclasses.replace(LLAMA, position='none'), '', "model.position is 'none' (llama needs 'rope')"),
    (dataclasses.replace(LLAMA, loops=2), '', 'model.loops is 2 (llama needs 1)'),
    (dataclasses.replace(LLAMA, bias=True, bias_on='out'), 'qwen2', 'model.bias_on has out (qwen2 has qkv)'),
    (dataclasses.replace(LLAMA, name='other'), '', "model.name is 'other'"),
    (dataclasses.replace(LLAMA, heads=5), '', 'model.heads is 5; expected a divisor'),
    (LLAMA, 'lama', "family is 'lama'; expected one of llama, gpt2, gpt_neox"),
])
def test_a_model_that_no_family_can_express_names_its_setting(model, family, words, tmp_path):
  with pytest.raises(ConfigError, match=re.escape(words)) as error:
    huggingface.save(tmp_path / 'new', model, V, LENGTH, {}, family)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('model, family', [
    (Model(layers=2, width=12, heads=3), 'arcee'), (Model(layers=2, width=12, heads=3, activation='relu2'), 'arcee'),
    (Model(layers=2, width=12, heads=3, norm='layernorm'), 'gpt_neox'),
    (Model(layers=2, width=12, heads=6, kv_heads=3, norm='layernorm'), 'starcoder2'),
    (Model(layers=2, width=12, heads=3, norm='layernorm', position='learned', bias=True, bias_on='norm'), 'gpt2'),
    (Model(layers=2, width=12, heads=3, norm_scale=False, activation='swiglu'), 'llama')])
def test_what_the_shipped_configs_are_made_of_is_saved_with_zeros_and_ones_besides(model, family, tmp_path):
  model = families.resolved(model)
  params = random_params(model)
  assert huggingface.save(tmp_path / 'new', model, V, LENGTH, params) == family
  *settings, again = huggingface.load(tmp_path / 'new')
  ids = jnp.arange(8).reshape(1, 8)
  def logits(module, params):
    return module.logits(params, module.apply({'params': params}, ids, ids, ids * 0 + 1)[0])
  np.testing.assert_allclose(logits(build(*settings), again), logits(build(model, V, LENGTH), params), atol=1e-5)


NEOX = dataclasses.replace(GPT2, position='rope')
OTHERS = {  # settings of ours that make a Llama of another family
    'olmo': {'norm': 'layernorm', 'norm_scale': False, 'norm_epsilon': 1e-5}, 'qwen2': {'bias': True, 'bias_on': 'qkv'},
    'gemma3_text': {'activation': 'geglu', 'embedding_scale': 12 ** 0.5, 'norm_place': 'both', 'query_norm': 'head'}}


def without(tensors, name):
  return {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize('family, change, words', [
    ('gpt2', {'activation_function': 'silu'}, "activation_function 'silu'; expected 'gelu_new' or"),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': 1}, 'scale_attn_by_inverse_layer_idx is 1; expected true or false'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention True; expected False'),
    ('gpt2', {'n_inners': 20}, "n_inners 20, which is unknown for model_type 'gpt2'"),
    ('gpt2', {'n_inner': 21}, "'transformer.h.0.mlp.c_fc.weight' has shape [12, 20]; expected [12, 21]"),
    ('gpt2', {'n_layer': None}, 'n_layer None; expected a positive whole number'),
    ('gpt2', {'n_layer': 3}, "'transformer.h.2.attn.c_attn.bias' [36] is missing (and 11 more)"),
    ('gpt2', {'n_layer': 1}, "'transformer.h.1.attn.c_attn.bias' [36] is unknown (and 11 more)"),
    ('gpt2', {'tie_word_embeddings': False}, "'lm_head.weight' [17, 12] is missing"),
    ('gpt2', {'vocab_size': 18}, "'transformer.wte.weight' has shape [17, 12]; expected [18, 12]"),
    ('gpt2', {'layer_norm_epsilon': 'small'}, "layer_norm_epsilon is 'small'; expected a finite number"),
    ('gpt2', {'layer_norm_epsilon': 7}, 'model.norm_epsilon is 7.0; expected 1e-12 to 1.0'),
    ('llama', {'hidden_act': 'gelu'}, "hidden_act 'gelu'; expected 'silu' or 'swish'"),
    ('llama', {'sliding_window': 4096}, 'sliding_window 4096; expected None'),
    ('llama', {'head_dim': 4}, "q_proj.weight' has shape [12, 12]; expected [24, 12]"),
    ('llama', {'attention_bias': True}, "self_attn.k_proj.bias' [4] is missing (and 11 more)"),
    ('llama', {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}, 'rope_parameters': None},
     "rope_type 'dynamic'; expected default, linear, llama3, yarn"),
    ('llama', {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 5e5}}, "'llama3' without factor; expected a number"),
    ('llama', {'rope_parameters': {'rope_theta': 5e5, 'partial_rotary_factor': 0.5}}, 'rotates 0.5 of 2 channels'),
    ('llama', {'rope_parameters': [5e5]}, 'rope_parameters is [500000.0]; expected a JSON object'),
    ('llama', {'rope_parameters': {'rope_theta': '5e5'}}, "rope_theta is '5e5'; expected a finite number"),
    ('llama', {'rope_parameters': {'rope_thetas': 5e5}}, 'rope_thetas in rope_parameters, which is unknown'),
    ('llama', {'quantization_config': {'quant_method': 'fp8'}}, 'quantization_config'),
    ('llama', {'use_parallel_residual': True}, "use_parallel_residual True, which is unknown for model_type 'llama'"),
    ('mistral', {'sliding_window': 0}, 'sliding_window 0; expected a positive whole number'),
    ('gemma3_text', {'final_logit_softcapping': 30.0}, 'final_logit_softcapping 30.0; expected None'),
    ('gemma3_text', {'layer_types': ['full_attention'] * 2 + ['sliding_attention']}, 'is not every n-th layer'),
    ('gemma3_text', {'layer_types': ['full_attention'] * 4}, "expected 3 of 'full_attention' and"),
    ('gemma3_text', {'rope_parameters': {'full_attention': 3, 'sliding_attention': {}}}, 'an object each'),
    ('olmo', {'clip_qkv': 8.0}, 'clip_qkv 8.0; expected None'),
    ('opt', {'do_layer_norm_before': False}, 'do_layer_norm_before False; expected True'),
    ('opt', {'word_embed_proj_dim': 8}, 'word_embed_proj_dim 8; expected 12'),
    ('phi3', {'rope_parameters': {'rope_type': 'longrope', 'short_factor': [1.0]}}, 'short_factor in rope_parameters'),
    ('qwen2', {'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 1, 'layer_types': None},
     'is not every n-th layer'),
    ('gpt_neox', {'rotary_pct': 0.4, 'rope_parameters': None, 'partial_rotary_factor': None}, 'rotates 0.4 of 4 channels'),
    ('llama', {'num_key_value_heads': 4}, 'model.kv_heads is 4; expected a divisor of model.heads 6'),
    ('llama', {'num_key_value_heads': 3}, "k_proj.weight' has shape [4, 12]; expected [6, 12]"),
])
def test_a_config_that_cannot_be_honoured_is_one_line(family, change, words):
  model = {'gpt2': GPT2, 'opt': dataclasses.replace(GPT2, norm_epsilon=1e-5), 'gpt_neox': NEOX}.get(
      family, dataclasses.replace(LLAMA, **OTHERS.get(family, {})))
  config, tensors = huggingface.to_tensors(model, V, LENGTH, random_params(model), family)
  with pytest.raises(ConfigError, match=re.escape(words)) as error:
    huggingface.from_tensors(config | change, tensors)
  assert '\n' not in str(error.value)


def test_tensors_that_cannot_be_honoured_are_named():
  config, tensors = huggingface.to_tensors(LLAMA, V, LENGTH, random_params(LLAMA))
  name = 'model.layers.1.mlp.up_proj.weight'
  for wrong, words in (
      (without(tensors, name), f"tensor '{name}' [10, 12] is missing"),
      (tensors | {name: tensors[name].T}, f"tensor '{name}' has shape [12, 10]; expected [10, 12]"),
      (tensors | {'model.extra': tensors[name]}, "tensor 'model.extra' [10, 12] is unknown"),
      (tensors | {name: tensors[name].astype(np.int8)}, f"tensor '{name}' is int8; expected float32"),
  ):
    with pytest.raises(ConfigError, match=re.escape(words)):
      huggingface.from_tensors(config, wrong)
  params = random_params(LLAMA)
  params['blocks']['up']['weight'] = params['blocks']['up']['weight'][:, :, :-1]
  with pytest.raises(ConfigError, match=r"'blocks.up.weight' has shape \[3, 12, 9\]; expected \[3, 12, 10\]"):
    huggingface.to_tensors(LLAMA, V, LENGTH, params)
  with pytest.raises(ConfigError, match="parameter 'extra' has no counterpart in llama"):
    ours = families.our_parameters(families.resolved(LLAMA), V, LENGTH)
    families.layout(huggingface.FAMILIES['llama'], families.resolved(LLAMA), ours | {'extra': ours['norm.scale']})


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
  for text, words in (('[1]', 'JSON object'), ('{"a"', 'JSON object'), ('{}', "model_type None; expected 'llama' or"),
                      ('{"model_type": "bert"}', "model_type 'bert'; expected 'llama' or 'gpt2'"),
                      ('{"model_type": []}', 'model_type .*; expected'),
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
  known, ask = {}, families.our_parameters
  monkeypatch.setattr(families, 'our_parameters', lambda *model: known.get(repr(model)) or known.setdefault(
      repr(model), ask(*model)))  # which traces the model
  family = 'gpt2' if model is GPT2 else 'llama'
  config, tensors = huggingface.to_tensors(model, V, LENGTH, random_params(model), family)
  for key in config:
    for wrong in ('x', -1, float('inf'), [], {}, [[None]], 10**280, True, {'rope_type': []}):
      try:
        huggingface.from_tensors(config | {key: wrong}, tensors)
      except ConfigError as error:
        assert '\n' not in str(error)


def test_weights_that_are_no_plain_numbers_are_one_line(tmp_path):
  config, tensors = huggingface.to_tensors(LLAMA, V, LENGTH, random_params(LLAMA))
  name = 'model.layers.1.mlp.up_proj.weight'
  broken = tensors[name].copy()
  broken[3, 1] = np.nan
  with pytest.raises(ConfigError, match=f"tensor '{name}' has values that are not finite"):
    huggingface.from_tensors(config, tensors | {name: broken})
  (tmp_path / 'config.json').write_text(json.dumps(config))
  header = json.dumps({'lm_head.weight': {'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [0, 4]}}).encode()
  (tmp_path / 'model.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
  with pytest.raises(ConfigError, match="tensor 'lm_head.weight' is F8_E4M3; expected float32, float16, bfloat16"):
    huggingface.load(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(ConfigError, match='pytorch_model.bin alone, a pickle.*save_pretrained') as error:
    huggingface.load(tmp_path)
  assert '\n' not in str(error.value)
  (tmp_path / 'model.safetensors.index.json').write_text('{"weight_map": ["model.safetensors"]}')
  with pytest.raises(ConfigError, match='weight_map is .*; expected a JSON object'):
    huggingface.load(tmp_path)


# The keys of config.json in the folders that are published, with small sizes.
PUBLISHED = {
    'pythia': ('gpt_neox', NEOX, {
        'architectures': ['GPTNeoXForCausalLM'], 'bos_token_id': 0, 'eos_token_id': 0, 'hidden_act': 'gelu',
        'hidden_size': 12, 'initializer_range': 0.02, 'intermediate_size': 20, 'layer_norm_eps': 1e-05,
        'max_position_embeddings': LENGTH, 'model_type': 'gpt_neox', 'num_attention_heads': 3, 'num_hidden_layers': 2,
        'rotary_emb_base': 10000, 'rotary_pct': 0.5, 'tie_word_embeddings': True, 'torch_dtype': 'float16',
        'transformers_version': '4.24.0', 'use_cache': True, 'use_parallel_residual': True, 'vocab_size': V},
     {'rope_share': 0.5, 'parallel': True, 'activation': 'gelu_exact', 'dropout': 0.0, 'norm_epsilon': 1e-5}),
    'smollm': ('llama', LLAMA, {
        'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0, 'bos_token_id': 0,
        'eos_token_id': 0, 'hidden_act': 'silu', 'hidden_size': 12, 'initializer_range': 0.041666666666666664,
        'intermediate_size': 10, 'is_llama_config': True, 'max_position_embeddings': LENGTH, 'mlp_bias': False,
        'model_type': 'llama', 'num_attention_heads': 6, 'num_hidden_layers': 3, 'num_key_value_heads': 2,
        'pretraining_tp': 1, 'rms_norm_eps': 1e-05, 'rope_interleaved': False, 'rope_scaling': None,
        'rope_theta': 100000, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16', 'use_cache': True,
        'transformers_version': '4.40.1', 'vocab_size': V}, {'rope_base': 1e5, 'norm_epsilon': 1e-5}),
    'llama32': ('llama', LLAMA, {
        'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0, 'bos_token_id': 128000,
        'eos_token_id': [128001, 128008], 'head_dim': 2, 'hidden_act': 'silu', 'hidden_size': 12,
        'initializer_range': 0.02, 'intermediate_size': 10, 'max_position_embeddings': LENGTH, 'mlp_bias': False,
        'model_type': 'llama', 'num_attention_heads': 6, 'num_hidden_layers': 3, 'num_key_value_heads': 2,
        'pretraining_tp': 1, 'rms_norm_eps': 1e-05, 'rope_scaling': {
            'factor': 32.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0, 'original_max_position_embeddings': 8192,
            'rope_type': 'llama3'}, 'rope_theta': 500000.0, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
        'transformers_version': '4.45.0.dev0', 'use_cache': True, 'vocab_size': V},
     {'rope_base': 5e5, 'norm_epsilon': 1e-5, 'rope_scaling': 'llama3:factor=32.0,low=1.0,high=4.0,length=8192.0'}),
    'qwen25': ('qwen2', dataclasses.replace(LLAMA, bias=True, bias_on='qkv'), {
        'architectures': ['Qwen2ForCausalLM'], 'attention_dropout': 0.0, 'bos_token_id': 151643, 'eos_token_id': 151643,
        'hidden_act': 'silu', 'hidden_size': 12, 'initializer_range': 0.02, 'intermediate_size': 10,
        'max_position_embeddings': LENGTH, 'max_window_layers': 24, 'model_type': 'qwen2', 'num_attention_heads': 6,
        'num_hidden_layers': 3, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-06, 'rope_theta': 1000000.0,
        'sliding_window': 32768, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16', 'use_cache': True,
        'transformers_version': '4.40.1', 'use_mrope': False, 'use_sliding_window': False, 'vocab_size': V},
     {'rope_base': 1e6, 'norm_epsilon': 1e-6, 'bias_on': 'qkv'}),
    'gpt2': ('gpt2', GPT2, {
        'activation_function': 'gelu_new', 'architectures': ['GPT2LMHeadModel'], 'attn_pdrop': 0.1,
        'bos_token_id': 50256, 'embd_pdrop': 0.1, 'eos_token_id': 50256, 'initializer_range': 0.02,
        'layer_norm_epsilon': 1e-05, 'model_type': 'gpt2', 'n_ctx': LENGTH, 'n_embd': 12, 'n_head': 3, 'n_layer': 2,
        'n_inner': 20, 'n_positions': LENGTH, 'resid_pdrop': 0.1, 'summary_activation': None,
        'summary_first_dropout': 0.1, 'summary_proj_to_labels': True, 'summary_type': 'cls_index',
        'summary_use_proj': True, 'task_specific_params': {'text-generation': {'do_sample': True, 'max_length': 50}},
        'vocab_size': V}, {'dropout': 0.1, 'norm_epsilon': 1e-5}),
    'olmo2': ('olmo2', dataclasses.replace(LLAMA, norm_place='after', query_norm='whole'), {
        'architectures': ['Olmo2ForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0, 'eos_token_id': 100257,
        'hidden_act': 'silu', 'hidden_size': 12, 'initializer_range': 0.02, 'intermediate_size': 10,
        'max_position_embeddings': LENGTH, 'model_type': 'olmo2', 'num_attention_heads': 6, 'num_hidden_layers': 3,
        'num_key_value_heads': 2, 'pad_token_id': 100277, 'rms_norm_eps': 1e-06, 'rope_scaling': None,
        'rope_theta': 500000, 'tie_word_embeddings': False, 'torch_dtype': 'float32', 'use_cache': True,
        'transformers_version': '4.47.0.dev0', 'vocab_size': V},
     {'rope_base': 5e5, 'norm_epsilon': 1e-6, 'norm_place': 'after', 'query_norm': 'whole'}),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_keys_of_published_folders_are_known(name):
  family, model, config, settings = PUBLISHED[name]
  _, tensors = huggingface.to_tensors(model, V, LENGTH, random_params(model), family)
  loaded = huggingface.from_tensors(config, tensors)[0]
  assert loaded == families.resolved(dataclasses.replace(model, **settings))


def test_a_digest_is_that_of_names_and_bits():
  _, tensors = huggingface.to_tensors(LLAMA, V, LENGTH, random_params(LLAMA))
  one = folders.digest(tensors)
  assert one == folders.digest(dict(reversed(tensors.items())))
  name = 'lm_head.weight'
  assert one != folders.digest(tensors | {name: -tensors[name]}) != folders.digest(without(tensors, name))
