"""Our decoder against transformers' GPT-2 and Llama: the same logits from the same files, in both directions."""

import dataclasses

from flax import traverse_util
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
safetensors_numpy = pytest.importorskip('safetensors.numpy')

from framework.models import huggingface
from tests.networks import build

pytestmark = pytest.mark.peers

TOLERANCE = 1e-4  # on logits of deviation about 1, computed in float32 by both
VOCABULARY = 61

# Sizes of which no two are alike, and nothing at its default, so that no mistake can hide behind an equality.
GPT2 = dict(vocab_size=VOCABULARY, n_positions=23, n_embd=20, n_layer=3, n_head=5, layer_norm_epsilon=3e-3,
            bos_token_id=None, eos_token_id=None)
LLAMA = dict(vocab_size=VOCABULARY, max_position_embeddings=23, hidden_size=24, num_hidden_layers=3,
             num_attention_heads=6, num_key_value_heads=2, intermediate_size=37, rms_norm_eps=3e-3,
             rope_parameters={'rope_type': 'default', 'rope_theta': 517.0}, bos_token_id=None, eos_token_id=None)
CASES = {
    'gpt2': ('gpt2', GPT2),
    'gpt2_relu2': ('gpt2', GPT2 | dict(activation_function='relu2')),
    'gpt2_untied_relu_inner': ('gpt2', GPT2 | dict(tie_word_embeddings=False, activation_function='relu', n_inner=33)),
    'llama_grouped': ('llama', LLAMA),
    'llama_tied': ('llama', LLAMA | dict(tie_word_embeddings=True)),
    'llama_biased_ungrouped': ('llama', LLAMA | dict(num_key_value_heads=6, attention_bias=True, mlp_bias=True)),
    'llama_one_key_head': ('llama', LLAMA | dict(num_key_value_heads=1, num_hidden_layers=1)),
}


@pytest.fixture(params=CASES)
def theirs(request):
  """A model of theirs whose every parameter, norms and biases too, is random and matters."""
  family, settings = CASES[request.param]
  torch.manual_seed(0)
  torch.set_num_threads(1)
  if family == 'gpt2':
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))
  else:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      norm_scale = parameter.ndim == 1 and name.endswith('weight')
      parameter.normal_(1.0 if norm_scale else 0.0, 0.3)
  return model.eval()


def tokens_2xL(length=23):
  return np.random.default_rng(0).integers(0, VOCABULARY, (2, length)).astype(np.int32)


def their_logits(model, tokens):
  with torch.no_grad():
    return model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def our_logits(model, vocabulary, length, params, tokens):
  module = build(model, vocabulary, length)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  hidden, _ = module.apply({'params': params}, jnp.asarray(tokens), positions, jnp.ones_like(positions))
  return np.asarray(module.logits(params, hidden))


def difference(a, b):
  assert a.shape == b.shape and np.isfinite(a).all() and a.std() > 0.3
  return np.abs(a - b).max()


def assert_same(a, b):
  assert a[:3] == b[:3]
  flat_a, flat_b = (traverse_util.flatten_dict(x[3], sep='.') for x in (a, b))
  assert flat_a.keys() == flat_b.keys()
  for path in flat_a:
    assert flat_a[path].dtype == flat_b[path].dtype
    np.testing.assert_array_equal(flat_a[path], flat_b[path], err_msg=path)


def test_their_files_give_our_decoder_their_logits(theirs, tmp_path):
  theirs.save_pretrained(tmp_path)
  error = difference(our_logits(*huggingface.load(tmp_path), tokens_2xL()), their_logits(theirs, tokens_2xL()))
  assert error < TOLERANCE


def test_their_files_in_shards_hold_the_same(theirs, tmp_path):
  theirs.save_pretrained(tmp_path / 'one')
  theirs.save_pretrained(tmp_path / 'many', max_shard_size='10KB')
  assert not (tmp_path / 'many/model.safetensors').exists()
  assert_same(huggingface.load(tmp_path / 'many'), huggingface.load(tmp_path / 'one'))


