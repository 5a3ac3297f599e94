"""One C, with the convention of its table, through plans, predictions, comparisons and the ledger.

Mutations that fail here: a 6 in any of these places; a served token at 2 N beside a trained one at k N.
"""

import csv
import re

import numpy as np
import pytest

from foundation import command
from foundation.errors import ConfigError
from scaling import __main__ as program
from scaling import approaches, laws, ledger, plan, plot, table, uncertainty
from scaling.fit import fit
from scaling.objective import Loss
from scaling.observations import Observations
from tests.scaling.test_table import good, text

K = 13.2  # 2.2 times the usual


@pytest.fixture
def slices():
  """Budgets of a law, each C = 13.2 N D, without noise."""
  law = laws.additive()
  theta = law.coordinates({'E': 1.69, 'A': 406.4, 'B': 410.7, 'alpha': 0.34, 'beta': 0.34})
  C = np.geomspace(1e18, 1e21, 7)
  n = np.exp(laws.allocation(law, theta, C, K)[0])[:, None] * np.geomspace(1 / 8, 8, 15)
  d = C[:, None] / K / n
  return law, theta, Observations.of(n.ravel(), d.ravel(), law.loss(theta, n, d).ravel(), np.repeat(C, 15))


def call(capsys, *words):
  assert command.run('python -m scaling', '', program.COMMANDS, words) == 0
  return capsys.readouterr().out


def test_plans_cost_what_they_may(slices):
  law, theta, o = slices
  result = fit(o, loss=Loss('squares'))
  assert o.convention.k == pytest.approx(K) and str(o.convention) == 'C = 13.2 N D'
  best = plan.compute_optimal(result, 1e22)
  assert K * best.N * best.D == pytest.approx(1e22)
  sizes = np.geomspace(best.N / 50, best.N * 50, 2001)
  assert best.loss == pytest.approx(law.loss(theta, sizes, 1e22 / K / sizes).min(), rel=1e-6)
  again, saved = plan.inference_aware(result, best.loss)
  assert again.C == pytest.approx(1e22, rel=1e-4) and saved == pytest.approx(0, abs=1e-9)
  served, _ = plan.inference_aware(result, best.loss, prefill=1e12)
  assert served.cost == pytest.approx(K * served.N * served.D + K / 3 * served.N * 1e12)
  N, D = result.optimum(1e22)
  assert K * N * D == pytest.approx(1e22)
  assert all(sum(p.cost for p in plan.next_runs(result, 1e22, 1e21)) <= 1e21 for _ in (0,))
  assert plan.next_runs(result, 1e22, 1e21)[0].cost == pytest.approx(K * np.prod([(p := plan.next_runs(
      result, 1e22, 1e21)[0]).N, p.D]))
  assert uncertainty.regret(law, theta, 1e22, float(N), k=K)[0] == pytest.approx(0, abs=1e-9)


def test_approaches_agree_on_one_size(slices):
  law, theta, o = slices
  true = float(np.exp(laws.allocation(law, theta, 1e20, K)[0]))
  found, left = approaches.side_by_side(o, Loss('squares'), ('additive',))
  assert not left and [item.approach[0] for item in found] == ['1', '2', '2', '3']
  for item, near in zip(found, (0.25, 0.02, 0.001, 0.001)):
    assert item.n_opt(1e20) == pytest.approx(true, rel=near), item.approach
    np.testing.assert_allclose(K * item.N * item.D, item.C, rtol=1e-6)


def test_figures_use_the_tables_compute(slices):
  _, _, o = slices
  result = fit(o, loss=Loss('squares'))
  for chart in (plot.envelope(o, result), plot.isoflops(o, result), plot.contours(o, result)):
    for row in chart.rows:
      record = dict(zip(chart.header, row))
      if record['series'] in ('law', 'frontier') and 'D' in record and record['series'] == 'law':
        assert K * record['N'] * record['D'] == pytest.approx(record['C'])
      elif record['series'] in ('law', 'grid'):
        assert record['loss'] == pytest.approx(float(result.predict(record['N'], record['C'] / K / record['N'])))


def test_commands_and_the_ledger_say_the_convention(tmp_path, capsys, slices):
  _, _, o = slices
  with (tmp_path / 'runs.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('N', 'D', 'C', 'loss'), *zip(o.N, o.D, o.C, o.loss)])
  runs, book = [f'--runs={tmp_path / "runs.csv"}', '--loss=squares'], tmp_path / 'ledger.jsonl'
  said = call(capsys, 'plan', *runs, '--budget=1e22')
  N, D = (float(re.search(rf'^{name} (\S+) ', said, re.M)[1]) for name in 'ND')
  assert K * N * D == pytest.approx(1e22, rel=1e-3) and 'FLOPs, C = 13.2 N D' in said
  said = call(capsys, 'predict', *runs, f'--N={N}', f'--D={D}', '--simulations=0', f'--ledger={book}', '--name=next')
  assert f'{1e22 / o.C.max():.3g} times the largest compute fitted (C = 13.2 N D)' in said
  record, = ledger.read(book)
  assert record['k'] == pytest.approx(K) and record['C'] == pytest.approx(1e22, rel=1e-3)


def test_an_empty_cell_of_compute_is_filled_by_the_tables_own_convention(tmp_path):
  rows = [{**row, 'C': '' if i == 3 else K * row['N'] * row['D']} for i, row in enumerate(good())]
  (tmp_path / 'a.csv').write_text(text(rows))
  o = table.read(tmp_path / 'a.csv').observe()
  np.testing.assert_allclose(o.C, K * o.N * o.D)


def test_unique_tokens_are_refused_by_a_law_without_repetition(tmp_path, capsys):
  (tmp_path / 'a.csv').write_text(text(good()))
  words = ('predict', f'--runs={tmp_path / "a.csv"}', '--N=1e9', '--D=1e12', '--U=1e9')
  assert command.run('python -m scaling', '', program.COMMANDS, words) == 2
  assert '--U=1e+09: law additive knows no repetition; fit --law=repeated' in capsys.readouterr().err
  with pytest.raises(ConfigError, match='knows no repetition'):
    uncertainty.loss_at(laws.additive(), 1e9, 1e12, U=1e9)
