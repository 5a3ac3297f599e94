"""Llama (SmolLM too) and its kin: Mistral, Qwen 2 and 3, Phi-3, Arcee, OLMo 1 and 2.

Sources: transformers' modeling files of these names (read at 5.24). Their blocks are Llama's but for biases, norms and
what lies side by side in a file.
"""

from collections.abc import Callable
from typing import Any

from framework.config import Model
from framework.models.huggingface.family import ATTENTION, LINEAR, NONE, SIZES, Family, bias_of, biased
from framework.models.huggingface.gpt2 import ACTIVATIONS, NAMES
from framework.models.huggingface.settings import Settings, write_rope

BLOCK = {'attention_norm': 'input_layernorm', 'query': 'self_attn.q_proj', 'key': 'self_attn.k_proj',
         'value': 'self_attn.v_proj', 'out': 'self_attn.o_proj', 'feedforward_norm': 'post_attention_layernorm',
         'up': 'mlp.up_proj', 'gate': 'mlp.gate_proj', 'down': 'mlp.down_proj'}
QUERY_NORM = {'query_norm': 'self_attn.q_norm', 'key_norm': 'self_attn.k_norm'}
TOP = {'embedding': 'embed_tokens.weight', 'norm.scale': 'norm.weight', 'head': 'lm_head.weight'}
SILU = {'silu': 'swiglu', 'swish': 'swiglu'}
FEEDFORWARD, QKV = frozenset(('feedforward',)), frozenset(('qkv',))


def anything(model: Model) -> bool:  # pylint: disable=unused-argument
  """Whatever a setting is."""
  return True


ROPE: dict[str, tuple[Any, ...]] = {'position': ('rope',), 'rope_base': (anything,), 'rope_scaling': (anything,)}
GATED = ROPE | {'norm': ('rmsnorm',), 'activation': ('swiglu',)}
WIDE_HEADS = {'head_width': (anything,)}


