"""The largest cell is predicted before it has run, compared after it, and neither entry is ever written again."""

import json

import numpy as np
import pytest

from experiments.sweeping import forecast
from experiments.sweeping.cells import Cell
from framework import config as config_lib
from framework.config import ConfigError, Data
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


def cell(name, C=1.0, rate=0.01):
  config = config_lib.Config(optimizer=config_lib.Optimizer(learning_rate=rate))
  return Cell(name, config, whole_cost=C)


def grid(sizes, tokens, ratio=6.0):
  """Cells of every size and number of tokens, and {name: (N, D)}."""
  pairs = {f'{n:g}-{d:g}': (float(n), float(d)) for n in sizes for d in tokens}
  return [cell(name, ratio * n * d) for name, (n, d) in pairs.items()], pairs


SIZES, TOKENS = (10007, 33011, 95003, 164051, 467009), (250000, 500000, 1000000, 2000000)


@pytest.mark.parametrize('sizes,tokens,law,words', [
    (SIZES, TOKENS, '', ''), (SIZES, TOKENS, 'additive', ''),
    (SIZES[:1] + (40009,), TOKENS[:3], 'additive', 'the cells but the largest: 5 rows cannot determine 5 parameters of'),
    (SIZES[:2], TOKENS[:3], '', 'the cells but the largest: 5 rows cannot determine 5 parameters of the law additive'),
    (SIZES[:3], TOKENS[:3], '', 'the cells but the largest: 8 runs leave no compute below which 8 are fitted'),
    (SIZES[:1], TOKENS, 'tied', 'the cells but the largest: 3 rows cannot determine 4 parameters of the law tied'),
    (SIZES, TOKENS[:1], 'kaplan', 'the cells but the largest: 4 rows cannot determine'),
    (SIZES, (2000, 4000, 8000, 16000), 'additive', 'the cells but the largest: swapped: 18 of 19 rows have fewer tokens'),
    (SIZES[:3], TOKENS, 'tied', 'the cells but the largest: few_sizes: 3 distinct N'),
    (SIZES[:1], TOKENS[:1], 'tied', 'the sweep has one cell'),
])
def test_what_the_table_of_a_sweep_would_be_refused_for_is_known_before_it_runs(sizes, tokens, law, words):
  cells, pairs = grid(sizes, tokens)
  def check():
    forecast.check_design(cells, pairs, cells[-1], law, ())
  if not words:
    return check()
  with pytest.raises(ConfigError) as caught:
    check()
  assert words in str(caught.value)


def test_learning_rates_of_one_cell_are_one_row():
  cells, pairs = grid(SIZES, TOKENS)
  more = [cell(f'{name}-{rate}', 6.0 * n * d, rate) for name, (n, d) in pairs.items() for rate in (0.02, 0.03)]
  pairs |= {c.name: pairs[c.name.rpartition('-')[0]] for c in more}
  forecast.check_design(cells[-1:] + cells[:-1] + more, pairs, cells[-1], '', ())
  few = [c for c in cells[:3] + more if pairs[c.name] in [pairs[o.name] for o in cells[:3]]]
  assert len(few) == 9
  with pytest.raises(ConfigError, match='the cells but the largest: 3 rows cannot determine 4 parameters'):
    forecast.check_design([*few, cells[-1]], pairs, cells[-1], 'tied', ())


def test_flops_that_no_run_of_this_size_costs_are_known_before_it_runs():
  cells, pairs = grid(SIZES, TOKENS, ratio=36.0)
  with pytest.raises(ConfigError, match=r'compute: C/\(6ND\) is 6'):
    forecast.check_design(cells, pairs, cells[-1], 'tied', ())
  forecast.check_design(cells, pairs, cells[-1], 'tied', ('compute',))
