"""Gemma 1 and the text models of Gemma 3: a scaled embedding, norms around 1, gated GELU. Sources: transformers'
modeling_gemma.py and modeling_gemma3.py (read at 5.24)."""

import math
from typing import Any

import numpy as np

from foundation.errors import ConfigError
from framework.config import Model
from framework.models.huggingface import llama
from framework.models.huggingface.family import ATTENTION, NONE, SIZES, Family, Tensors, bias_of
from framework.models.huggingface.settings import Settings, write_rope

GELU = {'gelu_pytorch_tanh': 'geglu'}
SCALED: dict[str, tuple[Any, ...]] = {
    'activation': ('geglu',), 'embedding_scale': (lambda m: math.isclose(m.embedding_scale, m.width ** 0.5, rel_tol=1e-6),)}


def read_gemma(s: Settings) -> dict[str, Any]:
  s.only('hidden_activation', None, *GELU)
  s.only('use_bidirectional_attention', None, False)
  return {**llama.attention(s, head_dim=True, channels=256), 'norm': 'rmsnorm',
          'activation': s.choice('hidden_act', GELU, 'gelu_pytorch_tanh'),
          'embedding_scale': s.whole('hidden_size') ** 0.5,
          **bias_of(ATTENTION if s.flag('attention_bias', False) else NONE, 'rmsnorm')}


GEMMA = Family(
    'gemma', 'GemmaForCausalLM', read_gemma,
    lambda m: {**llama.write_attention(m), **llama.with_head_dim(m), 'hidden_act': 'gelu_pytorch_tanh',
               'attention_bias': m.bias},
    llama.GATED | llama.WIDE_HEADS | SCALED, (NONE, ATTENTION), llama.BLOCK, llama.TOP, SIZES, tied=True, offset=1.0)


def nested_rope(s: Settings, channels: int) -> dict[str, Any]:
  """rope_parameters of each kind of layer (transformers 5), or one and rope_local_base_freq (4)."""
  given = s.get('rope_parameters', dict, {})
  local = s.number('rope_local_base_freq', 10000.0)
  if not given.keys() & {'full_attention', 'sliding_attention'}:
    return s.rope(1e6, channels=channels) | {'rope_base_local': local}
  if given.keys() != {'full_attention', 'sliding_attention'} or not all(isinstance(x, dict) for x in given.values()):
    raise ConfigError("config.json has rope_parameters of other kinds of layers; expected 'full_attention' and "
                      "'sliding_attention', an object each")
  far, near = (Settings({'rope_parameters': given[kind], 'max_position_embeddings': s.hf.get('max_position_embeddings')})
               .rope(base, channels=channels) for kind, base in (('full_attention', 1e6), ('sliding_attention', local)))
  if near['rope_scaling']:
    raise ConfigError('config.json has scaled rope_parameters of sliding_attention; expected rope_type default')
  s.ignored('rope_theta', 'rope_scaling')
  return far | {'rope_base_local': near['rope_base']}


def read_gemma3(s: Settings) -> dict[str, Any]:
  layers, heads = s.whole('num_hidden_layers'), s.whole('num_attention_heads')
  channels = s.whole('head_dim', 256)
  s.only('final_logit_softcapping', None)
  s.only('attn_logit_softcapping', None)
  s.only('use_bidirectional_attention', False, None)
  s.number('query_pre_attn_scalar', 256)
  every = s.get('sliding_window_pattern', int, s.get('_sliding_window_pattern', int, 6))
  window = s.layers_that_read_all(layers, s.whole('sliding_window', 4096),
                                  [every > 0 and (n + 1) % every == 0 for n in range(layers)])
  rope = nested_rope(s, channels)
  return {'kv_heads': s.whole('num_key_value_heads', heads), 'head_width': channels, 'position': 'rope',
          **rope, **window, 'rope_base_local': rope['rope_base_local'] if window['sliding_window'] else 0.0,
          'norm': 'rmsnorm', 'norm_place': 'both', 'query_norm': 'head',
          'activation': s.choice('hidden_activation', GELU, 'gelu_pytorch_tanh'),
          'embedding_scale': s.whole('hidden_size') ** 0.5,
          **bias_of(ATTENTION if s.flag('attention_bias', False) else NONE, 'rmsnorm')}


def fold_scalar(s: Settings, tensors: Tensors) -> Tensors:
  """The factor of the logits of attention goes into the norm of the queries, which is around 1 in their files."""
  factor = np.float32((s.whole('head_dim', 256) / s.number('query_pre_attn_scalar', 256)) ** 0.5)
  if factor == 1:
    return tensors
  return {name: (x.astype(np.float32) + 1) * factor - 1 if name.endswith('.q_norm.weight') else x
          for name, x in tensors.items()}


def write_gemma3(m: Model) -> dict[str, Any]:
  near, far = (write_rope(base, scaling) for base, scaling in (
      (m.rope_base_local or m.rope_base, ''), (m.rope_base, m.rope_scaling)))
  width = m.head_width or m.width // m.heads
  types = llama.write_qwen_window(m)['layer_types']
  return {'num_key_value_heads': m.kv_heads, 'head_dim': width, 'query_pre_attn_scalar': width,
          'hidden_activation': 'gelu_pytorch_tanh', 'attention_bias': m.bias, 'final_logit_softcapping': None,
          'attn_logit_softcapping': None, 'sliding_window': m.sliding_window or 4096, 'layer_types': types,
          'rope_parameters': {'full_attention': far['rope_parameters'], 'sliding_attention': near['rope_parameters']},
          'rope_theta': m.rope_base, 'rope_local_base_freq': m.rope_base_local or m.rope_base,
          **({'rope_scaling': far['rope_scaling']} if m.rope_scaling else {})}


GEMMA3 = Family(
    'gemma3_text', 'Gemma3ForCausalLM', read_gemma3, write_gemma3,
    llama.GATED | llama.WIDE_HEADS | llama.WINDOWS | SCALED | {
        'norm_place': ('both',), 'query_norm': ('head',), 'rope_base_local': (llama.anything,)},
    (NONE, ATTENTION),
    {key: name for key, name in llama.BLOCK.items() if 'norm' not in key} | llama.QUERY_NORM | {
        'attention_norm': 'input_layernorm', 'attention_after_norm': 'post_attention_layernorm',
        'feedforward_norm': 'pre_feedforward_layernorm', 'feedforward_after_norm': 'post_feedforward_layernorm'},
    llama.TOP, SIZES, tied=True, offset=1.0, change=fold_scalar)
