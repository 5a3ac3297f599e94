"""Tokenizers as files that transformers reads: ours as a tokenizer.json of the tokenizers library, others' as they were."""

import base64
import json
from typing import Any

import tokenizers as library

from framework.data import foreign
from framework.data.encoding import Tokenizer
from framework.data.tokenizer import Bpe, Bytes, Chars

END = '<|endoftext|>'


def files(tokenizer: Tokenizer, window: int) -> dict[str, str | bytes]:
  """{name: content} of the files of a tokenizer. What transformers has no form for is in a file of ours.

  Args:
    window: tokens that the model was made for.
  """
  about: dict[str, Any] = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': window,
                           'clean_up_tokenization_spaces': False}
  if isinstance(tokenizer, foreign.Foreign):
    if tokenizer.kind == 'sentencepiece':
      return {'tokenizer.model': base64.b64decode(tokenizer.model)}
    if tokenizer.kind != 'tokenizers':
      return {'lemma_tokenizer.json': tokenizer.text}
    names = {token['id']: token['content'] for token in json.loads(tokenizer.model).get('added_tokens', ())}
    for key, id_ in (('eos_token', tokenizer.end), ('bos_token', tokenizer.begin)):
      if id_ in names:
        about[key] = names[id_]
    return {'tokenizer.json': tokenizer.model, 'tokenizer_config.json': json.dumps(about, indent=2) + '\n'}
  return {'tokenizer.json': made(tokenizer), 'tokenizer_config.json': json.dumps(
      about | {'eos_token': END, 'bos_token': END}, indent=2) + '\n'}


def made(tokenizer: Tokenizer) -> str:
  """The JSON of a tokenizer of the library that gives the ids of one of ours, with its end as a special token."""
  if isinstance(tokenizer, Bpe):
    same = library.Tokenizer.from_str(tokenizer.model)
    same.decoder = library.decoders.ByteLevel()
  elif isinstance(tokenizer, Bytes):
    characters = foreign.byte_of_character()
    same = library.Tokenizer(library.models.BPE(vocab=characters, merges=[]))
    same.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    same.decoder = library.decoders.ByteLevel()
  else:
    assert isinstance(tokenizer, Chars)
    same = library.Tokenizer(library.models.WordLevel({character: i for i, character in enumerate(tokenizer.alphabet)},
                                                      unk_token=END))
    same.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r'[\s\S]'), 'isolated')
    same.decoder = library.decoders.Fuse()
  same.add_special_tokens([END])
  if same.token_to_id(END) != tokenizer.end:
    raise ValueError(f'the end is token {same.token_to_id(END)}; expected {tokenizer.end}')
  return same.to_str()
