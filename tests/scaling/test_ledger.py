"""A ledger written by many at once, cut short, and predictions of a cell that has run.

Mutations that fail here: the lock left out; a damaged line in the middle that is mended; a rate of the cell that stays
in the fit.
"""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from foundation import command
from foundation.errors import ConfigError
from scaling import __main__ as program
from scaling import laws, ledger
from tests.scaling.test_table import N as SIZES, good, text

ENTRY = dict(N=1e6, D=1e8, loss=2.0, low=1.9, high=2.1, level=0.9, law='additive', objective='huber', runs=20, source='x')


def test_writers_at_once_make_one_chain(tmp_path):
  path = tmp_path / 'ledger.jsonl'
  code = ('import sys; from scaling import ledger; entry = eval(sys.argv[3])\n'
          'for i in range(8): ledger.predict(sys.argv[1], f"{sys.argv[2]} {i}", **entry)')
  jobs = [subprocess.Popen([sys.executable, '-c', code, str(path), str(j), repr(ENTRY)]) for j in range(4)]
  assert [job.wait(60) for job in jobs] == [0] * 4
  assert len(ledger.read(path)) == 32


def test_a_line_that_was_cut_short_is_mended_by_a_word(tmp_path, capsys):
  path = tmp_path / 'ledger.jsonl'
  for name in 'abc':
    ledger.predict(path, name, **ENTRY)
  whole = path.read_text()
  lines = whole.splitlines()
  path.write_text('\n'.join([*lines[:2], lines[2][:40]]) + '\n')
  with pytest.raises(ConfigError, match='line 3: not a JSON record.*--mend takes it out'):
    ledger.read(path)
  words = ('compare', f'--ledger={path}', '--mend')
  assert command.run('python -m scaling', '', program.COMMANDS, words) == 0
  assert 'the last line was cut short' in capsys.readouterr().out
  assert [r['name'] for r in ledger.read(path)] == ['a', 'b']
  assert (tmp_path / 'ledger.jsonl.torn').read_text() == lines[2][:40] + '\n'
  ledger.predict(path, 'c', **ENTRY)
  assert ledger.mend(path) == '' and len(ledger.read(path)) == 3
  path.write_text('\n'.join([lines[0], lines[1][:40], lines[2]]) + '\n')
  assert ledger.mend(path) == ''  # that was no kill
  with pytest.raises(ConfigError, match='line 2: not a JSON record; a ledger is only ever appended to$'):
    ledger.read(path)


def test_a_cell_that_a_rate_sweep_has_run_is_held_back(tmp_path, capsys):
  law = laws.additive()
  theta = law.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})
  noise = np.exp(np.random.default_rng(0).normal(0, 0.003, 20))
  rows = [{**row, 'loss': row['loss'] * e} for row, e in zip(good(), noise)]
  last = rows[-1]
  rows[-1:] = [{**last, 'D': last['D'] * (1 + 1e-3 * i), 'lr': lr, 'C': '', 'loss': 1.3 * last['loss']}
               for i, lr in enumerate((1e-3, 2e-3))]
  (tmp_path / 'runs.csv').write_text(text(rows))
  path = tmp_path / 'ledger.jsonl'
  words = ('predict', f'--runs={tmp_path / "runs.csv"}', f'--N={last["N"]}', f'--D={last["D"]}', '--simulations=0',
           f'--ledger={path}', '--name=held', '--allow=compute')
  assert command.run('python -m scaling', '', program.COMMANDS, words) == 0
  record, = ledger.read(path)
  assert record['seen'] and record['runs'] == 19 and 'of this cell are in the table' in capsys.readouterr().out
  assert record['loss'] == pytest.approx(float(law.loss(theta, SIZES[-1], last['D'])), rel=0.01)  # not 1.3 times that
