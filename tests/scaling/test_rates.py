"""Rate and batch optima of a sweep whose laws are known.

Mutations that fail here: an optimum at an edge that enters a law; a quadratic without its mixed term.
"""

import dataclasses

import numpy as np
import pytest

from foundation import command
from foundation.errors import ConfigError
from scaling import __main__ as program
from scaling import laws, rates, table
from scaling.fit import fit
from scaling.objective import Loss
from tests.scaling.test_table import text

LAW = laws.additive()
THETA = LAW.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})


def best(N, D):
  return 77.7 * N ** -0.5 * D ** 0.1, 0.58 * D ** 0.57


def sweep(seed=0, noise=1e-3, steps=5, cut=(), reach=2.0, curve=0.02):
  """Cells of 6 sizes and 3 token counts at 5 rates and 5 batches, whose valley is a quadratic with a mixed term."""
  rng, rows = np.random.default_rng(seed), []
  for N in np.geomspace(1e7, 2e9, 6):
    for D in np.geomspace(1e9, 5e10, 3):
      rate, batch = best(N, D)
      for i in np.arange(steps) - steps // 2:
        for j in np.arange(steps) - steps // 2:
          lr, size = (2.0 ** np.round(np.log2(v)) * reach ** k for v, k in ((rate, i), (batch, j)))
          if (i, round(np.log10(N), 2)) in cut:
            continue
          u, v = np.log(lr / rate), np.log(size / batch)
          loss = float(LAW.loss(THETA, N, D)) * np.exp(curve * (u * u - 0.8 * u * v + 0.7 * v * v) + rng.normal(0, noise))
          rows.append({'N': N, 'D': D * (1 + 1e-4 * i), 'peak_lr': lr, 'batch_tokens': size, 'loss': loss})
  return rows


def load(tmp_path, rows):
  (tmp_path / 'runs.csv').write_text(text(rows))
  return table.read(tmp_path / 'runs.csv')


def test_optima_laws_and_the_loss_at_them(tmp_path):
  found, left = rates.optima(load(tmp_path, sweep()))
  assert len(found) == 18 and not left and not any(item.edge for item in found)
  held = 0
  for item in found:
    for name, true in zip(('lr', 'batch'), best(item.N, item.D)):
      assert item.setting[name] == pytest.approx(true, rel=0.25)
      held += item.low[name] <= true <= item.high[name]
  assert held >= 0.75 * 36
  powers, reasons = rates.laws(found)
  assert not reasons
  for power, true in ((powers['lr'], (77.7, -0.5, 0.1)), (powers['batch'], (0.58, 0.57))):
    np.testing.assert_allclose(power.values[1:], true[1:], atol=0.03)
    assert (power.low[1:] <= true[1:]).all() and (power.high[1:] >= true[1:]).all()
  o = rates.observations(found)
  np.testing.assert_allclose(o.loss, LAW.loss(THETA, o.N, o.D), rtol=2e-3)
  assert fit(o, loss=Loss('squares')).values['E'] == pytest.approx(1.7, abs=0.05)
  value, low, high = powers['lr'].at(N=1e10, D=2e11)
  assert low < best(1e10, 2e11)[0] < high and value == pytest.approx(best(1e10, 2e11)[0], rel=0.2)


def test_an_exact_valley_is_found_exactly(tmp_path):
  found, _ = rates.optima(load(tmp_path, sweep(noise=0.0)))
  for item in found:
    for name, true in zip(('lr', 'batch'), best(item.N, item.D)):
      assert item.setting[name] == pytest.approx(true, rel=2e-3)  # D itself wobbles by 1e-4
    assert item.loss == pytest.approx(float(LAW.loss(THETA, item.N, item.D)), rel=1e-3)


def test_an_optimum_at_an_edge_is_said_and_left_out(tmp_path):
  runs = load(tmp_path, sweep(noise=1e-4, cut={(0, 7.0), (1, 7.0), (2, 7.0), (-0, 7.0)}, steps=7))
  found, _ = rates.optima(runs)
  edges = [item for item in found if item.edge]
  assert {round(np.log10(item.N), 2) for item in edges} <= {7.0} and len(rates.observations(found)) == 18 - len(edges)
  few = load(tmp_path, [row for row in sweep(noise=1e-4) if row['peak_lr'] < 0.6 * best(row['N'], row['D'])[0]
                        or row['N'] > 2e7])
  found, _ = rates.optima(few)
  edges = [item for item in found if item.edge.get('lr')]
  for item in edges:
    assert item.edge['lr'] > 0.5 * best(item.N, item.D)[0]
  added = rates.next_cells(few)
  assert len(added) == len([item for item in found if item.edge]) and all(cell['lr'] > 0 for cell in added)


def test_one_axis_alone(tmp_path):
  rows = [row for row in sweep(noise=1e-4) if abs(np.log(row['batch_tokens'] / best(row['N'], row['D'])[1])) < 0.35]
  runs = load(tmp_path, [{k: v for k, v in row.items() if k != 'batch_tokens'} for row in rows])
  found, _ = rates.optima(runs)
  powers, _ = rates.laws(found)
  assert set(powers) == {'lr'} and powers['lr'].values[1] == pytest.approx(-0.5, abs=0.05)
  settings = rates.settings(runs, 1e10, 2e11)
  assert set(settings) == {'lr'} and settings['lr'] == pytest.approx(best(1e10, 2e11)[0], rel=0.3)


def test_a_flat_law_of_scipys(tmp_path):
  """The line through the optima is scipy's least squares."""
  from scipy import optimize
  found, _ = rates.optima(load(tmp_path, sweep(seed=3)))
  power = rates.law('batch', found, ('D',))
  fitted = optimize.curve_fit(lambda d, a, b: a + b * d, np.log([i.D for i in found]),
                              np.log([i.setting['batch'] for i in found]))[0]
  np.testing.assert_allclose(power.values, fitted, rtol=1e-6)


def test_what_is_no_sweep_is_refused(tmp_path):
  with pytest.raises(ConfigError, match='expected a column lr or batch'):
    rates.optima(load(tmp_path, [{'N': 1e8, 'D': 1e9, 'loss': 3.0}]))
  with pytest.raises(ConfigError, match='no cell has a valley to find'):
    rates.optima(load(tmp_path, [{'N': 1e8, 'D': 1e9, 'loss': 3.0, 'lr': lr} for lr in (1e-3, 2e-3)]))
  found, _ = rates.optima(load(tmp_path, sweep()))
  with pytest.raises(ConfigError, match='rise together'):
    rates.law('lr', [dataclasses.replace(item, D=20 * item.N) for item in found], ('N', 'D'))
  with pytest.raises(ConfigError, match='0 cells have a best lr inside'):
    rates.law('lr', [dataclasses.replace(item, edge={'lr': 1.0}) for item in found], ('N', 'D'))
  with pytest.raises(ConfigError, match='2 cells have a best lr'):
    rates.law('lr', found[:2], ('N', 'D'))


def test_the_command(tmp_path, capsys):
  load(tmp_path, sweep())
  words = ('rates', f'--runs={tmp_path / "runs.csv"}', '--N=1e10', '--D=2e11')
  assert command.run('python -m scaling', '', program.COMMANDS, words) == 0
  said = capsys.readouterr().out
  assert 'lr* = ' in said and 'batch* = ' in said and 'lr* at N=1e+10' in said and 'the loss at the optima' in said
