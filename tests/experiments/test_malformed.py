"""Malformed flags, configs, files and disks: one clear line, a non-zero exit, nothing compiled, nothing lost."""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
TEXT = 'the quick brown fox jumps over the lazy dog.\n' * 20
CONFIG = '''from framework.config import *
def get_config():
  return Config(
      model=Model(layers=1, width=8, heads=2), data=Data(path={text!r}, cache={cache!r}, tokenizer='chars', window=8),
      optimizer=Optimizer(warmup_steps=1), training=Training(steps=3, batch=4, devices=1, log_every=1),
      checkpoint=Checkpoint(every_steps=2, keep=3, patience=0.0))
'''
LOG_LINE = re.compile(r'\d\d:\d\d:\d\d \S')


@dataclasses.dataclass
class Case:
  """`words` may name {root}, which holds tiny.py, text.txt, cache and run, and {here}, which holds `files`."""
  name: str
  pattern: str
  words: tuple[str, ...] = ()
  launcher: str = 'train'
  code: int = 2
  files: dict = dataclasses.field(default_factory=dict)  # path below {here}: content, or a function of the path
  env: dict = dataclasses.field(default_factory=dict)


@pytest.fixture(scope='module')
def root(server, tmp_path_factory):
  """A folder with a text, a config, a cache and a finished run on them."""
  root = tmp_path_factory.mktemp('root')
  (root / 'text.txt').write_text(TEXT)
  (root / 'tiny.py').write_text(CONFIG.format(text=str(root / 'text.txt'), cache=str(root / 'cache')))
  reply = server('train', f'--config={root}/tiny.py', f'--workdir={root}/run')
  assert reply['code'] == 0 and steps(root / 'run') == ['2', '3'], reply
  return root


def steps(run):
  return sorted(p.name for p in (run / 'checkpoints').iterdir() if p.name.isdigit())


def digest(*folders):
  """{path: content} of everything below the folders."""
  return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else 'folder'
          for folder in folders for p in sorted(folder.rglob('*')) if p.name != '.lock'}


def refused(reply, code, pattern):
  """One error line, the last, that matches; before it only our own log."""
  lines = reply['err'].splitlines()
  assert reply['code'] == code and lines, reply
  assert re.fullmatch(f'error: .*{pattern}.*', lines[-1]), f'{lines[-1]!r} does not match {pattern!r}'
  strangers = [line for line in lines[:-1] if not LOG_LINE.match(line)]
  assert not strangers, strangers
  assert 'Traceback' not in reply['err']
  assert len(lines[-1]) < 600, lines[-1]
  assert '/site-packages/' not in lines[-1]


# What goes into the files of a case


def bad_config(body):
  return {'c.py': 'from framework.config import *\n' + body}


def returns(expression):
  return bad_config(f'def get_config():\n  return {expression}\n')


def copied_run(*changes):
  """A function that puts a copy of the finished run at a path, changed."""
  def make(path, root):
    shutil.copytree(root / 'run', path)
    for change in changes:
      change(path)
  return make


def overwrite(name, content):
  def change(run):
    (run / name).write_bytes(content)
  return change


def remove(name):
  def change(run):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  return change


def edit_config(**flat):
  def change(run):
    saved = json.loads((run / 'config.json').read_text())
    saved['config'] |= {k.replace('__', '.'): v for k, v in flat.items()}
    del saved['digest']
    (run / 'config.json').write_text(json.dumps(saved))
  return change


def damage_all(run):
  for path in (run / 'checkpoints').rglob('*'):
    if path.is_file() and path.stat().st_size > 1000:
      path.write_bytes(path.read_bytes()[:500])


def data(name, pattern, content, path='t.txt', key='data.path'):
  files = {} if content is None else {path: content}
  return Case(name, pattern, (f'--config.{key}={{here}}/{path}',), files=files)


def setting(name, pattern, *settings):
  return Case(name, pattern, tuple(f'--config.{s}' for s in settings))