def attention(s: Settings, base: float = 10000.0, head_dim: bool = False, channels: int = 0) -> dict[str, Any]:
  """Heads and rotary positions.

  Args:
    head_dim: config.json may have a head's width of its own. channels: that width where it says nothing; 0: width /
      heads.
  """
  heads, width = s.whole('num_attention_heads'), s.whole('hidden_size')
  channels = channels or max(1, width // heads)
  channels = s.whole('head_dim', channels) if head_dim else channels
  return {'kv_heads': s.whole('num_key_value_heads', heads), 'head_width': channels, 'position': 'rope',
          **s.rope(base, channels=channels)}


def write_attention(m: Model) -> dict[str, Any]:
  return {'num_key_value_heads': m.kv_heads, **write_rope(m.rope_base, m.rope_scaling, m.rope_share)}


def write_gated(m: Model) -> dict[str, Any]:
  return {'hidden_act': 'silu', **write_attention(m)}


def with_head_dim(m: Model) -> dict[str, Any]:
  return {'head_dim': m.head_width or m.width // m.heads}


def biases(s: Settings) -> dict[str, Any]:
  """Of attention_bias and mlp_bias."""
  return bias_of((ATTENTION if s.flag('attention_bias', False) else NONE)
                 | (FEEDFORWARD if s.flag('mlp_bias', False) else NONE), 'rmsnorm')


def write_biases(m: Model) -> dict[str, Any]:
  parts = biased(m)
  return {'attention_bias': 'qkv' in parts, 'mlp_bias': 'feedforward' in parts}


def read_llama(s: Settings) -> dict[str, Any]:
  s.only('sliding_window', None)
  s.only('rope_interleaved', False)
  return {**attention(s, head_dim=True), 'norm': 'rmsnorm', 'activation': s.choice('hidden_act', SILU, 'silu'),
          **biases(s)}


LLAMA_BIASES = (NONE, ATTENTION, FEEDFORWARD, LINEAR)
LLAMA = Family('llama', 'LlamaForCausalLM', read_llama,
               lambda m: {**write_gated(m), **with_head_dim(m), **write_biases(m)}, GATED | WIDE_HEADS, LLAMA_BIASES,
               BLOCK, TOP, SIZES, harmless=('is_llama_config',))


def read_arcee(s: Settings) -> dict[str, Any]:
  return {**attention(s, head_dim=True), 'norm': 'rmsnorm', 'activation': s.choice('hidden_act', ACTIVATIONS, 'relu2'),
          **biases(s)}


ARCEE = Family('arcee', 'ArceeForCausalLM', read_arcee,
               lambda m: {**write_attention(m), **with_head_dim(m), **write_biases(m),
                          'hidden_act': NAMES[m.activation].replace('gelu_new', 'gelu_pytorch_tanh')},
               GATED | WIDE_HEADS | {'activation': tuple(NAMES)}, LLAMA_BIASES, BLOCK, TOP, SIZES)


def windowed(read: Callable[[Settings], dict[str, Any]]) -> Callable[[Settings], dict[str, Any]]:
  """`read`, and a sliding window that every layer has."""
  def both(s: Settings) -> dict[str, Any]:
    layers = s.whole('num_hidden_layers')
    return read(s) | s.layers_that_read_all(layers, s.window(), [False] * layers)
  return both


def write_window(m: Model) -> dict[str, Any]:
  return {'sliding_window': m.sliding_window or None}


MISTRAL = Family(
    'mistral', 'MistralForCausalLM',
    windowed(lambda s: {**attention(s, head_dim=True), 'norm': 'rmsnorm',
                        'activation': s.choice('hidden_act', SILU, 'silu')}),
    lambda m: {**write_gated(m), **with_head_dim(m), **write_window(m)},
    GATED | WIDE_HEADS | {'sliding_window': (anything,)}, (NONE,), BLOCK, TOP, SIZES)


def qwen_window(s: Settings) -> dict[str, Any]:
  """Layers from max_window_layers on read a window, if use_sliding_window says so."""
  layers, first = s.whole('num_hidden_layers'), s.get('max_window_layers', int, 28)
  window = s.window(4096)
  return s.layers_that_read_all(layers, window if s.flag('use_sliding_window', False) else None,
                                [n < first for n in range(layers)])


def write_qwen_window(m: Model) -> dict[str, Any]:
  every = m.global_every
  full = [not m.sliding_window or bool(every) and (n + 1) % every == 0 for n in range(m.layers)]
  return {'use_sliding_window': bool(m.sliding_window), 'sliding_window': m.sliding_window or None,
          'max_window_layers': 0 if m.sliding_window else m.layers,
          'layer_types': ['full_attention' if one else 'sliding_attention' for one in full]}


WINDOWS = {'sliding_window': (anything,), 'global_every': (anything,)}
QWEN2 = Family(
    'qwen2', 'Qwen2ForCausalLM',
    lambda s: {**attention(s), 'norm': 'rmsnorm', 'activation': s.choice('hidden_act', SILU, 'silu'),
               **qwen_window(s), **bias_of(QKV, 'rmsnorm')},
    lambda m: {**write_gated(m), **write_qwen_window(m)}, GATED | WINDOWS, (QKV,), BLOCK, TOP, SIZES,
    harmless=('use_mrope',))


def read_qwen3(s: Settings) -> dict[str, Any]:
  return {**attention(s, head_dim=True), 'norm': 'rmsnorm', 'query_norm': 'head',
          'activation': s.choice('hidden_act', SILU, 'silu'), **qwen_window(s),
          **bias_of(ATTENTION if s.flag('attention_bias', False) else NONE, 'rmsnorm')}


QWEN3 = Family(
    'qwen3', 'Qwen3ForCausalLM', read_qwen3,
    lambda m: {**write_gated(m), **with_head_dim(m), **write_qwen_window(m), 'attention_bias': m.bias},
    GATED | WIDE_HEADS | WINDOWS | {'query_norm': ('head',)}, (NONE, ATTENTION), BLOCK | QUERY_NORM, TOP, SIZES)


def read_phi3(s: Settings) -> dict[str, Any]:
  channels = s.whole('hidden_size') // s.whole('num_attention_heads')
  s.only('attention_bias', False)
  return {**attention(s), **s.rope(channels=channels), 'norm': 'rmsnorm', 'dropout': s.number('resid_pdrop', 0.0),
          'activation': s.choice('hidden_act', SILU, 'silu')}


PHI3 = Family(
    'phi3', 'Phi3ForCausalLM', windowed(read_phi3),
    lambda m: {**write_gated(m), **write_window(m), 'resid_pdrop': m.dropout, 'embd_pdrop': m.dropout,
               'pad_token_id': None},
    GATED | {'sliding_window': (anything,), 'rope_share': (anything,)}, (NONE,),
    {key: name for key, name in BLOCK.items() if key not in ('query', 'key', 'value', 'up', 'gate')} | {
        'query key value': 'self_attn.qkv_proj', 'gate up': 'mlp.gate_up_proj'}, TOP, SIZES,
    harmless=('original_max_position_embeddings',))


def read_olmo(s: Settings) -> dict[str, Any]:
  s.only('clip_qkv', None)
  return {**attention(s), 'norm': 'layernorm', 'norm_epsilon': 1e-5, 'activation': s.choice('hidden_act', SILU, 'silu'),
          **bias_of(ATTENTION if s.flag('attention_bias', False) else NONE, 'layernorm')}


OLMO = Family(
    'olmo', 'OlmoForCausalLM', read_olmo,
    lambda m: {**write_gated(m), 'attention_bias': m.bias, 'clip_qkv': None},
    GATED | {'norm': ('layernorm',), 'norm_epsilon': (1e-5,)}, (NONE, ATTENTION), BLOCK, TOP,
    {key: name for key, name in SIZES.items() if key != 'norm_epsilon'}, norm_scale=False)

OLMO2 = Family(
    'olmo2', 'Olmo2ForCausalLM',
    lambda s: {**attention(s), 'norm': 'rmsnorm', 'norm_place': 'after', 'query_norm': 'whole',
               'activation': s.choice('hidden_act', SILU, 'silu'),
               **bias_of(ATTENTION if s.flag('attention_bias', False) else NONE, 'rmsnorm')},
    lambda m: {**write_gated(m), 'attention_bias': m.bias},
    GATED | {'norm_place': ('after',), 'query_norm': ('whole',)}, (NONE, ATTENTION),
    {key: name for key, name in BLOCK.items() if 'norm' not in key} | QUERY_NORM | {
        'attention_after_norm': 'post_attention_layernorm', 'feedforward_after_norm': 'post_feedforward_layernorm'},
    TOP, SIZES)
