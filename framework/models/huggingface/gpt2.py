"""GPT-2 and OPT: learned positions. Sources: transformers' modeling_gpt2.py and modeling_opt.py (read at 5.24)."""

import re
from typing import Any

import numpy as np

from framework.models.huggingface.family import EVERY, LAYERNORM_SIZES, Family, Tensors
from framework.models.huggingface.settings import Settings

ACTIVATIONS = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu',
               'relu2': 'relu2'}
NAMES = {'gelu': 'gelu_new', 'gelu_exact': 'gelu', 'relu': 'relu', 'relu2': 'relu2'}  # the inverse
NEEDS = {'position': ('learned',), 'norm': ('layernorm',), 'kv_heads': (lambda model: model.kv_heads == model.heads,)}


def read_gpt2(s: Settings) -> dict[str, Any]:
  s.flag('scale_attn_weights', True)
  s.flag('scale_attn_by_inverse_layer_idx', False)
  return {'position': 'learned', 'norm': 'layernorm', 'bias': True, 'dropout': s.number('resid_pdrop', 0.1),
          'activation': s.choice('activation_function', ACTIVATIONS, 'gelu_new')}


def fold_scales(s: Settings, tensors: Tensors) -> Tensors:
  """Factors of the logits of attention go into the queries, which is exact but for rounding."""
  whole, by_layer = s.flag('scale_attn_weights', True), s.flag('scale_attn_by_inverse_layer_idx', False)
  if whole and not by_layer:
    return tensors
  def folded(name, x):
    layer = re.search(r'\.h\.(\d+)\.attn\.c_attn\.', name)
    if not layer:
      return x
    width = x.shape[-1] // 3
    factor = (1 if whole else (width / s.whole('n_head')) ** 0.5) / (int(layer[1]) + 1 if by_layer else 1)
    return np.concatenate([x[..., :width].astype(np.float32) * np.float32(factor), x[..., width:]], -1)
  return {name: folded(name, x) for name, x in tensors.items()}


GPT2 = Family(
    'gpt2', 'GPT2LMHeadModel', read_gpt2,
    lambda m: {'activation_function': NAMES[m.activation], 'resid_pdrop': m.dropout, 'embd_pdrop': m.dropout,
               'attn_pdrop': 0.0},
    NEEDS | {'activation': tuple(NAMES)}, (EVERY,),
    {'attention_norm': 'ln_1', 'query key value': 'attn.c_attn', 'out': 'attn.c_proj', 'feedforward_norm': 'ln_2',
     'up': 'mlp.c_fc', 'down': 'mlp.c_proj'},
    {'embedding': 'wte.weight', 'position': 'wpe.weight', 'norm.scale': 'ln_f.weight', 'norm.bias': 'ln_f.bias',
     'head': 'lm_head.weight'},
    {'layers': 'n_layer', 'width': 'n_embd', 'heads': 'n_head', 'feedforward': 'n_inner', 'length': 'n_positions',
     'norm_epsilon': 'layer_norm_epsilon'},
    root='transformer.', layer='h.{}.', flip=False, tied=True, change=fold_scales,
    harmless=('n_ctx', 'reorder_and_upcast_attn', 'summary_type', 'summary_use_proj', 'summary_activation',
              'summary_proj_to_labels', 'summary_first_dropout'))


def read_opt(s: Settings) -> dict[str, Any]:
  s.only('do_layer_norm_before', True)
  s.only('_remove_final_layer_norm', False)
  s.only('layer_norm_elementwise_affine', True)
  s.only('enable_bias', True)
  s.only('word_embed_proj_dim', s.whole('hidden_size'))
  return {'position': 'learned', 'norm': 'layernorm', 'bias': True, 'dropout': s.number('dropout', 0.1),
          'norm_epsilon': 1e-5, 'activation': s.choice('activation_function', ACTIVATIONS, 'relu')}


OPT = Family(
    'opt', 'OPTForCausalLM', read_opt,
    lambda m: {'activation_function': NAMES[m.activation], 'dropout': m.dropout, 'word_embed_proj_dim': m.width},
    NEEDS | {'activation': tuple(NAMES), 'norm_epsilon': (1e-5,)}, (EVERY,),
    {'attention_norm': 'self_attn_layer_norm', 'query': 'self_attn.q_proj', 'key': 'self_attn.k_proj',
     'value': 'self_attn.v_proj', 'out': 'self_attn.out_proj', 'feedforward_norm': 'final_layer_norm', 'up': 'fc1',
     'down': 'fc2'},
    {'embedding': 'embed_tokens.weight', 'position': 'embed_positions.weight', 'norm.scale': 'final_layer_norm.weight',
     'norm.bias': 'final_layer_norm.bias', 'head': 'lm_head.weight'},
    {key: name for key, name in LAYERNORM_SIZES.items() if key not in ('norm_epsilon', 'feedforward')} | {
        'feedforward': 'ffn_dim'},
    root='model.decoder.', skipped=2, tied=True)
