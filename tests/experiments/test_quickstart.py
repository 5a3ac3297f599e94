"""The walk through five formulas: its plan, its page, and what it refuses. The walk itself is a slow test."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments.reports import chapters
from foundation import page
from framework.config import ConfigError
from scaling import ledger
from tests.commands import ROOT, environment, launch
from tests.experiments.test_report import make_run, text_of


def modules(words):
  return ROOT / (words.replace('.', '/') + '.py') if '.' in words else ROOT / words / '__main__.py'


def test_every_step_is_a_command_that_exists(tmp_path):
  code = ('import json, pathlib\nfrom experiments import quickstart\n'
          'print(json.dumps([s.words for s in quickstart.plan(pathlib.Path("root"), list(quickstart.PARTS))]))')
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
  steps = json.loads(out)
  assert len(steps) >= 10
  for module, *words in steps:
    assert modules(module).is_file(), module
    for value in (word.partition('=')[2] for word in words):
      assert not value.startswith('experiments/') or (ROOT / value).is_file(), value


@pytest.mark.parametrize('arguments,expected', [
    (['--parts=gemn'], "--parts has 'gemn'; expected some of .* \\(did you mean 'gemm'"),
    (['--parts=perplexity'], "without 'attention'"), ([], 'not empty and holds no walk .found notes.txt')])
def test_mistakes_are_refused(tmp_path, arguments, expected):
  (tmp_path / 'notes.txt').write_text('mine')
  done = launch('quickstart', f'--workdir={tmp_path}', *arguments)
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert re.search(expected, done.stderr), done.stderr
  assert [p.name for p in tmp_path.iterdir()] == ['notes.txt']


def test_two_parts_resume_and_show_a_page(tmp_path):
  arguments = (f'--workdir={tmp_path / "walk"}', '--parts=gemm,rasp')
  first = launch('quickstart', *arguments)
  assert first.returncode == 0, first.stderr
  assert '1 of 3: measuring the roofline' in first.stdout and '== done: ' in first.stdout
  page = (tmp_path / 'walk' / 'report.html').read_text()
  assert '3. GEMM' in page and '5. RASP' in page and '00001028' in page and 'from rasp/adder.svg' in page
  made = (tmp_path / 'walk' / 'gemm' / 'section.json').stat().st_mtime_ns
  again = launch('quickstart', *arguments)
  assert again.returncode == 0 and 'measuring' not in again.stdout
  assert (tmp_path / 'walk' / 'gemm' / 'section.json').stat().st_mtime_ns == made


@pytest.mark.parametrize('bits,expected', [
    (1.0, 'less than the best that counts .6-gram, 2.000. and less than the best that compresses .xz, 1.500.'),
    (1.75, 'less than the best that counts .6-gram, 2.000. and no less than the best that compresses .xz, 1.500.'),
    (2.5, 'no less than the best that counts .6-gram, 2.000. and no less than the best that compresses .xz, 1.500.')])
def test_the_chapter_of_the_ladder_says_whom_the_decoder_beats(tmp_path, bits, expected):
  rows = [{'name': name, 'kind': kind, 'bits_per_byte': value, 'bits_per_token': value, 'targets': 1000}
          for name, kind, value in (('6-gram', 'counts', 2.0), ('bigram', 'counts', 3.0), ('xz', 'compressor', 1.5),
                                    ('decoder', 'network', bits))]
  (tmp_path / 'ladder.json').write_text(json.dumps({'rows': rows}))
  (tmp_path / 'ladder.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
  _, section = chapters.perplexity(tmp_path, tmp_path)
  assert re.search(f'1,000 held-out tokens the decoder needs {bits:.3f} bits a byte, {expected}', section.blocks[0])


def test_the_chapter_of_the_sweep_has_the_law_the_prediction_and_what_came(tmp_path):
  sweep = tmp_path / 'sweep'
  make_run(sweep / 'cells' / 'width16', 1e-2, 2.0)
  (sweep / 'report').mkdir()
  (sweep / 'report' / 'law.json').write_text(json.dumps({
      'law': 'additive', 'formula': 'E + A/N^alpha', 'values': {'E': 1.25, 'alpha': 0.34}, 'errors': {}, 'runs': 15,
      'rms_percent': 0.71}))
  (sweep / 'law.txt').write_text('law additive, and all its doubts')
  ledger.predict(sweep / 'ledger.jsonl', 'width64', N=1.5e5, D=5e5, loss=1.7, low=1.6, high=1.8, level=0.9,
                 law='additive', objective='huber 0', runs=14, source='sweep')
  with pytest.raises(ConfigError, match='no prediction with its measurement'):
    chapters.chinchilla(sweep, tmp_path)
  ledger.measure(sweep / 'ledger.jsonl', 'width64', 1.85)
  clause, section = chapters.chinchilla(sweep, tmp_path)
  text = text_of(page.render('walk', clause, [section]))
  for words in ('a law of 14 small runs said 1.700 nats of a larger one and 1.850 came',
                '150,000 parameters and 500,000', 'between 1.600 and 1.800. It ended at 1.850, outside of that',
                'loss = E + A/N^alpha', 'alpha = 0.34', 'and all its doubts',
                'from sweep/ledger.jsonl', 'from sweep/law.txt'):
    assert words in text, words


@pytest.mark.slow
def test_killed_three_times_the_walk_ends_with_a_whole_page(tmp_path):
  rng = random.Random(os.environ.get('LEMMA_SEED', '0'))
  workdir = f'--workdir={tmp_path / "walk"}'
  for _ in range(3):
    process = subprocess.Popen([sys.executable, '-m', 'experiments.quickstart', workdir], cwd=ROOT, env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(rng.uniform(20, 120))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  done = launch('quickstart', workdir, timeout=3600)
  assert done.returncode == 0, done.stderr[-2000:]
  page = (tmp_path / 'walk' / 'report.html').read_text()
  for title in ('1. Perplexity', '2. Attention', '3. GEMM', '4. Chinchilla', '5. RASP', 'Thinking in text'):
    assert title in page
  start = time.monotonic()
  assert launch('quickstart', workdir).returncode == 0
  assert time.monotonic() - start < 30  # a finished walk is only shown
  # The decoder is the first thing trained, so at least one kill met it.
  alone = launch('train', '--config=experiments/configs/quickstart.py', f'--workdir={tmp_path / "alone"}', timeout=3600)
  assert alone.returncode == 0, alone.stderr[-2000:]
  assert ((tmp_path / 'alone' / 'metrics.jsonl').read_bytes()
          == (tmp_path / 'walk' / 'decoder' / 'metrics.jsonl').read_bytes())
