"""Tokenizers of other people's files: the ids of their own libraries, and what each stands for in bytes."""

import base64
import json

import numpy as np
import pytest
import tokenizers as library

from framework.config import ConfigError, Data
from framework.data import corpus, encoding, foreign, windows
from framework.data import tokenizer as tokenizers

TEXT = ('The fox -- said "naïve 東京" \U0001f600;\n\n  it was  12345 years   ago.\tDon\'t <s> ask <|endoftext|> me!\n'
        '日本語のテキスト\u00a0x\r\n')
MODERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r'\s+(?!\S)|\s+')


def byte_level(specials=('<|endoftext|>',)):
  """As GPT-2's kin: byte-level BPE under a modern pre-tokeniser, with added tokens, some of which are text."""
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.Sequence([
      library.pre_tokenizers.Split(library.Regex(MODERN), 'isolated'),
      library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  made.decoder = library.decoders.ByteLevel()
  made.train_from_iterator([TEXT * 20], library.trainers.BpeTrainer(
      vocab_size=400, initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
  made.add_special_tokens(list(specials))
  made.add_tokens([library.AddedToken('   ', normalized=False)])
  return made


def spaced(prepend='normalizer'):
  """As Llama's: a space before the text, lower blocks for spaces, and bytes to fall back on."""
  bytes_ = [f'<0x{i:02X}>' for i in range(256)]
  made = library.Tokenizer(library.models.BPE(unk_token='<unk>', byte_fallback=True, fuse_unk=True))
  made.normalizer = library.normalizers.Sequence([library.normalizers.Prepend('▁'), library.normalizers.Replace(' ', '▁')])
  words = 'The fox said it was years ago ask me'.split()
  made.train_from_iterator([' '.join(words * 30)], library.trainers.BpeTrainer(
      vocab_size=400, special_tokens=['<unk>', '<s>', '</s>', *bytes_], show_progress=False, max_token_length=5))
  model = json.loads(made.to_str())
  if prepend == 'metaspace':
    model['normalizer'] = None
    model['pre_tokenizer'] = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'first', 'split': False}
  model['model']['byte_fallback'] = True
  model['added_tokens'] = [token for token in model['added_tokens'] if not token['content'].startswith('<0x')]
  model['model']['merges'] = [pair for pair in model['model']['merges'] if '▁' not in ''.join(pair)[1:]]
  model['model']['vocab'] = {token: id_ for token, id_ in model['model']['vocab'].items() if '▁' not in token[1:]}
  return library.Tokenizer.from_str(json.dumps(model))


def written(folder, made, **config):
  folder.mkdir(exist_ok=True)
  (folder / 'tokenizer.json').write_text(made.to_str())
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder / 'tokenizer.json'


MAKERS = {'byte_level': byte_level, 'spaced': spaced, 'metaspace': lambda: spaced('metaspace')}


@pytest.fixture(params=MAKERS)
def pair(request, tmp_path):
  made = MAKERS[request.param]()
  names = {'eos_token': '<|endoftext|>'} if request.param == 'byte_level' else {
      'eos_token': {'content': '</s>'}, 'bos_token': '<s>'}
  return made, foreign.read(written(tmp_path, made, **names))


def test_ids_are_those_of_the_library_and_their_bytes_those_of_the_text(pair, monkeypatch):
  made, tokenizer = pair
  made.encode_special_tokens = True
  whole = TEXT * 7
  wanted = made.encode(whole, add_special_tokens=False).ids
  assert tokenizer.encode(whole).tolist() == wanted
  assert tokenizer.decode(tokenizer.encode(whole)) == whole
  assert tokenizer.continued(tokenizer.encode('The fox')[-2:]).endswith('x') and tokenizer.continued([]) == ''
  assert tokenizer.continued(tokenizer.encode('The fox')) == ' ' * tokenizer.adds_space + 'The fox'
  for size in (5, 40, 300):  # pieces, and blocks that come from a file, cut between words
    monkeypatch.setattr(encoding, 'PIECE', size)
    monkeypatch.setattr(foreign, 'PARALLEL', size)
    monkeypatch.setattr(foreign, 'pieces', lambda blocks, piece=size, cut=None, limit=0: encoding.pieces(
        blocks, size, cut, foreign.LARGEST))
    blocks = [whole[at:at + 13] for at in range(0, len(whole), 13)]
    parts = list(tokenizer.document(blocks))
    assert np.concatenate([ids for ids, _ in parts]).tolist() == wanted and len(parts) > 2
    assert sum(count for _, count in parts) == len(whole.encode())


def test_bytes_are_exact_over_a_corpus(pair, tmp_path):
  """What evaluation sums over all targets is the text's size, space or no space before it; BOS is read, EOS is scored."""
  made, tokenizer = pair
  texts = [TEXT, 'The fox', 'x', '   me']
  if made.pre_tokenizer and 'Metaspace' in made.to_str():
    texts = texts[:3]  # where no token has two spaces, the first one alone does not tell
  folder = tmp_path / 'text'
  folder.mkdir()
  for n, text in enumerate(texts):
    (folder / f'{n}.txt').write_bytes(text.encode())
  data = Data(path=str(folder), validation_path=str(folder), tokenizer=str(tmp_path / 'tokenizer.json'), window=8, stride=4,
              cache=str(tmp_path / 'cache'))
  text = corpus.prepare(data)
  assert text.tokenizer.digest == tokenizer.digest
  batches = list(windows.Windows(text.validation, text.tokenizer.end, 8, 4).each(4))
  total = sum((text.tokenizer.bytes_of(b['tokens'], b['targets']) * b['weights']).sum() for b in batches)
  assert total == sum(len(t.encode()) for t in texts) == text.validation.bytes
  read = np.concatenate([b['tokens'][b['weights'] > 0] for b in batches])
  scored = np.concatenate([b['targets'][b['weights'] > 0] for b in batches])
  assert (scored == tokenizer.end).sum() == len(texts) and (read == tokenizer.begin).sum() == len(texts)
  assert tokenizer.begin == tokenizer.end or tokenizer.end not in read


def test_a_file_of_ours_keeps_all_of_it_and_its_content_is_its_identity(pair, tmp_path):
  _, tokenizer = pair
  tokenizer.save(tmp_path / 'again.json')
  again = tokenizers.of_file(str(tmp_path / 'again.json'))
  assert again == tokenizer and again.digest == tokenizer.digest and again.table == tokenizer.table
  padded = foreign.read(tmp_path / 'tokenizer.json', vocabulary=tokenizer.size + 50)
  assert padded.size == tokenizer.size + 50 and padded.token_bytes[-1] == 0 and padded.digest != tokenizer.digest
  assert padded.decode([padded.size - 1]) == ''
  with pytest.raises(ValueError, match='expected 0 to'):
    padded.decode([padded.size])


def test_a_text_can_be_packed(pair):
  from framework.coding import archive
  for text in ('The fox', 'x', TEXT):
    assert pair[1].joined(archive.encode_text(pair[1], text.encode())) == text.encode()


def test_special_tokens_are_found_beside_the_file_or_named(tmp_path):
  made = byte_level(('<|endoftext|>', '<bos>', '<|im_end|>'))
  end, bos, chat = (made.token_to_id(name) for name in ('<|endoftext|>', '<bos>', '<|im_end|>'))
  path = written(tmp_path, made)
  assert (foreign.read(path).end, foreign.read(path).begin) == (end, end)
  assert foreign.read(tmp_path, end='<|im_end|>', begin='<bos>').end == chat
  (tmp_path / 'config.json').write_text(json.dumps({'eos_token_id': [chat, end], 'bos_token_id': bos}))
  assert (foreign.read(path).end, foreign.read(path).begin) == (chat, bos)
  with pytest.raises(ConfigError, match="no special token '<eot>'; expected one of <|endoftext|>"):
    foreign.read(path, end='<eot>')
  alone = foreign.read(written(tmp_path / 'alone', byte_level(())))
  assert alone.end == alone.size - 1 == alone.begin and alone.table[-1] == b''  # a new id, as with our own


def test_what_cannot_be_used_is_one_line(tmp_path):
  words = library.Tokenizer(library.models.WordPiece({'a': 0, '[UNK]': 1}, unk_token='[UNK]'))
  for name, content, message in (
      ('words.json', words.to_str(), "model is WordPiece; expected BPE or Unigram"),
      ('half.json', '{"model": ', 'cannot be read'), ('list.json', '[1]', 'cannot be read|is not installed'),
      ('other.tiktoken', 'YQ== 0\n', 'holds no pattern; expected a name among r50k_base')):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
      tokenizers.of_file(str(tmp_path / name))
    assert '\n' not in str(error.value)
  with pytest.raises(ConfigError, match='which cannot be read .No such file'):
    tokenizers.of_file(str(tmp_path / 'none.json'))
  unigram = library.Tokenizer(library.models.Unigram([('<unk>', 0.0), ('▁', -1.0), ('a', -2.0)], 0))
  unigram.pre_tokenizer = library.pre_tokenizers.Metaspace()
  with pytest.raises(ConfigError, match='has a character that the tokenizers tokenizer cannot hold'):
    foreign.read(written(tmp_path / 'unigram', unigram)).encode('a b')


def test_a_tokenizer_that_changes_the_text_says_so_once(tmp_path, caplog):
  made = byte_level()
  made.normalizer = library.normalizers.NFC()
  tokenizer = foreign.read(written(tmp_path, made))
  tokenizer.encode('cafe\u0301')
  tokenizer.encode('cafe\u0301')
  assert caplog.text.count('the tokenizer changes the text: its tokens stand for 5 bytes of one with 6') == 1


def test_a_token_over_a_space_is_never_cut(tmp_path):
  model = json.loads(byte_level().to_str())
  model['model']['vocab']['xĠy'] = 5000
  model['model']['merges'] += [['x', 'Ġ'], ['xĠ', 'y']]
  model['model']['vocab']['xĠ'] = 5001
  model['pre_tokenizer'] = {'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': False, 'trim_offsets': False}
  tokenizer = foreign.read(written(tmp_path, library.Tokenizer.from_str(json.dumps(model))))
  assert tokenizer.encode('x y' * 3).tolist() == [5000] * 3
  assert list(tokenizer.document(['x', ' y'] * 3))[0][0].tolist() == [5000] * 3


def test_a_setting_that_names_no_file_is_one_line():
  from framework import config
  with pytest.raises(ConfigError, match="data.tokenizer is 'byts'; expected one of bytes, chars, bpe, or the path.*'bytes'"):
    config.resolve(config.Config(data=Data(tokenizer='byts')))
  resolved = config.resolve(config.Config(data=Data(tokenizer='here/tokenizer.json')))
  assert resolved.data.tokenizer.startswith('/') and config.resolve(resolved) == resolved


def test_tiktoken_files(tmp_path):
  tiktoken = pytest.importorskip('tiktoken')
  ranks = {bytes([i]): i for i in range(256)} | {b'th': 256, b' th': 257, b'the': 258, b' the': 259}
  (tmp_path / 'cl100k_base.tiktoken').write_bytes(b''.join(
      base64.b64encode(token) + b' %d\n' % rank for token, rank in ranks.items()))
  tokenizer = foreign.read(tmp_path / 'cl100k_base.tiktoken')
  own = tiktoken.Encoding('x', pat_str=foreign.PATTERNS['cl100k_base'], mergeable_ranks=ranks, special_tokens={})
  assert tokenizer.encode(TEXT + ' the').tolist() == own.encode_ordinary(TEXT + ' the')
  assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT and tokenizer.size == 261 and tokenizer.end == 260


def test_sentencepiece_files(tmp_path):
  sentencepiece = pytest.importorskip('sentencepiece')
  with open(tmp_path / 'tokenizer.model', 'wb') as file:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 50), model_writer=file, vocab_size=350, byte_fallback=True, model_type='bpe',
        normalization_rule_name='identity', remove_extra_whitespaces=False, minloglevel=2)
  tokenizer = foreign.read(tmp_path)
  own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
  assert tokenizer.encode(TEXT).tolist() == own.encode(TEXT)
  assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT and tokenizer.adds_space
  assert (tokenizer.begin, tokenizer.end) == (own.bos_id(), own.eos_id())
