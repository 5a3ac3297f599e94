"""GPT-NeoX, which Pythia is, and StarCoder 2: LayerNorm and rotary positions. Sources: transformers' modeling_gpt_neox.py
and modeling_starcoder2.py (read at 5.24)."""

from typing import Any

from framework.config import Model
from framework.models.huggingface import llama
from framework.models.huggingface.family import EVERY, LAYERNORM_SIZES, Family, bias_of
from framework.models.huggingface.gpt2 import ACTIVATIONS, NAMES
from framework.models.huggingface.settings import Settings, write_rope

WIDE = frozenset(('feedforward', 'norm'))
NORMS = frozenset(('norm',))


def read_neox(s: Settings) -> dict[str, Any]:
  parts = EVERY if s.flag('attention_bias', True) else WIDE
  channels = s.whole('hidden_size') // s.whole('num_attention_heads')
  return {'position': 'rope', 'norm': 'layernorm', 'parallel': s.flag('use_parallel_residual', True),
          'dropout': s.number('hidden_dropout', 0.0), 'activation': s.choice('hidden_act', ACTIVATIONS, 'gelu'),
          **s.rope(share=0.25, channels=channels), **bias_of(parts, 'layernorm')}


def write_neox(m: Model) -> dict[str, Any]:
  return {'use_parallel_residual': m.parallel, 'hidden_act': NAMES[m.activation], 'hidden_dropout': m.dropout,
          'attention_dropout': 0.0, 'attention_bias': m.bias_on == 'all', 'rotary_pct': m.rope_share,
          'rotary_emb_base': m.rope_base, **write_rope(m.rope_base, m.rope_scaling, m.rope_share)}


NEOX = Family(
    'gpt_neox', 'GPTNeoXForCausalLM', read_neox, write_neox,
    llama.ROPE | {'norm': ('layernorm',), 'activation': tuple(NAMES), 'parallel': (False, True),
                  'rope_share': (lambda model: True,), 'kv_heads': (lambda model: model.kv_heads == model.heads,)},
    (EVERY, WIDE),
    {'attention_norm': 'input_layernorm', 'query key value': 'attention.query_key_value', 'out': 'attention.dense',
     'feedforward_norm': 'post_attention_layernorm', 'up': 'mlp.dense_h_to_4h', 'down': 'mlp.dense_4h_to_h'},
    {'embedding': 'embed_in.weight', 'norm.scale': 'final_layer_norm.weight', 'norm.bias': 'final_layer_norm.bias',
     'head': 'embed_out.weight'},
    LAYERNORM_SIZES, root='gpt_neox.', by_head=True)


def read_starcoder2(s: Settings) -> dict[str, Any]:
  layers = s.whole('num_hidden_layers')
  window = s.window()
  return {**llama.attention(s), 'norm': 'layernorm', 'activation': s.choice('hidden_act', ACTIVATIONS, 'gelu_pytorch_tanh'),
          'norm_epsilon': s.number('norm_epsilon', 1e-5), 'dropout': s.number('residual_dropout', 0.0),
          **bias_of(EVERY if s.flag('use_bias', True) else NORMS, 'layernorm'),
          **s.layers_that_read_all(layers, window, [False] * layers)}


STARCODER2 = Family(
    'starcoder2', 'Starcoder2ForCausalLM', read_starcoder2,
    lambda m: {'hidden_act': NAMES[m.activation].replace('gelu_new', 'gelu_pytorch_tanh'), 'norm_epsilon': m.norm_epsilon,
               'use_bias': m.bias_on == 'all', 'residual_dropout': m.dropout, 'embedding_dropout': m.dropout,
               'sliding_window': m.sliding_window or None, **llama.write_attention(m)},
    llama.ROPE | {'norm': ('layernorm',), 'activation': tuple(NAMES), 'sliding_window': (lambda model: True,)},
    (EVERY, NORMS),
    llama.BLOCK | {'up': 'mlp.c_fc', 'down': 'mlp.c_proj'}, llama.TOP | {'norm.bias': 'norm.bias'},
    {key: name for key, name in LAYERNORM_SIZES.items() if key != 'norm_epsilon'}, tied=True)
