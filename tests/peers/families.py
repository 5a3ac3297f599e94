"""Families of transformers with random weights, and how far our decoder's logits are from theirs.

`python -m tests.peers.families` writes the table framework/models/huggingface/families.md.
"""

import pathlib
import tempfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from foundation import files
from framework.models import huggingface
from tests.networks import build

TABLE = pathlib.Path(__file__).parents[2] / 'framework/models/huggingface/families.md'
VOCABULARY, LENGTH = 61, 23

# Sizes of which no two are alike, and nothing at its default, so that no mistake can hide behind an equality.
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY, max_position_embeddings=LENGTH, hidden_size=24, num_hidden_layers=3, num_attention_heads=6,
    intermediate_size=37, bos_token_id=None, eos_token_id=None, pad_token_id=None)
LLAMA = SIZES | dict(num_key_value_heads=2, rms_norm_eps=3e-3,
                     rope_parameters={'rope_type': 'default', 'rope_theta': 517.0})
NO_EPSILON = {key: value for key, value in LLAMA.items() if key != 'rms_norm_eps'}
GPT2 = dict(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=20, n_layer=3, n_head=5, layer_norm_epsilon=3e-3,
            bos_token_id=None, eos_token_id=None)
OPT = {key: value for key, value in SIZES.items() if key != 'intermediate_size'} | dict(
    ffn_dim=37, word_embed_proj_dim=24)


def rope(kind='default', **settings):
  return {'rope_parameters': {'rope_type': kind, 'rope_theta': 517.0} | settings}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    'GPT-2': ('gpt2', GPT2),
    'GPT-2, relu2': ('gpt2', GPT2 | dict(activation_function='relu2')),
    'GPT-2, untied, relu, inner width': ('gpt2', GPT2 | dict(
        tie_word_embeddings=False, activation_function='relu', n_inner=33)),
    'GPT-2, exact GELU, logits scaled by inverse layer': ('gpt2', GPT2 | dict(
        activation_function='gelu', scale_attn_by_inverse_layer_idx=True)),
    'GPT-2, logits not scaled': ('gpt2', GPT2 | dict(scale_attn_weights=False)),
    'GPT-NeoX, Pythia': ('gpt_neox', SIZES | rope(partial_rotary_factor=0.5) | dict(
        layer_norm_eps=3e-3, num_attention_heads=3)),
    'GPT-NeoX, sequential, no bias on attention': ('gpt_neox', SIZES | rope(partial_rotary_factor=0.5) | dict(
        layer_norm_eps=3e-3, use_parallel_residual=False, attention_bias=False)),
    'OLMo': ('olmo', NO_EPSILON), 'OLMo 2': ('olmo2', LLAMA),
    'Llama 1, 2': ('llama', LLAMA), 'Llama, one key head': ('llama', LLAMA | dict(
        num_key_value_heads=1, num_hidden_layers=1)),
    'Llama, biased, ungrouped': ('llama', LLAMA | dict(num_key_value_heads=6, attention_bias=True, mlp_bias=True)),
    'Llama, wide heads, bias on feed-forward, linear scaling': ('llama', LLAMA | rope('linear', factor=3.0) | dict(
        head_dim=10, mlp_bias=True)),
    'Llama 3.1, 3.2': ('llama', LLAMA | rope('llama3', factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                             original_max_position_embeddings=16)),
    'Llama, yarn': ('llama', LLAMA | rope('yarn', factor=2.0, original_max_position_embeddings=12)),
    'SmolLM (Llama, tied)': ('llama', LLAMA | dict(tie_word_embeddings=True)),
    'Mistral': ('mistral', LLAMA | dict(sliding_window=None, head_dim=10)),
    'Mistral, sliding window': ('mistral', LLAMA | dict(sliding_window=5)),
    'Qwen 2': ('qwen2', LLAMA), 'Qwen 2, sliding window': ('qwen2', LLAMA | dict(
        use_sliding_window=True, sliding_window=4, max_window_layers=0)),
    'Qwen 3': ('qwen3', LLAMA | dict(head_dim=10)),
    'Phi-3, sliding window': ('phi3', LLAMA | dict(sliding_window=5)),
    'Phi-3, partial rotary': ('phi3', LLAMA | rope(partial_rotary_factor=0.5)),
    'Gemma 1': ('gemma', LLAMA | dict(head_dim=10)),
    'Gemma 3, text': ('gemma3_text', LLAMA | dict(
        head_dim=10, query_pre_attn_scalar=7, sliding_window=4, num_hidden_layers=7, rope_parameters={
            'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 517.0},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0}})),
    'Arcee': ('arcee', LLAMA), 'StarCoder 2': ('starcoder2', NO_EPSILON | dict(norm_epsilon=3e-3, sliding_window=None)),
    'StarCoder 2, unbiased, sliding window': ('starcoder2', NO_EPSILON | dict(
        norm_epsilon=3e-3, sliding_window=6, use_bias=False)),
    'OPT': ('opt', OPT),
}


def make(name: str) -> Any:
  """A model of theirs whose every parameter, norms and biases too, is random and matters."""
  import torch
  import transformers
  family, settings = CASES[name]
  torch.manual_seed(0)
  torch.set_num_threads(1)
  model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **settings))
  with torch.no_grad():
    for key, parameter in model.named_parameters():
      around_one = parameter.ndim == 1 and key.endswith('weight') and 'gemma' not in family  # whose norms are around 0
      parameter.normal_(1.0 if around_one else 0.0, 0.3)
  return model.eval()


