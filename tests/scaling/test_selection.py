"""The best run of each cell, over rates and batches under any of their names.

Mutations that fail here: cells of exactly equal D; a choice over the rate alone.
"""

import numpy as np
import pytest

from scaling import lints, table
from scaling.fit import fit
from scaling.objective import Loss
from tests.scaling.test_table import good, text

RATES, BATCHES = (1e-3, 2e-3, 4e-3), (2 ** 17, 2 ** 18, 2 ** 19)


def swept(rate='lr', batch='batch_size', wobble=0.0):
  """The sound table at nine settings a cell, of which the middle one is the law's."""
  rng = np.random.default_rng(0)
  return [{**{k: v for k, v in row.items() if k != 'lr'}, 'D': row['D'] * (1 + wobble * rng.uniform(-1, 1)), 'C': '',
           rate: lr, batch: size, 'loss': row['loss'] * (1 + 0.02 * abs(i - 1) + 0.05 * abs(j - 1))}
          for row in good() for i, lr in enumerate(RATES) for j, size in enumerate(BATCHES)]


def load(tmp_path, rows):
  (tmp_path / 'runs.csv').write_text(text(rows))
  return table.read(tmp_path / 'runs.csv')


@pytest.mark.parametrize('rate', ['lr', 'learning_rate', 'peak_lr', 'max_lr', 'config/learning_rate'])
@pytest.mark.parametrize('batch', ['batch_tokens', 'batch_size'])
def test_the_law_is_fitted_to_the_best_of_each_cell(tmp_path, rate, batch):
  o, findings = lints.selected(load(tmp_path, swept(rate, batch, 1e-4)))
  assert len(o) == 20 and not [f for f in findings if f.code == 'seeds']
  said = next(f for f in findings if f.code == 'selected')
  assert 'of 180 runs 20 have the best lr and batch' in said.message and '160 are not' in said.message
  result = fit(o, loss=Loss('squares'))
  assert result.values['E'] == pytest.approx(1.7, abs=1e-3) and result.values['beta'] == pytest.approx(0.36, abs=1e-3)


def test_a_best_run_without_a_rate_stays(tmp_path):
  rows = swept()
  best = [i for i, row in enumerate(rows) if row['lr'] == 2e-3 and row['batch_size'] == 2 ** 18]
  for i, rate in zip(best[:3], ('', 'nan', '')):
    rows[i]['lr'] = rate
  o, findings = lints.selected(load(tmp_path, rows))
  assert len(o) == 20
  np.testing.assert_allclose(o.loss, [row['loss'] for row in good()])
  assert '3 of the best have no lr or batch' in next(f for f in findings if f.code == 'selected').message


def test_seeds_of_the_best_setting_stay_and_unique_tokens_are_cells(tmp_path):
  rows = [{**row, 'seed': seed, 'loss': row['loss'] * (1 + 1e-4 * seed)} for row in swept() for seed in (0, 1)]
  assert len(table.best_rate(load(tmp_path, rows))) == 40
  rows = [{**row, 'U': unique, 'loss': row['loss'] * (1 + 1e-3 * (unique < 1e9))} for row in swept()
          for unique in (1e8, 1e10)]
  assert len(table.best_rate(load(tmp_path, rows))) == 40


def test_edges_are_found_in_joined_cells(tmp_path):
  rows = [row for row in swept('peak_lr', wobble=1e-3) if row['peak_lr'] <= 2e-3 or row['N'] > 2e7] + [
      {**row, 'peak_lr': 5e-4, 'loss': 2 * row['loss']} for row in swept('peak_lr') if row['N'] < 2e7 and row['peak_lr'] == 1e-3]
  found = {f.code: f for f in lints.lint(load(tmp_path, rows))}
  assert found['rate_edge'].refuses and 'at the edge of the sweep [0.0005, 0.002]' in found['rate_edge'].message
