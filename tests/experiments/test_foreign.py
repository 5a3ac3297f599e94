"""Folders from somebody else: every wrong value in valid JSON is a page or one line, and nothing outside is read."""

import copy
import json
import os
import re

import pytest

from experiments import study as study_lib
from experiments.reports import chapters, figures
from experiments.reports import live
from experiments.reports import sections
from experiments.shared import pipeline
from experiments.sweeping import forecast, workers
from foundation import figures as style
from foundation import page
from foundation.errors import ConfigError
from scaling import ledger, table
from tests.experiments.test_report import SVG, make_run, make_study, text_of

WRONG = ('null', '"a $x$ text"', '-1', '1e999', '[]', '{}', '[[[null]]]', '1' + 280 * '0', 'true')


def changed(value, change=()):
  """(path, the value with what lies there replaced by a mark) for every place in a JSON value, the whole first."""
  yield change, '\0'
  for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
    for path, new in changed(inner, (*change, key)):
      other = copy.copy(value)
      other[key] = new
      yield path, other


def without(value, place):
  """The value, in which nothing lies at the place any more."""
  inner = value
  for key in place[:-1]:
    inner = inner[key]
  del inner[place[-1]]
  return value


def mutants(path):
  """Writes each wrong value to each place of a file of JSON, or of the last line of one of rows; yields what it is."""
  whole = path.read_text()
  *before, last = whole.splitlines(keepends=True) if path.suffix == '.jsonl' else [whole]
  for place, value in changed(json.loads(last)):
    for wrong in WRONG:
      path.write_text(''.join(before) + json.dumps(value).replace('"\\u0000"', wrong) + '\n')
      yield f'{path.name} {place}: {wrong[:20]}'
    if place:
      path.write_text(''.join(before) + json.dumps(without(json.loads(last), place)) + '\n')
      yield f'{path.name} without {place}'
  path.write_text(whole)


def holds(what, call):
  """Whether the call gave something; a ConfigError of one line is as good, and says what it is about."""
  try:
    call()
    return True
  except ConfigError as error:
    assert '\n' not in str(error) and len(str(error)) < 1000, what
  except Exception as error:
    raise AssertionError(f'{what}: {type(error).__name__}: {error}') from error
  return False


@pytest.fixture
def place(tmp_path):
  make_run(tmp_path / 'good', 1e-3, 2.0)
  make_run(tmp_path / 'bad', 1e-2, 3.0)
  (tmp_path / 'bad' / 'timing.jsonl').write_text('{"step": 15, "seconds": 3.0, "eta_seconds": 6.0}\n')
  (tmp_path / 'bad' / 'evaluations.jsonl').write_text('{"step": 15, "split": "validation", "bits_per_byte": 3.0}\n')
  make_study(tmp_path / 'study')
  (tmp_path / 'gemm').mkdir()
  (tmp_path / 'gemm' / 'roof.svg').write_text(SVG)
  (tmp_path / 'gemm' / 'section.json').write_text(json.dumps({
      'title': 'GEMM', 'paragraphs': ['54 reads'], 'tables': [{'columns': ['n', 'x', 'GFLOP/s'], 'rows': [[1, 2, 3]]}],
      'figures': [{'file': 'roof.svg', 'caption': 'the roof'}]}))
  return tmp_path


@pytest.fixture
def drawn_once(monkeypatch):
  """Figures of the same numbers are drawn once."""
  def once(function):
    made = {}
    def call(value):
      key = repr(value)
      if key not in made:
        made[key] = function(value)
      return made[key]
    return call
  for module, name in ((style, 'svg'), (figures, 'losses'), (figures, 'positions')):
    monkeypatch.setattr(module, name, once(getattr(module, name)))


@pytest.mark.parametrize('name', ['config.json', 'result.json', 'metrics.jsonl', 'timing.jsonl', 'evaluations.jsonl'])
def test_a_wrong_value_of_a_run_is_a_page_or_a_line(place, name, drawn_once):
  roots, shown = [place / 'good', place / 'bad'], 0
  for what in mutants(place / 'bad' / name):
    words, parts, wrong = sections.contents(roots, place)
    page.render('all', words, parts)
    overview = next(part for part in parts if part.title.startswith('Run'))
    assert 'good' in str(overview.blocks[0].rows), what  # whatever the other is, this one is there
    assert len(wrong) <= 1 and all(f'bad/{name}' in line and '\n' not in line for line in wrong), what
    assert 'good' in live.table(roots, 0.0), what
    if name == 'result.json':
      holds(what, lambda: table.read(place).observe())
    workers.finished(place / 'bad'), workers.newest(place / 'bad')
    shown += not wrong
  assert shown  # some keys may hold anything