OF_ROOT, OF_HERE = '--workdir={root}/run', '--workdir={here}/run'
CONFIG_HERE = ('--config={here}/c.py',)
RESUMED = (OF_HERE, '--resume')
CASES = [
    # flags
    Case('no_config', '--config is missing', ('--config=',)),
    Case('config_absent', r"config file \S+tny.py does not exist \(did you mean '\S+tiny.py'\?\)",
         ('--config={root}/tny.py',)),
    Case('config_is_folder', 'config file .* does not exist', ('--config={root}',)),
    Case('no_workdir', '--workdir is missing', ('--workdir=',)),
    Case('flag_typo', "[Uu]nknown command line flag 'workdr'. Did you mean: workdir", ('--workdr=x',)),
    Case('flag_typo_evaluate', "[Uu]nknown command line flag 'windws'. Did you mean: windows",
         ('--windws=3', OF_ROOT), 'evaluate'),
    Case('flag_typo_generate', "[Uu]nknown command line flag 'temprature'. Did you mean: temperature",
         ('--temprature=1', OF_ROOT), 'generate'),
    Case('positional', "unexpected argument 'runs/a'", ('runs/a',)),
    Case('positional_generate', "unexpected argument 'hello'", (OF_ROOT, 'hello'), 'generate'),
    setting('key_typo', r"config has no key 'model.layer' \(did you mean 'model.layers'\?\)", 'model.layer=3'),
    setting('section_typo', r"config has no key 'modle.layers' \(did you mean 'model.layers'\?\)", 'modle.layers=3'),
    setting('section', '--config.model is a section; give one of its keys, such as --config.model.name', 'model=3'),
    setting('not_a_number', "config.model.layers.*six.*int", 'model.layers=six'),
    setting('not_a_bool', "config.model.bias.*perhaps.*bool", 'model.bias=perhaps'),
    setting('fraction', 'config.model.layers.*2.5', 'model.layers=2.5'),
    Case('resume_value', "resume.*perhaps.*bool", ('--resume=perhaps',)),
    # config files
    Case('config_syntax', r'c.py.*line 2', CONFIG_HERE, files=bad_config('def get_config(:\n')),
    Case('config_binary', r'c.py.*SyntaxError.*', CONFIG_HERE, files={'c.py': bytes(range(256))}),
    Case('config_latin1', r"c.py.*SyntaxError.*(utf-8|Non-UTF-8)", CONFIG_HERE, files={'c.py': b"x = '\xe9'\n"}),
    Case('config_empty', "c.py.*get_config", CONFIG_HERE, files={'c.py': ''}),
    Case('config_raises', r'c.py:3.*ZeroDivisionError: division by zero', CONFIG_HERE, files=returns('1 / 0')),
    Case('config_exits', r'c.py:3.*SystemExit: 0', CONFIG_HERE, files=returns('exit(0)')),
    Case('config_import', r"c.py:2.*No module named 'nonesuch'", CONFIG_HERE, files=bad_config('import nonesuch\n')),
    Case('config_dict', 'returned dict; expected a framework.config.Config', CONFIG_HERE,
         files=returns("{'model': {}}")),
    Case('config_none', r'returned NoneType; expected a framework.config.Config', CONFIG_HERE, files=returns('None')),
    Case('config_key', r"c.py:3.*'layer' \(did you mean 'layers'\?\)", CONFIG_HERE,
         files=returns('Config(model=Model(layer=3))')),
    Case('config_attribute', r"c.py:4.*'layer' \(did you mean 'layers'\?\)", CONFIG_HERE,
         files=bad_config('def get_config():\n  c = Config()\n  c.model.layer = 3\n  return c\n')),
    Case('config_attribute_other', r"c.py:4.*'learning_rte' \(did you mean 'learning_rate'\?\)", CONFIG_HERE,
         files=bad_config('def get_config():\n  c = Config()\n  c.optimizer.learning_rte = 1.0\n  return c\n')),
    Case('config_section_dict', 'model is dict; expected framework.config.Model', CONFIG_HERE,
         files=returns("Config(model={'layers': 3})")),
    Case('config_section_swapped', 'model is Data; expected framework.config.Model', CONFIG_HERE,
         files=returns("Config(model=Data())")),
    Case('type_str', "model.layers is '6'; expected int", CONFIG_HERE,
         files=returns("Config(model=Model(layers='6'))")),
    Case('type_bool', 'model.layers is True; expected int', CONFIG_HERE,
         files=returns('Config(model=Model(layers=True))')),
    Case('type_float', "optimizer.learning_rate is 'x'; expected float", CONFIG_HERE,
         files=returns("Config(optimizer=Optimizer(learning_rate='x'))")),
    Case('type_huge', r'optimizer.learning_rate is 10+; expected 0.0 to 100.0, nearest is 100.0', CONFIG_HERE,
         files=returns('Config(optimizer=Optimizer(learning_rate=10**320))')),
    setting('nan', 'optimizer.learning_rate is nan; expected 0.0 to 100.0, nearest is 0.0',
            'optimizer.learning_rate=nan'),
    setting('negative', 'optimizer.learning_rate is -1.0; expected 0.0 to 100.0', 'optimizer.learning_rate=-1'),
    setting('zero_layers', 'model.layers is 0; expected 1 to 1000, nearest is 1', 'model.layers=0'),
    setting('vocabulary', 'data.vocabulary is 100; expected 257', 'data.tokenizer=bpe', 'data.vocabulary=100'),
    # settings against each other
    setting('heads', 'model.heads is 3; expected a divisor of model.width 8, nearest is 2 or 4', 'model.heads=3'),
    setting('kv_heads', 'model.kv_heads is 3; expected a divisor of model.heads 4, nearest is 2 or 4',
            'model.heads=4', 'model.kv_heads=3'),
    setting('rope', 'rope needs an even head width, nearest is model.width 16', 'model.width=12', 'model.heads=4'),
    setting('rope_head', 'model.head_width is 3; rope needs an even one, nearest is 4', 'model.head_width=3'),
    setting('mask', "model.mask is 'causl'; expected one of causal, strict, bidirectional .did you mean 'causal'",
            'model.mask=causl'),
    setting('bidirectional', "model.mask is 'bidirectional', which sees the token that it is scored on; expected "
            "'causal'", 'model.mask=bidirectional'),
    setting('sinusoidal', 'model.width is 9; sinusoidal', 'model.position=sinusoidal', 'model.width=9',
            'model.heads=3'),
    setting('accumulation', 'training.accumulation is 3; expected a divisor of training.batch 4, nearest is 2 or 4',
            'training.accumulation=3'),
    setting('devices', 'training.batch is 4; expected a multiple of 3 devices x 1 microbatches = 3, nearest is 3 or 6',
            'training.devices=3'),
    setting('stride', 'data.stride is 9; expected at most data.window 8', 'data.stride=9'),
    setting('evaluation_stride', 'evaluation.stride is 9; expected at most data.window 8', 'evaluation.stride=9'),
    setting('warmup', 'optimizer.warmup_steps is 3; expected fewer than training.steps 3, nearest is 2',
            'optimizer.warmup_steps=3'),
    setting('final_rate', 'optimizer.final_learning_rate is 0.5; expected at most',
            'optimizer.final_learning_rate=0.5'),
    setting('window', r'data.window is 5000; the corpus has \d+ training tokens: expected at most \d+',
            'data.window=5000'),
    setting('param_dtype', r"model.param_dtype is 'bfloat16', .*; expected 'float32' in training, nearest is "
            'model.dtype=bfloat16', 'model.param_dtype=bfloat16'),
    # misspelt choices
    setting('position', r"model.position is 'ropes'; expected one of rope, .* \(did you mean 'rope'\?\)",
            'model.position=ropes'),
    setting('dtype', r"model.dtype is 'bf16'; expected one of .* \(did you mean 'bfloat16'\?\)", 'model.dtype=bf16'),
    setting('tokenizer', r"data.tokenizer is 'byte'; .* \(did you mean 'bytes'\?\)", 'data.tokenizer=byte'),
    setting('optimizer', r"optimizer.name is 'adam'; .* \(did you mean 'adamw'\?\)", 'optimizer.name=adam'),
    setting('schedule', r"optimizer.schedule is 'cosin'; .* \(did you mean 'cosine'\?\)", 'optimizer.schedule=cosin'),
    setting('partition', r"training.partition is 'mash'; .* \(did you mean 'mesh'\?\)", 'training.partition=mash'),
    setting('model', r"model.name is 'decodr'; .* \(did you mean 'decoder'\?\)", 'model.name=decodr'),
    setting('attention', r"model.attention is 'xl'; expected one of auto, xla.* \(did you mean 'xla'\?\)",
            'model.attention=xl'),
    # texts
    Case('data_absent', r"data.path is '\S+/tex.txt', which does not exist; .* \(did you mean 'text.txt'\?\)",
         ('--config.data.path={root}/tex.txt',)),
    Case('data_folder_empty', 'data.path is .* but there is no file at all', ('--config.data.path={here}/folder',),
         files={'folder/.hidden': 'x'}),
    data('data_suffix', "data.path is .*t.csv'; expected files that end in .txt, .py, .md, .jsonl.* 't.txt'", 'a,b',
         't.csv'),
    data('data_empty', 'data.path is .*, which leaves no text for the train split; expected at least 2 characters',
         b''),
    data('data_one_token', 'data.path is .*, which leaves no text for the train split', 'a'),
    data('data_two_tokens', 'data.window is 8; the corpus has 3 training tokens: expected at most 2', 'ab'),
    data('data_binary', r't.txt. is not UTF-8 text at byte \d+', bytes(range(256)) * 9),
    data('data_zero', r't.txt. is not UTF-8 text at byte 3 \(a zero byte\)', b'abc\0def'),
    data('data_latin1', r't.txt. is not UTF-8 text at byte 3 .* nearest is the file converted with iconv',
         b'caf\xe9 ' * 9),
    data('data_gzip', "t.txt.gz' is not sound gzip", gzip.compress(TEXT.encode())[:-20], 't.txt.gz'),
    data('data_not_gzip', "t.txt.gz' is not sound gzip .*nearest is the text without .gz", TEXT, 't.txt.gz'),
    data('data_jsonl', "t.jsonl:2' is not JSON", '{"text": "a"}\n{"text": \n', 't.jsonl'),
    data('data_jsonl_field', r"t.jsonl:1' has no field 'text' \(did you mean 'texts'\?\)", '{"texts": "a"}\n',
         't.jsonl'),
    data('data_jsonl_list', "t.jsonl:1' is list; expected an object with a string 'text'", '["a"]\n', 't.jsonl'),
    data('validation_absent', r"data.validation_path is .* which does not exist", None, 'held.txt',
         'data.validation_path'),
    data('validation_empty', 'data.validation_path is .* no text for the validation split', '', 'held.txt',
         'data.validation_path'),
    Case('cache_under_file', "data.cache is .* cannot be written", ('--config.data.cache={here}/file/cache',),
         files={'file': 'x'}),
    Case('cache_home', "data.cache is '~nonesuch/x'", ('--config.data.cache=~nonesuch/x',), env={'HOME': '/proc/none'}),
    # the run's folder
    Case('workdir_file', 'workdir .*/file is a file; expected a folder', ('--workdir={here}/file',),
         files={'file': 'x'}),
    Case('workdir_stranger', 'workdir .* is not empty and holds no run .found notes.txt.', ('--workdir={here}/w',),
         files={'w/notes.txt': 'x'}),
    Case('workdir_under_file', 'workdir .* cannot be written: Not a directory', ('--workdir={here}/file/w',),
         files={'file': 'x'}),
    Case('workdir_unwritable', 'workdir /proc/none/w cannot be written', ('--workdir=/proc/none/w',)),
    Case('workdir_home', "~nonesuch", ('--workdir=~nonesuch/w',)),
    Case('workdir_long', '--workdir is .*File name too long', ('--workdir={here}/' + 'w' * 300,)),
    Case('workdir_run', 'already holds a run; give --resume', (OF_ROOT,)),
    Case('resume_other_config', 'holds a run whose model.width is 8; this config has 16',
         (OF_ROOT, '--resume', '--config.model.width=16')),
    Case('resume_other_text', 'holds a run on corpus [0-9a-f]{12}; the text at data.path is now [0-9a-f]{12}',
         (OF_ROOT, '--resume', '--config.data.path={here}/t.txt'), files={'t.txt': TEXT}),
    Case('resume_changed_text', 'holds a run on corpus [0-9a-f]{12}; the text at data.path is now [0-9a-f]{12}',
         RESUMED + ('--config.data.path={here}/t.txt',), files={
             't.txt': TEXT + 'more', 'run': lambda path, root: copied_run(
                 edit_config(data__path=str(path.parent / 't.txt')))(path, root)}),
    Case('config_json_damaged', "config.json cannot be read as a run's config", RESUMED,
         files={'run': copied_run(overwrite('config.json', b'{"config": {"mod'))}),
    Case('config_json_binary', "config.json cannot be read as a run's config", RESUMED,
         files={'run': copied_run(overwrite('config.json', bytes(range(256))))}),
    Case('config_json_empty', "config.json cannot be read as a run's config", (OF_HERE,), 'evaluate',
         files={'run': copied_run(overwrite('config.json', b''))}),
    Case('config_json_type', "model.layers is 'x'; expected int", (OF_HERE,), 'generate',
         files={'run': copied_run(edit_config(model__layers='x'))}),
    Case('resume_other_shape', r'(?<=error: )checkpoint 3 of \S+ holds \S+ of shape \[.*; the config expects \[',
         RESUMED + ('--config.model.width=16',), files={'run': copied_run(
             remove('result.json'), edit_config(model__width=16, model__feedforward=64))}),
    Case('resume_damaged', r'has no usable checkpoint; checkpoint 3 cannot be used', RESUMED,
         files={'run': copied_run(remove('result.json'), damage_all)}),
    Case('metrics_binary', 'metrics.jsonl:1 .*expected a JSON object', RESUMED,
         files={'run': copied_run(overwrite('metrics.jsonl', b'\xff\xfe\n'))}),
    Case('metrics_text', 'metrics.jsonl:2 .*expected a JSON object', RESUMED,
         files={'run': copied_run(overwrite('metrics.jsonl', b'{"step": 1, "loss": 2}\nhello\n'))}),
    Case('metrics_no_step', "metrics.jsonl:1 .*expected a JSON object with an integer 'step'", RESUMED,
         files={'run': copied_run(overwrite('metrics.jsonl', b'{"loss": 2}\n'))}),
    # evaluation and generation
    Case('evaluate_no_workdir', '--workdir is missing', (), 'evaluate'),
    Case('generate_no_workdir', '--workdir is missing', (), 'generate'),
    Case('evaluate_no_run', r"workdir \S+/rum holds no run; .* \(did you mean 'run'\?\)", ('--workdir={root}/rum',),
         'evaluate'),
    Case('generate_file', 'workdir .* holds no run', ('--workdir={root}/text.txt',), 'generate'),
    Case('evaluate_no_checkpoint', 'holds a run without a checkpoint', (OF_HERE,), 'evaluate',
         files={'run': copied_run(remove('checkpoints'))}),
    Case('generate_no_checkpoint', 'holds a run without a checkpoint', (OF_HERE,), 'generate',
         files={'run': copied_run(remove('checkpoints'))}),
    Case('evaluate_tokenizer_absent', 'tokenizer.json. cannot be read .No such file', (OF_HERE,), 'evaluate',
         files={'run': copied_run(remove('tokenizer.json'))}),
    Case('generate_tokenizer_damaged', 'tokenizer.json. cannot be read', (OF_HERE,), 'generate',
         files={'run': copied_run(overwrite('tokenizer.json', b'\x80'))}),
    Case('evaluate_other_shape', r'(?<=error: )checkpoint 3 of \S+ holds \S+ of shape \[.*; the config expects \[',
         (OF_HERE,), 'evaluate', files={'run': copied_run(edit_config(model__width=16, model__feedforward=64))}),
    Case('generate_damaged', 'no usable checkpoint', (OF_HERE,), 'generate',
         files={'run': copied_run(damage_all)}),
    Case('evaluate_stride', '--stride is 9; expected at most data.window 8', (OF_ROOT, '--stride=9'), 'evaluate'),
    Case('evaluate_stride_zero', '--stride=0.*(positive|lower bound|greater)', (OF_ROOT, '--stride=0'), 'evaluate'),
    Case('evaluate_split', 'split.*tst.*validation', (OF_ROOT, '--split=tst'), 'evaluate'),
    Case('evaluate_text_gone', 'which does not exist', (OF_HERE,), 'evaluate',
         files={'run': copied_run(edit_config(data__path='/nonesuch/t.txt', data__cache='/nonesuch'))}),
    Case('generate_temperature', '--temperature=-1', (OF_ROOT, '--temperature=-1'), 'generate'),
    Case('generate_nan', '--temperature.*nan', (OF_ROOT, '--temperature=nan'), 'generate'),
    Case('generate_top_p', '--top_p=0', (OF_ROOT, '--top_p=0'), 'generate'),
    Case('generate_top_p_nan', '--top_p.*nan', (OF_ROOT, '--top_p=nan'), 'generate'),
    Case('generate_stop', "--stop is 'ab', 2 tokens; expected the text of one token", (OF_ROOT, '--stop=ab'),
         'generate'),
    Case('generate_stop_empty', "--stop is '', 0 tokens", (OF_ROOT, '--stop='), 'generate'),
    Case('generate_prompt', r"--prompt: the text has the character 'é' \(U\+00E9\)", (OF_ROOT, '--prompt=café'),
         'generate'),
    Case('generate_seed', '--seed=-1', (OF_ROOT, '--seed=-1'), 'generate'),
    # several hosts, devices
    Case('coordinator_alone', '--coordinator needs --processes and --process', ('--coordinator=localhost:1',)),
    Case('coordinator_no_port', "--coordinator is 'localhost'; expected address:port or auto",
         ('--coordinator=localhost', '--processes=1', '--process=0')),
    Case('coordinator_range', '--process is 2; expected 0 to 1',
         ('--coordinator=localhost:1', '--processes=2', '--process=2')),
    Case('coordinator_missing', '--processes needs --coordinator', ('--processes=2', '--process=0')),
    Case('coordinator_no_cluster', 'cannot join the other hosts', ('--coordinator=auto',)),
    Case('platform', r"JAX_PLATFORMS is 'nonsense'", env={'JAX_PLATFORMS': 'nonsense'}),
    Case('platform_generate', r"JAX_PLATFORMS is 'nonsense'", (OF_ROOT,), 'generate',
         env={'JAX_PLATFORMS': 'nonsense'}),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_one_line(case, server, root, tmp_path):
  for name, content in case.files.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
      content(path, root)
    else:
      path.write_bytes(content if isinstance(content, bytes) else content.encode())
  words = [word.replace('{root}', str(root)).replace('{here}', str(tmp_path))
           for word in case.words]
  if case.launcher == 'train':
    for name, default in (('config', root / 'tiny.py'), ('workdir', tmp_path / 'new')):
      if not any(word.startswith(f'--{name}=') for word in words):
        words.insert(0, f'--{name}={default}')
  before = digest(root, tmp_path)
  reply = server(case.launcher, *words, env=case.env)
  refused(reply, case.code, case.pattern)
  after = digest(root, tmp_path)
  assert {path: after.get(path) for path in before} == before
  new = [path for path in after if path not in before and not path.startswith(f'{root}/cache')]
  assert not new
  assert reply['touched']['compiled'] == 0


FULL = 'framework.training.{}'


def test_cache_truncated(server, root, tmp_path):
  """A cache that was cut short is made again, and said so."""
  shutil.copytree(root / 'cache', tmp_path / 'cache')
  whole = digest(tmp_path / 'cache')
  wanted = json.loads((root / 'run/config.json').read_text())['corpus']
  path = next(p for p in (tmp_path / 'cache/corpora').glob('*/meta.json')
              if json.loads(p.read_text())['corpus'] == wanted).with_name('train.bin')
  path.write_bytes(path.read_bytes()[:-10])
  reply = server('train', f'--config={root}/tiny.py', f'--workdir={tmp_path}/new',
                 f'--config.data.cache={tmp_path}/cache', '--config.data.window=5000')
  refused(reply, 2, 'data.window is 5000')
  assert 'is damaged' in reply['err']
  assert digest(tmp_path / 'cache') == whole


def test_full_disk_corpus(server, root, tmp_path):
  reply = server('train', f'--config={root}/tiny.py', f'--workdir={tmp_path}/new',
                 f'--config.data.cache={tmp_path}/cache', full=['', 1000, 0])
  refused(reply, 1, r'data.cache is .*, which cannot be written \(File too large\); expected a folder with about 1 MB')
  left = [path.name for path in (tmp_path / 'cache' / 'corpora').iterdir()]
  assert [name for name in left if not name.endswith('.lock')] == []
  assert not (tmp_path / 'new').exists() and reply['touched']['compiled'] == 0


def test_full_disk_config(server, root, tmp_path):
  reply = server('train', f'--config={root}/tiny.py', f'--workdir={tmp_path}/new',
                 full=[FULL.format('run:open_folder'), 200, 0])
  refused(reply, 1, 'workdir .*/new cannot be written: File too large')
  assert not set(os.listdir(tmp_path / 'new')) - {'tokenizer.json', '.lock'} and reply['touched']['compiled'] == 0


@pytest.mark.parametrize('call, size, pattern, saved', [
    ('writer:Writer.row', 100, r'File too large: \S+/new/metrics.jsonl', []),
    ('checkpoint:Checkpoints.save', 300, r'a checkpoint could not be written \(File too large\), --resume goes on from '
     r'checkpoint 2: \S+/new/checkpoints', ['2']),
    ('result:summary', 100, r'File too large: \S+/new/result.json', ['2', '3']),
], ids=['metrics', 'checkpoint', 'result'])
def test_full_disk_training(server, root, tmp_path, call, size, pattern, saved):
  """What was written before stays; once there is room again, --resume ends with the rows of an undisturbed run."""
  words = f'--config={root}/tiny.py', f'--workdir={tmp_path}/new', '--resume'
  number = 1 if 'save' in call else 0  # the second save, of which only a thread knows that it failed
  reply = server('train', *words, full=[FULL.format(call), size, number])
  refused(reply, 1, pattern)
  assert steps(tmp_path / 'new') == saved
  assert not (tmp_path / 'new/result.json').exists()
  before = digest(tmp_path / 'new/checkpoints/2') if saved else {}
  reply = server('train', *words)
  assert reply['code'] == 0, reply
  assert digest(tmp_path / 'new/checkpoints/2').items() >= before.items()
  assert (tmp_path / 'new/metrics.jsonl').read_bytes() == (root / 'run/metrics.jsonl').read_bytes()


def test_full_disk_evaluation(server, root, tmp_path):
  copied_run(overwrite('evaluations.jsonl', b'{"step": 1}\n'))(tmp_path / 'run', root)
  before = digest(tmp_path, root)
  reply = server('evaluate', f'--workdir={tmp_path}/run', '--windows=1',
                 full=['framework.training.evaluation:evaluate', 20, 0])
  refused(reply, 1, r'File too large: \S+/run/evaluations.jsonl')
  assert digest(tmp_path, root) == before


def test_sound_requests(server, root):
  """The run that the cases start from can be evaluated and sampled, so no case fails for want of it."""
  reply = server('evaluate', f'--workdir={root}/run', '--windows=1', '--stride=2')
  assert reply['code'] == 0 and 'bits/byte' in reply['out'], reply
  reply = server('generate', f'--workdir={root}/run', '--prompt=the ', '--tokens=3')
  assert reply['code'] == 0 and reply['out'].startswith('the '), reply
