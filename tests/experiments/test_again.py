"""Every command that writes, twice, and where a kill left half of it; results are printed before they are written."""

import json

import pytest

from foundation import page
from foundation.command import run
from foundation.errors import ConfigError
from scaling import __main__ as scaling
from scaling import ledger, report
from tests.experiments.test_malformed import CONFIG, TEXT, digest


@pytest.fixture(scope='module')
def root(server, tmp_path_factory):
  """A folder with a text, a config, and a finished run on them."""
  root = tmp_path_factory.mktemp('again')
  (root / 'text.txt').write_text(TEXT)
  (root / 'tiny.py').write_text(CONFIG.format(text=str(root / 'text.txt'), cache=str(root / 'cache')))
  reply = server('train', f'--config={root}/tiny.py', f'--workdir={root}/run')
  assert reply['code'] == 0, reply
  return root


def twice(call, made, *left):
  """Calls where a kill has left files of these names, half, in the folder that is made; and again. Both must work."""
  made.mkdir(exist_ok=True)
  for name in (*left, '.part.svg.7.tmp'):
    (made / name).write_text('half')
  first, names = call(), sorted(path.name for path in made.iterdir())
  again = call()
  assert first['code'] == again['code'] == 0, (first, again)
  assert sorted(path.name for path in made.iterdir()) == names
  return first


def test_gemm(server, tmp_path):
  twice(lambda: server('gemm', f'--output={tmp_path}/out', '--sizes=8', '--seconds=0.01'), tmp_path / 'out',
        'roofline.svg')


def test_ladder(server, root, tmp_path):
  call = lambda: server('ladder', f'--config={root}/tiny.py', f'--output={tmp_path}/out', '--orders=1')
  first = twice(call, tmp_path / 'out', 'ladder.svg')
  assert 'held-out tokens' in first['out']


def test_count(server, root, tmp_path):
  call = lambda *more: server('count', f'--config={root}/tiny.py', f'--workdir={tmp_path}/run', '--order=2', *more)
  said = twice(call, tmp_path / 'run')['err'].split('nats/token')[1]
  (tmp_path / 'run' / 'evaluations.jsonl').unlink()  # killed before it was written
  assert call()['err'].split('nats/token')[1] == said and (tmp_path / 'run' / 'evaluations.jsonl').exists()
  other = call('--smoothing=backoff')
  assert other['code'] == 2 and 'whose smoothing is kneser_ney and not backoff' in other['err'], other


def test_evaluate_and_attention(server, root, tmp_path):
  before = digest(root / 'run')
  words = f'--workdir={root}/run', f'--output={tmp_path}/out'
  call = lambda: server('evaluate', *words, '--windows=1')
  twice(call, tmp_path / 'out', 'loss_by_position.svg')
  rows = [json.loads(line) for line in (tmp_path / 'out' / 'evaluations.jsonl').read_text().splitlines()]
  assert len(rows) == 2 and rows[0] == rows[1]
  words = f'--workdir={root}/run', f'--output={tmp_path}/picture'
  twice(lambda: server('attention', *words, '--text=the fox'), tmp_path / 'picture')
  assert digest(root / 'run') == before  # a run that is not to be written to stays as it is
  (tmp_path / 'picture' / 'notes.txt').write_text('mine')
  for launcher in ('evaluate', 'attention'):
    reply = server(launcher, *words)
    assert reply['code'] == 2 and 'holds something else' in reply['err'], reply


@pytest.mark.parametrize('launcher, words, full, said', [
    ('evaluate', ('--workdir={root}/run', '--output={here}/out', '--windows=1'),
     'foundation.files:append_rows', 'nats/token'),
    ('ladder', ('--config={root}/tiny.py', '--output={here}/out', '--orders=1'), 'foundation.files:write_sealed',
     'held-out tokens'),
    ('count', ('--config={root}/tiny.py', '--workdir={here}/out', '--order=2'),
     'framework.baselines.ladder:scored', 'nats/token'),
    ('compress', ('--workdir={root}/run', '--output={here}/packed', '{root}/text.txt'), 'foundation.files:write_new',
     'bits/byte; the cross-entropy'),
    ('gemm', ('--output={here}/out', '--sizes=8', '--seconds=0.01'), 'foundation.files:write_sealed', 'GFLOP/s')])
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
    for other in (whole[:-1] + b'!', b'mine'):  # never overwritten
      path.write_bytes(other)
      reply = call()
      assert reply['code'] == 2 and 'already exists' in reply['err'], reply
      assert path.read_bytes() == other
    assert reply['touched']['compiled'] == 0  # what cannot be the result is refused at once
    path.write_bytes(whole)
  assert back.read_text() == TEXT[:300]
  packed.unlink()
  packed.symlink_to('nowhere')
  assert calls[0]()['code'] == 2 and not (tmp_path / 'nowhere').exists()


def test_report(server, root, tmp_path):
  call = lambda: server('report', f'--runs={root}/run', f'--output={tmp_path}/out/page.html')
  twice(call, tmp_path / 'out')


def test_scaling(tmp_path, capsys):
  report.check_folder('--report', tmp_path / 'report')
  for held in ('envelope.png', 'index.html'):
    (tmp_path / 'report').mkdir(exist_ok=True)
    (tmp_path / 'report' / held).write_text(page.render('x', 'y', []))
    report.check_folder('--report', tmp_path / 'report')
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'index.html').write_text('<p>')
  assert run('python -m scaling', '', scaling.COMMANDS, ['fit', '--runs=no', f'--report={tmp_path}/mine']) == 2
  assert 'mine/index.html exists and is not a report' in capsys.readouterr().err
  book = tmp_path / 'ledger.jsonl'
  entry = dict(N=1e9, D=1e10, loss=2.0, low=1.9, high=2.1, level=0.9, law='tied', objective='huber 0', runs=9,
               source='runs')
  first = [ledger.predict(book, 'one', **entry), ledger.measure(book, 'one', 2.05)]
  written = book.read_text()
  assert [ledger.predict(book, 'one', **entry), ledger.measure(book, 'one', 2.05)] == first
  for call in (lambda: ledger.predict(book, 'one', **entry | {'level': 0.5}), lambda: ledger.measure(book, 'one', 2.0)):
    with pytest.raises(ConfigError, match='never rewritten'):
      call()
  assert book.read_text() == written