@pytest.mark.parametrize('name', ['study/verdict.json', 'gemm/section.json'])
def test_a_wrong_value_of_a_section_is_a_page_or_a_line(place, name):
  shown = 0
  for what in mutants(place / name):
    words, parts, wrong = sections.contents([place / 'study', place / 'gemm'], place)
    assert len(parts) == 2 and page.render('all', words, parts), what  # the other one, and this or why it is not there
    assert len(wrong) <= 1 and all(name in line and '\n' not in line for line in wrong), what
    shown += not wrong
  assert shown


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def walk(tmp_path):
  """A finished quickstart, as far as its page reads it."""
  for name in ('ladder/ladder.svg', 'decoder/loss.svg', 'decoder/attention.svg', 'decoder/loss_by_position.svg',
               'gemm/roof.svg', 'sweep/report/residuals.svg', 'rasp/adder.svg', 'word_problem/figure.svg'):
    write(tmp_path / name, SVG)
  write(tmp_path / 'ladder' / 'ladder.json', {'rows': [
      {'name': kind, 'kind': kind, 'bits_per_byte': 2.0, 'bits_per_token': 2.0, 'targets': 9}
      for kind in ('counts', 'compressor', 'network')]})
  write(tmp_path / 'decoder' / 'result.json', {'params_total': 9, 'tokens': 9, 'seconds': 1.0, 'bits_per_byte': 2.0})
  write(tmp_path / 'decoder' / 'config.json', {'versions': {'jax': '1'}, 'git_commit': ''})
  write(tmp_path / 'decoder' / 'evaluations.jsonl', '{"step": 1, "window": 8}\n')
  write(tmp_path / 'gemm' / 'section.json', {
      'title': 'GEMM',
      'tables': [{'columns': ['a'], 'rows': [[1]]}, {'columns': ['n', 'x', 'y'], 'rows': [[1, 2, 3]]}]})
  write(tmp_path / 'sweep' / 'report' / 'law.json', {
      'formula': 'E', 'values': {'E': 1.0}, 'errors': {'E': float('inf')}, 'runs': 4, 'rms_percent': 1.0})
  make_run(tmp_path / 'sweep' / 'cells' / 'one', 1e-3, 2.0)
  book = tmp_path / 'sweep' / 'ledger.jsonl'
  ledger.predict(book, 'one', N=1e6, D=1e7, loss=2.0, low=1.9, high=2.1, level=0.9, law='tied', objective='huber 0',
                 runs=4, source='cells')
  ledger.measure(book, 'one', 2.05)
  for name in ('sweep/law.txt', 'rasp/adder.txt', 'decoder/sample.txt'):
    write(tmp_path / name, 'what was printed\n')
  write(tmp_path / 'word_problem' / 'verdict.json', {'numbers': {'rollouts': [1.0], 'decoder': [0.2]}})
  write(tmp_path / 'steps.json', {'train': 3.0})
  return tmp_path


CHAPTERS = {
    'ladder/ladder.json': lambda root: chapters.perplexity(root / 'ladder', root),
    'decoder/result.json': lambda root: chapters.attention(root / 'decoder', root),
    'decoder/evaluations.jsonl': lambda root: chapters.attention(root / 'decoder', root),
    'decoder/config.json': lambda root: ('', chapters.made(root, [])),
    'gemm/section.json': lambda root: chapters.gemm(root / 'gemm', root),
    'sweep/report/law.json': lambda root: chapters.chinchilla(root / 'sweep', root),
    'word_problem/verdict.json': lambda root: chapters.thinking(root / 'word_problem', root),
    'steps.json': lambda root: ('', chapters.made(root, [pipeline.Step('train', ('train',), 1.0)]))}


@pytest.mark.parametrize('name', CHAPTERS)
def test_a_wrong_value_of_a_chapter_is_a_page_or_a_line(walk, name):
  def call():
    clause, section = CHAPTERS[name](walk)
    assert page.render('all', clause, [section])
  assert holds(name, call)
  kept = [holds(what, call) for what in mutants(walk / name)]
  assert not all(kept) or name.endswith('evaluations.jsonl')


def test_a_wrong_value_of_a_list_of_steps_or_a_part_of_a_study_is_a_line(walk):
  assert pipeline.read_done(walk / 'steps.json') == {'train': 3.0}
  assert not any(holds(what, lambda: pipeline.read_done(walk / 'steps.json')) for what in mutants(walk / 'steps.json')
                 if '{}' not in what and not what.endswith('-1') and 'without' not in what)
  part = walk / 'part.json'
  write(part, {'setting': {'study': 'one', 'scale': 'cpu'}, 'numbers': {'accuracy': 1.0}, 'seconds': 2.0})
  assert study_lib.read_part(part, {'study': 'one', 'scale': 'cpu'})['seconds'] == 2.0
  for what in mutants(part):
    holds(what, lambda: study_lib.read_part(part, {'study': 'one', 'scale': 'cpu'}))


