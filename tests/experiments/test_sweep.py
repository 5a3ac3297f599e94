"""The whole of a sweep, killed on the way: the same cells, ledger and figures as one that was left alone."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from experiments.sweeping import cells as cells_lib
from experiments.sweeping.cells import expand, trunks
from framework import config as config_lib
from scaling import ledger, lints
from tests.commands import ROOT, environment

SWEEPS = sorted((ROOT / 'experiments' / 'sweeps').glob('[a-z]*.py'))
TINY = '''
from experiments.sweeping.cells import Sweep, over, product
from framework.config import Checkpoint, Config, Data, Evaluation, Model, Optimizer, Training

def get_sweep():
  base = Config(model=Model(layers=1, heads=2), data=Data(task='zipf_pairs:symbols=8', window=24),
                optimizer=Optimizer(name='muon', schedule='wsd', warmup_steps=4, learning_rate=0.01),
                training=Training(batch=4, devices=1, log_every=5), evaluation=Evaluation(windows=64),
                checkpoint=Checkpoint(every_steps=20, at_decay=True))
  return Sweep(base, product(over('model.width', [8, 16, 24]), over('training.steps', [60, 120, 240])), law='tied',
               allow=('few_sizes', 'few_steps', 'short_range'))
'''


@pytest.mark.parametrize('path', SWEEPS, ids=[p.stem for p in SWEEPS])
def test_sweep_files_have_trunks_sizes_and_steps_enough(path):
  cells = expand(cells_lib.load(path))
  assert len({(c.config.model.width, c.config.model.layers) for c in cells}) >= lints.SIZES
  assert min(c.config.training.steps for c in cells) >= lints.STEPS
  assert max(map(len, trunks(cells))) >= 3 and all(c.config.training.devices == 1 for c in cells)


def run(words, **more):
  return subprocess.run([sys.executable, '-m', 'experiments.sweep', *words], cwd=ROOT, capture_output=True, text=True,
                        timeout=600, **more)


@pytest.mark.parametrize('text,words', [
    (None, "did you mean '"),
    ('def get_sweep(): return 3', 'returned int; expected an experiments.sweeping.cells.Sweep'),
    ('import nothing_of_that_name', 'ModuleNotFoundError'),
    (TINY.replace("'few_steps', ", ''), "cell width8_steps60 has 60 steps; expected 200 or more"),
    (TINY.replace('heads=2', 'heads=3'), 'model.heads is 3; expected a divisor'),
    (TINY.replace("'tied'", "'tyed'"), "the sweep's law is 'tyed'; expected one of "),
    (TINY.replace("'tied'", "'bounded'"), 'law bounded needs the uninformed loss'),
    (TINY.replace("'tied'", "'experts'"), "the sweep's law is 'experts', which needs the experts of a run"),
    (TINY.replace("'few_sizes'", "'few_size'"), "allow: 'few_size' is not one of few_sizes, "),
    (TINY.replace("('few_sizes', 'few_steps', 'short_range')", "'few_sizes'"), 
     "expected a list of codes, nearest is ['few_sizes']"),
])
def test_malformed_sweep_files_are_refused_in_one_line(tmp_path, text, words):
  path = tmp_path / 'one.py'
  path.write_text(TINY)
  if text is None:
    path = tmp_path / 'two.py'
  else:
    path.write_text(text)
  with pytest.raises(config_lib.ConfigError) as error:
    cells_lib.check(cells_lib.load(path), expand(cells_lib.load(path)))
  assert words in str(error.value) and '\n' not in str(error.value)


def test_help_has_an_example_and_an_unknown_cell_its_nearest(tmp_path):
  (tmp_path / 'tiny.py').write_text(TINY)
  assert 'Example:' in run(['--help']).stdout
  found = run([f'--sweep={tmp_path}/tiny.py', f'--workdir={tmp_path}/w', '--cells=width8_step60'])
  assert found.returncode == 2 and "did you mean 'width8_steps60'" in found.stderr and found.stderr.count('\n') == 1


def whole(path, workdir):
  return [sys.executable, '-m', 'experiments.sweep', f'--sweep={path}', f'--workdir={workdir}', '--workers=2']


@pytest.mark.slow
def test_a_sweep_that_is_killed_ends_as_one_that_is_not(tmp_path):
  path = tmp_path / 'tiny.py'
  path.write_text(TINY)
  done = subprocess.run(whole(path, tmp_path / 'calm'), cwd=ROOT, env=environment(), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  rng, ended = random.Random(0), {}
  finished = lambda: sorted((tmp_path / 'killed' / 'cells').glob('*/result.json'))
  for cells in (1, 4, 8, 10):  # kills in the first cells, in the middle and in the largest, which is the ninth
    process = subprocess.Popen(whole(path, tmp_path / 'killed'), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(finished()) < cells:
      time.sleep(0.02)
    time.sleep(rng.uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == (0 if cells == 10 else -signal.SIGKILL), errors
    for file in finished():
      assert ended.setdefault(file, file.stat().st_mtime_ns) == file.stat().st_mtime_ns  # no finished cell runs again
  for cell in (tmp_path / 'calm' / 'cells').iterdir():
    if cell.is_dir():
      other = tmp_path / 'killed' / 'cells' / cell.name
      assert (cell / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes(), cell.name
      one, two = (json.loads((folder / 'result.json').read_text()) for folder in (cell, other))
      assert {k for k in one if one[k] != two[k]} <= {'seconds', 'manifest', 'digest'}  # of timing and the command
      assert one['manifest']['rows']['metrics.jsonl'] == two['manifest']['rows']['metrics.jsonl']
  calm, killed = (ledger.read(tmp_path / name / 'ledger.jsonl') for name in ('calm', 'killed'))
  assert [r['kind'] for r in killed] == ['prediction', 'measurement'] and killed[0]['name'] == 'width24_steps240'
  assert [r.get('loss', r.get('measured')) for r in calm] == [r.get('loss', r.get('measured')) for r in killed]
  assert killed[0]['written'] < killed[1]['written'] and (tmp_path / 'killed' / 'report' / 'index.html').exists()


@pytest.mark.parametrize('code', ['few_sizes', 'short_range'])
def test_what_the_fit_would_refuse_is_refused_before_a_cell_runs(tmp_path, code, server):
  """A cell writes below cells/; none has begun."""
  (tmp_path / 'tiny.py').write_text(TINY.replace(f"'{code}', ", '').replace(f", '{code}'", ''))
  reply = server('sweep', f'--sweep={tmp_path}/tiny.py', f'--workdir={tmp_path}/w', timeout=120)
  assert reply['code'] == 2 and f'the cells but the largest: {code}: ' in reply['err'].splitlines()[-1], reply
  assert not (tmp_path / 'w' / 'cells').exists()
