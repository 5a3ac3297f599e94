"""A run after its training: lengthened, evaluated on other text and at other steps, without its text, on many prompts.
"""

import importlib.util
import json
import shutil

import pytest

from tests.commands import write_documents

CONFIG = '''from framework.config import *
def get_config():
  return Config(
      model=Model(layers=1, width=16, heads=2), data=Data(path={text!r}, cache={cache!r}, window=16),
      optimizer=Optimizer(warmup_steps=1, schedule='constant'), training=Training(steps=6, batch=4, devices=1, log_every=1),
      evaluation=Evaluation(windows=8), checkpoint=Checkpoint(every_steps=3, keep=3))
'''


@pytest.fixture(scope='module')
def root(server, tmp_path_factory):
  root = tmp_path_factory.mktemp('beginnings')
  (root / 'text').mkdir()
  write_documents(root / 'text')
  (root / 'config.py').write_text(CONFIG.format(text=str(root / 'text'), cache=str(root / 'cache')))
  well(server('train', f'--config={root}/config.py', f'--workdir={root}/run'))
  return root


def well(reply):
  assert reply['code'] == 0, reply['err'][-600:]
  return reply['out']


def refused(reply, *words):
  lines = reply['err'].splitlines()
  assert reply['code'] == 2 and lines[-1].startswith('error: ') and 'Traceback' not in reply['err'], reply
  assert all(word in lines[-1] for word in words), lines[-1]


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_other_text_other_steps(server, root, tmp_path):
  (tmp_path / 'new.txt').write_text('the quick brown fox ' * 9)
  words = f'--workdir={root}/run', f'--text={tmp_path}/new.txt', f'--output={tmp_path}/out'
  well(server('evaluate', *words))
  well(server('evaluate', *words, '--step=3'))
  first, second = rows(tmp_path / 'out' / 'evaluations.jsonl')
  assert (first['step'], second['step']) == (6, 3) and first['nats_per_token'] != second['nats_per_token']
  assert first['targets'] == 181 and first['bytes'] == 180 and first['split'].endswith('new.txt')
  refused(server('evaluate', *words, '--step=4'), 'has no checkpoint 4; expected one of 3, 6, nearest is 3')
  refused(server('evaluate', *words, '--split=train'), '--split is train beside --text')
  refused(server('evaluate', f'--workdir={root}/run', f'--text={tmp_path}/none.txt'), "--text is '", 'does not exist')
  (tmp_path / 'empty.txt').write_text('')
  refused(server('evaluate', f'--workdir={root}/run', f'--text={tmp_path}/empty.txt'), 'holds no text')


def test_a_corpus_that_moved_or_went(server, root, tmp_path):
  """Evaluation and verification read the tokens from the cache; training goes on where the text is the same."""
  folder = tmp_path / 'moved'
  shutil.copytree(root / 'run', folder / 'run')
  words = f'--workdir={folder}/run', f'--output={tmp_path}/out'
  there = well(server('evaluate', f'--workdir={root}/run', f'--output={tmp_path}/there'))
  os_rename = (root / 'text').rename(folder / 'text')
  try:
    reply = server('evaluate', *words)
    assert well(reply) == there and 'its tokens are taken from data.cache' in reply['err']
    assert 'nothing differs' in well(server('verify', f'--workdir={folder}/run'))
    more = f'--config={root}/config.py', f'--workdir={folder}/run', '--resume', '--config.training.steps=8'
    refused(server('train', *more), 'does not exist')
    well(server('train', *more, f'--config.data.path={folder}/text'))
    (folder / 'text' / '00.txt').write_text('other')
    refused(server('train', *more, f'--config.data.path={folder}/text', '--config.training.steps=9'),
            'holds a run on corpus')
    assert 'its tokens are taken from data.cache' in server('evaluate', *words)['err']
    shutil.rmtree(root / 'cache')
    refused(server('evaluate', *words), 'holds a run on corpus')
  finally:
    shutil.rmtree(os_rename)


def prompts(path, *lines):
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return f'--prompts={path}'


def test_rows_of_prompts_are_independent(quick, root, tmp_path):
  call = lambda given, out, *more: quick('generate', f'--workdir={root}/run', given, f'--output={tmp_path}/{out}',
                                          '--tokens=24', *more)
  few = prompts(tmp_path / 'few.jsonl', {'prompt': 'ab', 'id': 7}, {'prompt': 'a long prompt, longer than the window'})
  many = prompts(tmp_path / 'many.jsonl', *({'prompt': 'x' * n} for n in range(9)), {'prompt': 'ab'},
                 {'prompt': 'a long prompt, longer than the window'})
  well(call(few, 'few.out', '--samples=2'))
  well(call(many, 'many.out'))
  one, other = rows(tmp_path / 'few.out'), rows(tmp_path / 'many.out')
  assert [(row['prompt'][:2], row['sample'], row.get('id')) for row in one] == [
      ('ab', 0, 7), ('ab', 1, 7), ('a ', 0, None), ('a ', 1, None)]
  assert one[0]['completion'] == other[9]['completion'] != one[1]['completion']
  assert one[2]['completion'] == other[10]['completion'] != one[3]['completion']
  before = (tmp_path / 'few.out').read_bytes()
  well(call(few, 'few.out', '--samples=2'))  # again
  assert (tmp_path / 'few.out').read_bytes() == before
  refused(call(few, 'few.out', '--samples=2', '--seed=1'), 'exists and holds something else')
  # What a kill left is not drawn again; a row of another seed is.
  (tmp_path / '.half.out.part').write_text(''.join(json.dumps(row) + '\n' for row in (
      one[0] | {'completion': 'kept'}, one[1] | {'drawn': 'other'})))
  well(call(few, 'half.out', '--samples=2'))
  assert [row['completion'] for row in rows(tmp_path / 'half.out')] == ['kept', *(r['completion'] for r in one[1:])]
  assert not (tmp_path / '.half.out.part').exists()


@pytest.mark.parametrize('text, words', [
    ('{"prompt": "a"}\nno\n', ':2 is not JSON'), ('{"promt": "a"}\n', "has no string 'prompt' (did you mean 'promt'?)"),
    ('["a"]\n', "has no string 'prompt'"), ('\n', 'holds no prompt'), ('{"prompt": "a", "sample": 1}\n', "has 'sample'"),
    ('{"prompt": "\\ud800"}\n', 'U+D800'), (None, 'does not exist')])
def test_prompts_that_are_none(server, root, tmp_path, text, words):
  if text is not None:
    (tmp_path / 'p.jsonl').write_text(text)
  refused(server('generate', f'--workdir={root}/run', f'--prompts={tmp_path}/p.jsonl', f'--output={tmp_path}/o'), words)


def test_flags_of_prompts_belong_together(server, root, tmp_path):
  run = f'--workdir={root}/run'
  refused(server('generate', run, '--samples=2'), 'belong together')
  refused(server('generate', run, '--prompts=x'), 'belong together')
  refused(server('generate', run, '--prompts=x', '--output=y', '--prompt=z'), 'beside --prompt')


def test_a_tracker_has_to_be_named(server, root):
  refused(server('sync', f'--runs={root}/run'), '--to is missing')
  refused(server('sync', f'--runs={root}/text', '--to=mlflow'), *(() if importlib.util.find_spec('mlflow') is None else (
      'nothing below',)))
