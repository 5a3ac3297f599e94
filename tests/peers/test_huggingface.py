"""Our decoder against transformers' families: the same logits from the same files, in both directions."""

import dataclasses
import re

from flax import traverse_util
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
safetensors_numpy = pytest.importorskip('safetensors.numpy')

from framework.models import huggingface
from tests.networks import build
from tests.peers.families import (
    CASES, LENGTH, TABLE, both_ways, difference, make, our_logits, their_logits, tokens_2xL)

pytestmark = pytest.mark.peers

TOLERANCE = 1e-4  # on logits over their deviation, computed in float32 by both
CHANGED = ('inverse layer', 'not scaled', 'Gemma')  # families whose numbers are changed on the way
SOME = ('GPT-2', 'GPT-NeoX, Pythia', 'OLMo 2', 'Llama, biased, ungrouped', 'Qwen 2', 'Phi-3, sliding window', 'Gemma 3, text')


@pytest.fixture(params=SOME)
def theirs(request):
  return make(request.param)


def assert_same(a, b):
  assert a[:3] == b[:3]
  flat_a, flat_b = (traverse_util.flatten_dict(x[3], sep='.') for x in (a, b))
  assert flat_a.keys() == flat_b.keys()
  for path in flat_a:
    assert flat_a[path].dtype == flat_b[path].dtype
    np.testing.assert_array_equal(flat_a[path], flat_b[path], err_msg=path)


@pytest.mark.parametrize('name', CASES)
def test_logits_are_theirs_both_ways(name):
  _, read, back = both_ways(name)
  assert read < TOLERANCE and back < TOLERANCE
  assert back == 0 or any(word in name for word in CHANGED)


def test_the_table_beside_the_code_is_of_these_families():
  rows = re.findall(r'^\| (.*) \| `(\w+)` \| \S+ \| (\S+) \| (\S+) \|$', TABLE.read_text(), re.MULTILINE)
  assert [(name, family) for name, family, *_ in rows] == [(name, family) for name, (family, _) in CASES.items()]
  assert all(float(x) < TOLERANCE for row in rows for x in row[2:])
  assert {family for _, family, *_ in rows} == set(huggingface.FAMILIES)


def test_their_files_in_shards_hold_the_same(theirs, tmp_path):
  theirs.save_pretrained(tmp_path / 'one')
  theirs.save_pretrained(tmp_path / 'many', max_shard_size='10KB')
  assert not (tmp_path / 'many/model.safetensors').exists()
  assert_same(huggingface.load(tmp_path / 'many'), huggingface.load(tmp_path / 'one'))


def test_our_files_hold_their_bits(theirs, tmp_path):
  theirs.save_pretrained(tmp_path / 'theirs')
  ours = huggingface.load(tmp_path / 'theirs')
  huggingface.save(tmp_path / 'ours', *ours, theirs.config.model_type)
  if 'gemma' in theirs.config.model_type:  # whose norms are kept around 0
    return
  a, b = (safetensors_numpy.load_file(tmp_path / name / 'model.safetensors') for name in ('theirs', 'ours'))
  assert a.keys() == b.keys()
  assert all(a[name].tobytes() == b[name].tobytes() and a[name].shape == b[name].shape for name in a)
  assert_same(huggingface.load(tmp_path / 'ours'), ours)


def test_bfloat16_files_stay_bfloat16(theirs, tmp_path):
  theirs.to(torch.bfloat16).save_pretrained(tmp_path / 'theirs')
  ours = huggingface.load(tmp_path / 'theirs')
  exact = 'gemma' not in theirs.config.model_type
  assert ours[0].param_dtype == ('bfloat16' if exact else 'float32')
  huggingface.save(tmp_path / 'ours', *ours, theirs.config.model_type)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  assert again.dtype == (torch.bfloat16 if exact else torch.float32)
  for (name, a), (_, b) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
    assert torch.equal(a, b) or not exact, name
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