def test_our_files_give_them_the_same_logits_and_bits(theirs, tmp_path):
  theirs.save_pretrained(tmp_path / 'theirs')
  ours = huggingface.load(tmp_path / 'theirs')
  huggingface.save(tmp_path / 'ours', *ours)
  again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not any(report.values()), report
  assert type(again) is type(theirs)
  np.testing.assert_array_equal(their_logits(again.eval(), tokens_2xL()), their_logits(theirs, tokens_2xL()))
  a, b = (safetensors_numpy.load_file(tmp_path / name / 'model.safetensors') for name in ('theirs', 'ours'))
  assert a.keys() == b.keys()
  assert all(a[name].tobytes() == b[name].tobytes() and a[name].shape == b[name].shape for name in a)
  assert_same(huggingface.load(tmp_path / 'ours'), ours)


def test_bfloat16_files_stay_bfloat16(theirs, tmp_path):
  theirs.to(torch.bfloat16).save_pretrained(tmp_path / 'theirs')
  ours = huggingface.load(tmp_path / 'theirs')
  assert ours[0].param_dtype == 'bfloat16'
  huggingface.save(tmp_path / 'ours', *ours)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  assert again.dtype == torch.bfloat16
  for (name, a), (_, b) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
    assert torch.equal(a, b), name
  error = difference(our_logits(*ours, tokens_2xL()), their_logits(again.float(), tokens_2xL()))
  assert error < TOLERANCE


def test_attention_weights_are_theirs(theirs, tmp_path):
  theirs.save_pretrained(tmp_path)
  model, vocabulary, length, params = huggingface.load(tmp_path)
  tokens = tokens_2xL()
  module = build(model, vocabulary, length)
  positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
  _, seen = module.apply({'params': params}, jnp.asarray(tokens), positions, jnp.ones_like(positions),
                         mutable='intermediates')
  theirs.set_attn_implementation('eager')
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens, dtype=torch.long), output_attentions=True).attentions
  np.testing.assert_allclose(seen['intermediates']['attention'][0], [x.numpy() for x in expected], atol=1e-5)


def swapped_projections(params):
  blocks = params['blocks']
  if blocks['query']['weight'].shape == blocks['key']['weight'].shape:
    return params | {'blocks': blocks | {'query': blocks['key'], 'key': blocks['query']}}
  return params | {'blocks': blocks | {'key': blocks['value'], 'value': blocks['key']}}


def reordered_heads(params):
  query = params['blocks']['query']
  return params | {'blocks': params['blocks'] | {'query': query | {'weight': query['weight'][:, :, ::-1]}}}


MUTANTS = {
    'projections swapped': lambda model, params: (model, swapped_projections(params)),
    'heads in another order': lambda model, params: (model, reordered_heads(params)),
    'epsilon of the default': lambda model, params: (dataclasses.replace(model, norm_epsilon=1e-5), params),
    'rope base of the default': lambda model, params: (dataclasses.replace(model, rope_base=1e4), params),
    'last norm left out': lambda model, params: (model, params | {
        'norm': params['norm'] | {'scale': np.ones_like(params['norm']['scale'])}}),
    'biases left out': lambda model, params: (model, traverse_util.path_aware_map(
        lambda path, x: x * (path[-1] != 'bias'), params)),
}


@pytest.mark.parametrize('mutant', MUTANTS)
def test_a_wrong_conversion_fails_the_tolerance(theirs, mutant, tmp_path):
  theirs.save_pretrained(tmp_path)
  model, vocabulary, length, params = huggingface.load(tmp_path)
  if 'rope' in mutant and model.position != 'rope' or 'bias' in mutant and not model.bias:
    pytest.skip('nothing to change')
  model, params = MUTANTS[mutant](model, params)
  error = difference(our_logits(model, vocabulary, length, params, tokens_2xL()), their_logits(theirs, tokens_2xL()))
  assert error > 10 * TOLERANCE