def test_a_wrong_value_of_a_ledger_with_the_right_digest_is_a_line(tmp_path):
  book = tmp_path / 'ledger.jsonl'
  ledger.predict(book, 'one', N=1e6, D=1e7, loss=2.0, low=1.9, high=2.1, level=0.9, law='tied', objective='huber 0',
                 runs=4, source='cells')
  whole, refused = json.loads(book.read_text()), 0
  for place, value in changed({k: v for k, v in whole.items() if k not in ('before', 'digest')}):
    for wrong in WRONG if place else ():
      body = json.loads(json.dumps(value | {'before': ''}).replace('"\\u0000"', wrong))
      body['digest'] = ledger._digest(json.dumps(body, sort_keys=True))
      book.write_text(json.dumps(body, sort_keys=True) + '\n')
      refused += not holds(f'{place} {wrong}', lambda: forecast.compared(tmp_path))
  assert refused > 60


def test_one_bad_result_of_many_is_named_and_hides_no_other(tmp_path, caplog):
  for n in range(20):
    make_run(tmp_path / f'{n:02d}', 1e-3 * (n + 1), 2.0)
  (tmp_path / '07' / 'result.json').write_text('{"bits_per_byte": "low"}')
  html = sections.write([tmp_path], tmp_path / 'report.html', 'many').read_text()
  assert 'Best of 19 runs' in html and '1 folder left out, which could not be read' in html
  assert "07/result.json: bits_per_byte is &#x27;low&#x27;; expected a finite number" in html
  assert [record.getMessage().count('07/result.json') for record in caplog.records] == [1]
  shown = live.table([tmp_path], 0.0).splitlines()
  assert len(shown) == 1 + 19 + 1 and shown[-1].startswith('left out: ') and '07/result.json' in shown[-1]


def test_nothing_outside_a_folder_is_read_and_no_pipe_is_waited_for(place, tmp_path_factory):
  secret = tmp_path_factory.mktemp('home') / 'secret.svg'
  secret.write_text('<svg>the secret</svg>')
  section = json.loads((place / 'gemm' / 'section.json').read_text())
  for n, name in enumerate([str(secret), os.path.relpath(secret, place / 'gemm'), 'link.svg', 'pipe.svg', 'null.svg']):
    folder = place / f'section{n}'
    folder.mkdir()
    (folder / 'link.svg').symlink_to(secret)
    (folder / 'null.svg').symlink_to('/dev/zero')
    os.mkfifo(folder / 'pipe.svg')
    section['figures'][0]['file'] = name
    (folder / 'section.json').write_text(json.dumps(section))
  for name, target in (('linked', secret), ('metrics', secret)):
    make_run(place / name, 1e-3, 2.0)
    path = place / name / ('result.json' if name == 'linked' else 'metrics.jsonl')
    path.unlink()
    path.symlink_to(target)
  (place / 'study' / 'other.svg').symlink_to(secret)
  for name in ('result.json', 'timing.jsonl'):
    make_run(place / f'pipe {name}', 1e-3, 2.0, done=False)
    os.mkfifo(place / f'pipe {name}' / name)
  _, _, wrong = sections.contents([place], place)
  html = sections.render([place], place, 'all')
  assert len(wrong) == 10 and 'the secret' not in html and 'dGhlIHNlY3JldD' not in html
  assert sum('leaves its folder' in line for line in wrong) == 7 and sum('no regular' in line for line in wrong) == 3
  assert not workers.finished(place / 'pipe result.json') and workers.newest(place / 'pipe timing.jsonl') == {}


def test_names_and_texts_are_harmless(tmp_path):
  bad = tmp_path / '$\\frac{$ \x1b[31m\u202edne\n<b>'
  make_run(bad, 1e-2, 3.0)
  make_run(tmp_path / 'good', 1e-3, 2.0)
  result = json.loads((bad / 'result.json').read_text())
  (bad / 'result.json').write_text(json.dumps(result | {'status': '\x1b]0;owned\x07\n' + 'x' * 5000}))
  shown = live.table([tmp_path], 0.0)
  assert re.fullmatch(r'[^\x00-\x09\x0b-\x1f\x7f\u202e]*', shown) and len(shown.splitlines()) == 3
  assert r'$\frac{$ \x1b[31m\u202edne\n<b>' in shown and max(map(len, shown.splitlines())) < 300
  html = sections.render([tmp_path], tmp_path, 'names')
  assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f\u202e]', html)
  assert r'\x1b[31m\u202edne' in text_of(html) and '<b>' not in html