@pytest.mark.parametrize('settings, family', [
    ({}, 'ArceeForCausalLM'), ({'activation': 'relu2', 'rope_base': 200.0}, 'ArceeForCausalLM'),
    ({'norm': 'layernorm'}, 'GPTNeoXForCausalLM'), ({'norm': 'layernorm', 'kv_heads': 2}, 'Starcoder2ForCausalLM'),
    ({'activation': 'swiglu', 'kv_heads': 2, 'tied_head': False}, 'LlamaForCausalLM')])
def test_a_stock_model_has_a_family(settings, family, tmp_path):
  import jax
  from framework.config import Model
  from framework.models import contract
  from framework.models.huggingface.family import resolved
  model = resolved(Model(**{'layers': 2, 'width': 32, 'heads': 4} | settings))
  params = jax.tree.map(lambda x: x * 3, contract.init(build(model, 61, LENGTH), jax.random.key(0)))
  huggingface.save(tmp_path, model, 61, LENGTH, params)
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
  assert type(theirs).__name__ == family and not any(report.values())
  ours = our_logits(model, 61, LENGTH, params, tokens_2xL())
  assert np.abs(their_logits(theirs.eval(), tokens_2xL()) - ours).max() / ours.std() < TOLERANCE


def swapped_projections(params):
  blocks = params['blocks']
  if blocks['query']['weight'].shape == blocks['key']['weight'].shape:
    return params | {'blocks': blocks | {'query': blocks['key'], 'key': blocks['query']}}
  return params | {'blocks': blocks | {'key': blocks['value'], 'value': blocks['key']}}


def reordered_heads(params):
  query = params['blocks']['query']
  return params | {'blocks': params['blocks'] | {'query': query | {'weight': query['weight'][:, :, ::-1]}}}


def setting(**settings):
  return lambda model, params: (dataclasses.replace(model, **settings), params)


MUTANTS = {
    'projections swapped': lambda model, params: (model, swapped_projections(params)),
    'heads in another order': lambda model, params: (model, reordered_heads(params)),
    'epsilon of the default': setting(norm_epsilon=1e-5), 'rope base of the default': setting(rope_base=1e4),
    'last norm left out': lambda model, params: (model, params | {
        'norm': params['norm'] | {'scale': np.ones_like(params['norm']['scale'])}}),
    'biases left out': lambda model, params: (model, traverse_util.path_aware_map(
        lambda path, x: x * (path[-1] != 'bias'), params)),
    'branches one after the other': setting(parallel=False), 'all channels rotated': setting(rope_share=1.0),
    'window one longer': lambda model, params: (dataclasses.replace(
        model, sliding_window=model.sliding_window + 1), params),
    'waves not stretched': setting(rope_scaling=''), 'local waves as the others': setting(rope_base_local=0.0),
    'embedding not scaled': setting(embedding_scale=1.0), 'GELU in the other form': setting(activation='gelu'),
}


@pytest.mark.parametrize('mutant', MUTANTS)
def test_a_wrong_conversion_fails_the_tolerance(theirs, mutant, tmp_path):
  theirs.save_pretrained(tmp_path)
  model, vocabulary, length, params = huggingface.load(tmp_path)
  skip = 'rope' in mutant and model.position != 'rope' or 'window' in mutant and not model.sliding_window or (
      'bias' in mutant and not model.bias) or 'GELU' in mutant and model.activation != 'gelu_exact'
  wrong, params = (model, params) if skip else MUTANTS[mutant](model, params)
  if skip or wrong == model and mutant not in ('projections swapped', 'heads in another order', 'last norm left out',
                                               'biases left out'):
    pytest.skip('nothing to change')
  error = difference(our_logits(wrong, vocabulary, length, params, tokens_2xL()), their_logits(theirs, tokens_2xL()))
  assert error > (2 if 'GELU' in mutant else 10) * TOLERANCE  # whose two forms are that close