def tokens_2xL(length=LENGTH):
  return np.random.default_rng(0).integers(0, VOCABULARY, (2, length)).astype(np.int32)


def their_logits(model, tokens):
  import torch
  with torch.no_grad():
    return model(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


def our_logits(model, vocabulary, length, params, tokens):
  module = build(model, vocabulary, length)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  hidden, _ = module.apply({'params': params}, jnp.asarray(tokens), positions, jnp.ones_like(positions))
  return np.asarray(module.logits(params, hidden))


def difference(a, b):
  """The largest, relative to the deviation of the logits."""
  assert a.shape == b.shape and np.isfinite(a).all() and b.std() > 0.3
  return float(np.abs(a - b).max() / b.std())


def both_ways(name: str) -> tuple[float, float, float]:
  """(deviation of their logits, difference of ours from their files, of theirs from our files)."""
  import transformers
  theirs, tokens = make(name), tokens_2xL()
  expected = their_logits(theirs, tokens)
  with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(f'{folder}/theirs')
    ours = huggingface.load(f'{folder}/theirs')
    read = difference(our_logits(*ours, tokens), expected)
    huggingface.save(f'{folder}/ours', *ours, CASES[name][0])
    again, report = transformers.AutoModelForCausalLM.from_pretrained(f'{folder}/ours', output_loading_info=True)
  assert not any(report.values()), report
  assert type(again) is type(theirs)
  return float(expected.std()), read, difference(their_logits(again.eval(), tokens), expected)


def table() -> str:
  """The page, measured now."""
  import torch
  import transformers
  rows = [f'| {name} | `{CASES[name][0]}` | {deviation:.2f} | {read:.0e} | {back:.0e} |'
          for name in CASES for deviation, read, back in [both_ways(name)]]
  return '\n'.join([
      '# Families and how far their logits are', '',
      f'Written by `python -m tests.peers.families` with transformers {transformers.__version__} and torch '
      f'{torch.__version__.partition("+")[0]}: random weights, 3 layers (Gemma 3: 7), {LENGTH} tokens, float32 on a CPU.',
      'The largest difference of a logit over the deviation of the logits: of our decoder on their files, and of',
      'theirs on files that we wrote of what we had read. The tests hold both to 1e-4.', '',
      '| family | model_type | deviation | their files, ours | our files, theirs |', '|---|---|---|---|---|', *rows, ''])


if __name__ == '__main__':
  files.write_atomically(TABLE, table())
