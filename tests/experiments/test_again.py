"""Every command that writes, twice, and after a kill that left half of it; what it prints is printed before it writes."""

import json
import os
import shutil

import pytest

from scaling import __main__ as scaling
from foundation.command import run
from tests.experiments.test_malformed import CONFIG, TEXT, digest
from tests.scaling.test_table import good, text


@pytest.fixture(scope='module')
def root(server, tmp_path_factory):
  """A folder with a text, a config, and a finished run on them."""
  root = tmp_path_factory.mktemp('again')
  (root / 'text.txt').write_text(TEXT)
  (root / 'tiny.py').write_text(CONFIG.format(text=str(root / 'text.txt'), cache=str(root / 'cache')))
  reply = server('train', f'--config={root}/tiny.py', f'--workdir={root}/run')
  assert reply['code'] == 0, reply
  return root


def twice(call, made, halves):
  """Calls, again, and again for each half: files that a kill may leave behind alone. What was made is there each time.

  Args:
    made: the folder that the command makes.
    halves: lists of names in it.
  """
  first = call()
  assert first['code'] == 0, first
  names = sorted(path.name for path in made.iterdir())
  for half in (None, *halves):
    for path in made.iterdir() if half is not None else ():
      if path.name not in half:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (made / '.part.svg.7.tmp').write_text('half')  # of a process that was killed
    reply = call()
    assert reply['code'] == 0, (half, reply)
    (made / '.part.svg.7.tmp').unlink()
    assert sorted(path.name for path in made.iterdir()) == names, half
  return first


def test_gemm(server, tmp_path):
  twice(lambda: server('gemm', f'--output={tmp_path}/out', '--sizes=8', '--seconds=0.01'), tmp_path / 'out',
        [[], ['roofline.svg'], ['section.json']])


def test_ladder(server, root, tmp_path):
  call = lambda: server('ladder', f'--config={root}/tiny.py', f'--output={tmp_path}/out', '--orders=1')
  first = twice(call, tmp_path / 'out', [[], ['ladder.json'], ['ladder.svg']])
  assert first['out'] == call()['out']


def test_count(server, root, tmp_path):
  call = lambda *more: server('count', f'--config={root}/tiny.py', f'--workdir={tmp_path}/run', '--order=2', *more)
  first = twice(call, tmp_path / 'run', [['config.json', 'tokenizer.json'], ['config.json', 'tokenizer.json', 'ngram']])
  assert 'nats/token' in first['err'] and first['err'].split('nats/token')[1] == call()['err'].split('nats/token')[1]
  other = call('--smoothing=backoff')
  assert other['code'] == 2 and 'whose smoothing is kneser_ney and not backoff' in other['err'], other


def test_evaluate_and_attention(server, root, tmp_path):
  before = digest(root / 'run')
  words = f'--workdir={root}/run', f'--output={tmp_path}/out'
  call = lambda: server('evaluate', *words, '--windows=1')
  twice(call, tmp_path / 'out', [[], ['evaluations.jsonl'], ['loss_by_position.svg']])
  call()
  rows = [json.loads(line) for line in (tmp_path / 'out' / 'evaluations.jsonl').read_text().splitlines()]
  assert len(rows) == 2 and rows[0] == rows[1]  # since the last half, which had none
  words = f'--workdir={root}/run', f'--output={tmp_path}/picture'
  twice(lambda: server('attention', *words, '--text=the fox'), tmp_path / 'picture', [[]])
  assert digest(root / 'run') == before  # a run that is not to be written to stays as it is
  (tmp_path / 'picture' / 'notes.txt').write_text('mine')
  for launcher in ('evaluate', 'attention'):
    reply = server(launcher, *words)
    assert reply['code'] == 2 and 'holds something else' in reply['err'], reply


@pytest.mark.parametrize('launcher, words, full, said', [
    ('evaluate', ('--workdir={root}/run', '--output={here}/out', '--windows=1'),
     'foundation.files:append_rows', 'nats/token'),
    ('ladder', ('--config={root}/tiny.py', '--output={here}/out', '--orders=1'), 'foundation.files:write_json',
     'held-out tokens'),
    ('count', ('--config={root}/tiny.py', '--workdir={here}/out', '--order=2'),
     'framework.baselines.ngram:NGram.save', 'nats/token'),
    ('compress', ('--workdir={root}/run', '--output={here}/packed', '{root}/text.txt'), 'foundation.files:write_new',
     'bits/byte; the cross-entropy'),
    ('gemm', ('--output={here}/out', '--sizes=8', '--seconds=0.01'), 'foundation.files:write_json', 'GFLOP/s')])
def test_a_full_disk_costs_no_result(server, root, tmp_path, launcher, words, full, said):
  reply = server(launcher, *(word.format(root=root, here=tmp_path) for word in words), full=[full, 10, 0])
  assert reply['code'] == 1 and 'File too large' in reply['err'].splitlines()[-1], reply
  assert said in reply['out'] + reply['err']
  assert 'Traceback' not in reply['err']


def test_compress(server, root, tmp_path):
  source, packed, back = tmp_path / 'note.txt', tmp_path / 'note.txt.lemma', tmp_path / 'back.txt'
  source.write_text(TEXT[:300])
  calls = [lambda: server('compress', f'--workdir={root}/run', source),
           lambda: server('compress', f'--workdir={root}/run', '--restore', f'--output={back}', packed)]
  for call, path in zip(calls, (packed, back)):
    first = call()
    assert first['code'] == 0 and call()['out'] == first['out'], first
    whole = path.read_bytes()
    for other in (whole[:-9] + b'another!!', b'', b'mine'):  # never overwritten
      path.write_bytes(other)
      reply = call()
      assert reply['code'] == 2 and 'already exists' in reply['err'], reply
      assert path.read_bytes() == other
    path.write_bytes(whole)
  assert back.read_text() == TEXT[:300]
  packed.unlink()
  packed.symlink_to('nowhere')
  assert calls[0]()['code'] == 2 and not (tmp_path / 'nowhere').exists()


def test_report(server, root, tmp_path):
  call = lambda: server('report', f'--runs={root}/run', f'--output={tmp_path}/out/page.html')
  twice(call, tmp_path / 'out', [[]])


def test_scaling(tmp_path, capsys):
  (tmp_path / 'runs.csv').write_text(text(good()))
  def call(*words):
    code = run('python -m scaling', '', scaling.COMMANDS, [*words, f'--runs={tmp_path}/runs.csv'])
    out, err = capsys.readouterr()
    return {'code': code, 'out': out, 'err': err}
  fit = lambda: call('fit', '--bootstrap=10', '--simulations=0', f'--report={tmp_path}/report')
  twice(fit, tmp_path / 'report', [['envelope.png', 'envelope.svg'], ['index.html']])
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'index.html').write_text('<p>')
  refused = call('fit', f'--report={tmp_path}/mine')
  assert refused['code'] == 2 and 'is not a report' in refused['err'] and os.listdir(tmp_path / 'mine') == ['index.html']
  ledger = ['predict', '--N=1e9', '--D=1e10', '--simulations=0', f'--ledger={tmp_path}/ledger.jsonl', '--name=one']
  first = call(*ledger)
  written = (tmp_path / 'ledger.jsonl').read_text()
  assert first['code'] == 0 and call(*ledger) == first and (tmp_path / 'ledger.jsonl').read_text() == written
  other = call(*ledger, '--level=0.5')
  assert other['code'] == 2 and 'an entry is never rewritten' in other['err']
  assert (tmp_path / 'ledger.jsonl').read_text() == written
