"""The report page: what is on it, where it comes from, and what it refuses. A browser's view is in tests/peers."""

import json
import re

import pytest

from experiments.reports import runs as folders
from experiments.reports import sections
from foundation import page
from framework.config import ConfigError

SVG = '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><text>four &lt; five</text></svg>'


def make_run(folder, rate, loss, done=True):
  folder.mkdir(parents=True)
  settings = {'model.layers': 2, 'optimizer.learning_rate': rate, 'training.steps': 20, 'data.path': ''}
  (folder / 'config.json').write_text(json.dumps({
      'config': settings, 'corpus': 'abc', 'git_commit': 'f00', 'command': ['train', '--config=<b>.py'],
      'versions': {'jax': '0.10.2'}, 'xla_flags': ''}))
  rows = [{'step': s, 'tokens': 100 * s, 'loss': loss + 1 / s} for s in (5, 10, 15)]
  rows[-1]['validation_loss'] = loss
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  if done:
    (folder / 'result.json').write_text(json.dumps({
        'bits_per_byte': 1.4427 * loss, 'loss_nats_per_token': loss, 'params_total': 467072, 'tokens': 2000,
        'epochs': 0.5, 'flops_train_exact': 1.35e16, 'seconds': 61.5, 'devices': '2 x cpu', 'status': 'complete',
        'loss_by_position': [3.0, None, 2.5]}))


def make_study(folder):
  folder.mkdir(parents=True)
  (folder / 'verdict.json').write_text(json.dumps({
      'claim': 'rollouts help', 'verdict': 'holds', 'numbers': {'tiered': {'seed 0': 0.998}, 'chance': 0.2}}))
  (folder / 'accuracy.svg').write_text(SVG)


@pytest.fixture
def runs(tmp_path):
  make_run(tmp_path / 'runs' / 'slow', 1e-4, 3.0)
  make_run(tmp_path / 'runs' / 'fast', 1e-2, 2.0)
  make_run(tmp_path / 'runs' / 'deep' / 'half', 1e-3, 2.5, done=False)
  make_study(tmp_path / 'runs' / 'word_problem')
  return tmp_path / 'runs'


def text_of(html):
  return re.sub(r'\s+', ' ', re.sub(r'<(style|script)>.*?</\1>|<[^>]+>', ' ', html, flags=re.S))


def test_page_holds_every_run_and_study(runs):
  html = sections.write([runs], runs / 'report.html', 'Everything').read_text()
  text = text_of(html)
  assert 'Best of 2 runs: fast with 2.885 bits/byte on held-out text after 2,000 tokens (467,072 parameters)' in text
  assert '1 of 3 runs without a result yet' in text and 'step 15 of 20' in text
  assert '1 study: 1 holds' in text and 'Claim: rollouts help' in text and 'tiered seed 0' in text
  assert 'from word_problem/accuracy.svg' in text and 'from deep/half/config.json' in text
  assert html.count('<img ') == 3  # losses, positions, the study's
  # The column of a setting in which runs differ, and none of those they share.
  head = re.search('<h2>Runs.*?</thead>', html, re.S).group()
  assert 'optimizer.learning_rate' in head and 'model.layers' not in head


def test_nothing_is_loaded_from_elsewhere_and_text_is_escaped(runs):
  html = sections.write([runs], runs / 'report.html', '<script>alert(1)</script>').read_text()
  assert not re.search(r'(src|href)="(?!data:|#)', html) and '@import' not in html and 'url(' not in html
  assert '<script>alert' not in html and '--config=&lt;b&gt;.py' in html


def test_one_run_needs_no_table_of_differences(runs):
  html = sections.write([runs / 'fast'], runs / 'fast' / 'report.html', 'fast').read_text()
  head = html[html.index('<thead>'):html.index('</thead>')]
  assert 'optimizer.learning_rate' not in head and 'fast: 2.885 bits/byte' in text_of(html)


def test_a_section_of_another_program(tmp_path):
  (tmp_path / 'gemm').mkdir()
  (tmp_path / 'gemm' / 'roofline.svg').write_text(SVG)
  (tmp_path / 'gemm' / 'section.json').write_text(json.dumps({
      'title': 'GEMM', 'paragraphs': ['54 reads'], 'tables': [{'columns': ['m', 'reads'], 'rows': [[3, 54]]}],
      'figures': [{'file': 'roofline.svg', 'caption': 'the roof'}]}))
  html = sections.write([tmp_path], tmp_path / 'report.html', 'parts').read_text()
  assert '54 reads' in html and 'data-v="54.0"' in html and 'the roof' in html and 'from gemm/roofline.svg' in html


@pytest.mark.parametrize('name,content,expected', [
    ('section.json', '{"paragraphs": ["no title"]}', 'expected title'),
    ('section.json', '{"title": "x", "figures": [{"file": "gone.svg", "caption": "x"}]}', 'gone.svg'),
    ('section.json', '[]', 'expected a JSON object'), ('verdict.json', '{"claim": ', 'cannot be read'),
    ('config.json', '{}', 'expected the config.json of a run')])
def test_damaged_files_are_named(tmp_path, name, content, expected):
  (tmp_path / 'part').mkdir()
  (tmp_path / 'part' / name).write_text(content)
  with pytest.raises(ConfigError, match=expected) as caught:
    sections.write([tmp_path], tmp_path / 'report.html', 'x')
  assert name in str(caught.value) and '\n' not in str(caught.value) and not (tmp_path / 'report.html').exists()


def test_a_file_of_the_users_is_never_overwritten(runs):
  mine = runs / 'mine.html'
  mine.write_text('<p>my notes')
  with pytest.raises(ConfigError, match='is not a report'):
    sections.write([runs], mine, 'x')
  assert mine.read_text() == '<p>my notes'
  ours = sections.write([runs], runs / 'report.html', 'one')
  assert '<h1>two</h1>' in sections.write([runs], ours, 'two').read_text()


def test_folders_without_runs_are_refused(runs):
  (runs / 'empty').mkdir()
  with pytest.raises(ConfigError, match='nothing below .*empty'):
    folders.find([runs / 'empty'])
  with pytest.raises(ConfigError, match="did you mean '.*/fast'"):
    folders.find([runs / 'fats'])


def test_runs_inside_a_study_are_its_own(runs):
  make_run(runs / 'word_problem' / 'cells' / 'plain', 1e-3, 1.0)
  assert [f.name for f in folders.find([runs])] == ['half', 'fast', 'slow', 'word_problem']
  assert [run['name'] for run in folders.collect([runs / 'word_problem' / 'cells', runs / 'fast'])] == [
      'word_problem/cells/plain', 'fast']


@pytest.mark.parametrize('value,shown', [
    (467072, '467,072'), (0.0003, '0.0003'), (1.35e16, '1.3500e+16'), (2.0231, '2.0231'), (61.5, '61.5'), (0, '0'),
    (None, ''), (True, 'True'), ('a', 'a'), (float('nan'), 'nan'), (3e-5, '3.0000e-05'), (-2.5, '-2.5'),
    (12345678.5, '1.2346e+07')])
def test_numbers(value, shown):
  assert page.number(value) == shown
