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

from tests.experiments.test_launchers import ROOT, launch


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


@pytest.mark.slow
def test_killed_three_times_the_walk_ends_with_a_whole_page(tmp_path):
  rng = random.Random(os.environ.get('LEMMA_SEED', '0'))
  command = [sys.executable, '-m', 'experiments.quickstart', f'--workdir={tmp_path / "walk"}']
  for _ in range(3):
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    time.sleep(rng.uniform(20, 120))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
  assert done.returncode == 0, done.stderr[-2000:]
  page = (tmp_path / 'walk' / 'report.html').read_text()
  for title in ('1. Perplexity', '2. Attention', '3. GEMM', '4. Chinchilla', '5. RASP', 'Thinking in text'):
    assert title in page
  start = time.monotonic()
  assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
  assert time.monotonic() - start < 30  # a finished walk is only shown
