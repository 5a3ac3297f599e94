"""The largest cell is predicted before it has run, compared after it, and neither entry is ever written again."""

import json

import numpy as np
import pytest

from experiments.sweeping import forecast
from framework.config import Data
from scaling import laws, ledger
from scaling.table import TableError

TRUTH = {'E': 0.85, 'A': 56.0, 'B': 83.0, 'alpha': 0.35, 'beta': 0.37}


def write(folder, n, d, loss):
  name = f'{n:g}-{d:g}'
  path = folder / 'cells' / name
  path.mkdir(parents=True)
  (path / 'result.json').write_text(json.dumps({
      'run': name, 'params_total': n, 'params_embedding': 4000, 'params_head': 0, 'tokens': d, 'steps': d // 1024,
      'flops_train_exact': 7.0 * n * d, 'lr': 0.01, 'schedule': 'wsd', 'loss_nats_per_token': loss,
      'loss_by_position': [loss, loss], 'status': 'complete'}))
  return name


@pytest.fixture
def sweep(tmp_path):
  """19 cells with noise of .2 %, and the name, size and loss of the one that is still to run."""
  law, rng = laws.additive(), np.random.default_rng(3)
  theta = law.coordinates(TRUTH)
  for n in (10000, 33000, 95000, 164000, 467000):
    for d in (250000, 500000, 1000000, 2000000):
      loss = float(law.loss(theta, n, d) * np.exp(0.002 * rng.normal()))
      if (n, d) == (467000, 2000000):
        return tmp_path, n, d, loss
      write(tmp_path, n, d, loss)


def test_predicted_before_and_compared_after(sweep):
  folder, n, d, loss = sweep
  first = forecast.predict(folder, 'largest', n, d, '', ())
  assert first['kind'] == 'prediction' and first['runs'] == 19 and not first['seen']
  assert first['low'] < first['loss'] < first['high'] and abs(first['loss'] / loss - 1) < 0.01
  with pytest.raises(OSError):
    forecast.measure(folder, 'largest')  # it has not run
  (folder / 'cells' / write(folder, n, d, loss)).rename(folder / 'cells' / 'largest')
  assert forecast.predict(folder, 'largest', n, d, 'tied', ()) == first  # also by another law: it stays
  measured = forecast.measure(folder, 'largest')
  assert measured['measured'] == loss and measured['inside'] == (first['low'] <= loss <= first['high'])
  assert forecast.measure(folder, 'largest') == measured and len(ledger.read(folder / forecast.LEDGER)) == 2
  line, = forecast.compared(folder)
  assert f'measured {loss:.4f}' in line and f"predicted {first['loss']:.4f}" in line


def test_the_report_of_a_finished_sweep(sweep):
  folder, n, d, loss = sweep
  write(folder, n, d, loss)
  text, page = forecast.conclude(folder, 'additive', (), Data(task='zipf_pairs'))
  assert 'the entropy of zipf_pairs is 1.45259 nats per token: E 0.8' in text  # which these runs were not made from
  assert 'runs 20 of cells' in text and text.startswith('law additive') and 'simulated coverage' in text
  assert page.exists() and {p.suffix for p in page.parent.iterdir()} == {'.html', '.svg', '.png', '.csv', '.json'}
  law = json.loads((page.parent / 'law.json').read_text())
  assert law['law'] == 'additive' and law['runs'] == 20 and f"E {law['values']['E']:.5g} " in text


def test_the_law_is_chosen_by_prediction(sweep):
  folder, *_ = sweep
  o, _ = forecast.observations(folder / 'cells', ())
  scores = {name: forecast.holdout(o, laws.law(name), forecast.LOSS, cuts=forecast.thin(o)).score
            for name in forecast.LAWS}
  assert forecast.choose(o, '').law.name == min(scores, key=scores.get)
  assert forecast.choose(o, 'kaplan').law.name == 'kaplan'


def test_an_unfit_table_is_refused(sweep):
  folder, *_ = sweep
  for path in (folder / 'cells').glob('467000-*'):
    (path / 'result.json').unlink()
  with pytest.raises(TableError, match='few_sizes'):
    forecast.predict(folder, 'largest', 467000, 2000000, '', ())
  assert forecast.predict(folder, 'largest', 467000, 2000000, '', ('few_sizes',))['runs'] == 16
