"""Tables that would be fitted without a word: runs off the others, units of a part of the rows, columns that are one.

Mutations that fail here: levels that chain; a line of N and D that is taken for a plane; a surface bent by half the
rows.
"""

import time

import numpy as np
import pytest

from experiments.sweeping import forecast
from foundation import command
from foundation.errors import ConfigError
from framework.config import Data
from scaling import __main__ as program
from scaling import approaches, laws, lints, plan, table, uncertainty
from scaling.fit import fit
from scaling.objective import Loss
from scaling.observations import Observations
from tests.scaling.test_table import each, good, text


def found(tmp_path, content):
  (tmp_path / 'runs.csv').write_text(content)
  return {f.code: f for f in lints.lint(table.read(tmp_path / 'runs.csv'))}


def thirty(change=lambda i, row: row):
  law = laws.additive()
  theta = law.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})
  rng = np.random.default_rng(0)
  rows = [{'N': n, 'D': d, 'loss': float(law.loss(theta, n, d)) * np.exp(rng.normal(0, 0.003))}
          for n in np.geomspace(1.23e7, 1.1e9, 6) for d in np.geomspace(4.1e8, 2.1e10, 5)]
  return text([change(i, row) for i, row in enumerate(rows)])


def test_the_sound_table_of_thirty_is_quiet(tmp_path):
  assert not found(tmp_path, thirty())


def test_diverged_runs_are_named(tmp_path):
  said = found(tmp_path, thirty(lambda i, r: {**r, 'loss': r['loss'] * (1.9 if i in (7, 21) else 1)}))['diverged']
  assert said.message.startswith('line 9, line 23: loss is 1.9')


@pytest.mark.parametrize('rows', [range(0, 30, 2), range(15), (3, 9, 14)])
def test_rows_in_bits_are_named(tmp_path, rows):
  said = found(tmp_path, thirty(lambda i, r: {**r, 'loss': r['loss'] / (np.log(2) if i in rows else 1)}))['mixed_units']
  assert f'line {rows[0] + 2}, line {rows[1] + 2}, line {rows[2] + 2}' in said.message and 'bits' in said.message
  assert said.refuses == (len(rows) == 15)


@pytest.mark.parametrize('name', ['N', 'D'])
def test_a_few_rows_in_billions_are_named(tmp_path, name):
  said = found(tmp_path, thirty(lambda i, r: {**r, name: r[name] / (1e9 if i in (4, 11) else 1)}))['mixed_scale']
  assert said.refuses and said.message.startswith(f'line {6 if r"D" == name else 6}, line 13: {name} is ')


def test_sizes_a_step_apart_are_sizes(tmp_path):
  rows = [{'N': 1e7 * 1.015 ** i, 'D': 1e9 * (1 + 7 * (i % 5)), 'loss': 2 + 3e2 * (1e7 * 1.015 ** i) ** -0.4 + 0.1 / (1 + i % 5)}
          for i in range(300)]
  codes = found(tmp_path, text(rows))
  assert 'few_sizes' not in codes


@pytest.mark.parametrize('ratio', [lambda n: 20 * n, lambda n: 3 * n ** 1.2, lambda n: 20 * n * (1 + 1e-3 * np.cos(n))])
def test_tokens_tied_to_parameters_are_no_law_of_both(ratio):
  law = laws.additive()
  theta = law.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})
  N = np.geomspace(1e7, 1e10, 14)
  o = Observations.of(N, ratio(N), law.loss(theta, N, ratio(N)) * np.exp(np.random.default_rng(0).normal(0, 1e-3, 14)))
  for name in ('additive', 'coupled', 'tied'):
    with pytest.raises(ConfigError, match=r'cannot be told apart.*nearest is a law of one column, size or compute'):
      fit(o, laws.law(name))
  one = fit(o, laws.law('size'), Loss('squares'))
  assert one.accepted and 0.25 < one.values['alpha'] < 0.45
  interval = uncertainty.profile(one, uncertainty.parameter(one.law, 'alpha'))
  assert 0 < interval.low < one.values['alpha'] < interval.high < 1
  assert fit(o, law, fixed={'alpha': 0.34, 'A': 400.0}).accepted  # what is left is a law of one column


def test_an_exponent_out_of_bounds_is_not_accepted():
  rng = np.random.default_rng(1)
  x = np.array(np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e10, 4))).reshape(2, -1)
  result = fit(Observations.of(*x, (2 + 300 * x[0] ** -0.4) * np.exp(rng.normal(0, 1e-3, 24))), loss=Loss('squares'))
  if result.astray:
    assert not result.accepted and 'out of bounds' in ' '.join(result.notes)
  assert fit(Observations.of(*x, (2 + 300 * x[0] ** -0.4 + 2e3 * x[1] ** -0.4))).accepted


def test_one_value_of_a_column_is_refused():
  law = laws.law('experts')
  N, D = np.array(np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e8, 1e10, 4))).reshape(2, -1)
  with pytest.raises(ConfigError, match='all rows have the same K'):
    fit(Observations.of(N, D, 2 + 300 * N ** -0.4 + 2e3 * D ** -0.4, K=np.full(20, 8.0)), law)


def test_a_design_is_not_refused_by_the_lints():
  law = laws.additive()
  theta = law.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})
  N, D = np.array(np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 4e9, 3))).reshape(2, -1)
  o = Observations.of(N, D, law.loss(theta, N, D) * np.exp(np.random.default_rng(0).normal(0, 0.01, 18)))
  bought = plan.next_runs(fit(o, loss=Loss('squares')), 1e21, 1e20, seed_noise=0.01)
  assert bought and all(p.D >= p.N for p in bought)


def test_flags_that_ended_in_tracebacks(tmp_path, capsys):
  (tmp_path / 'runs.csv').write_text(text(good()))
  for words, said in ((('fit', '--fix=E=1'), '--runs is missing'), (('fit', '--bootstrap=-3'), 'expected at least 2'),
                      (('fit', f'--runs={tmp_path / "runs.csv"}', '--fix=E=-1'), 'E=-1'),
                      (('fit', f'--runs={tmp_path / "runs.csv"}', '--fix=E=nan'), 'E=nan'),
                      (('fit', f'--runs={tmp_path / "runs.csv"}', '--level=1'), 'level=1')):
    assert command.run('python -m scaling', '', program.COMMANDS, words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1, error
  result = fit(table.read(tmp_path / 'runs.csv').observe())
  for count in (-3, 0):
    with pytest.raises(ConfigError, match=f'{count} bootstrap draws'):
      uncertainty.bootstrap(result, count)


def test_a_floor_at_its_bound_has_no_standard_error():
  x = np.array(np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e5, 1e7, 4))).reshape(2, -1)
  noise = np.exp(np.random.default_rng(0).normal(0, 1e-3, 20))
  result = fit(Observations.of(*x, 2.0 * x[0] ** -0.1 * noise + 1e-9))
  line, = forecast._known_truth(result, {'E': 0.0}, Data(task='zipf_pairs'))
  assert 'has no standard error' in line and 'nan' not in line and 'inf' not in line


def test_a_hundred_thousand_rows(tmp_path):
  """Read, linted and fitted within a minute; groups of equal compute were a matrix of rows x rows."""
  rng, law = np.random.default_rng(0), laws.additive()
  theta = law.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})
  N, D = 10 ** rng.uniform(7, 10, 100_000), 10 ** rng.uniform(10, 12, 100_000)
  lr = rng.choice([1e-3, 2e-3], 100_000)
  loss = law.loss(theta, N, D) * np.exp(rng.normal(0, 0.01, 100_000))
  path = tmp_path / 'runs.csv'
  path.write_text('N,D,loss,lr\n' + '\n'.join(f'{a:.6g},{b:.6g},{c:.6g},{r}' for a, b, c, r in zip(N, D, loss, lr)))
  begin = time.monotonic()
  o, _ = lints.selected(table.read(path))
  result = fit(o)
  assert result.accepted and result.values['alpha'] == pytest.approx(0.34, abs=0.01) and len(o) > 30_000
  approaches.isoflop(o)
  interval = uncertainty.profile(result, uncertainty.parameter(law, 'beta'))
  assert interval.low < 0.36 < interval.high or interval.high - interval.low < 0.02
  draws = uncertainty.bootstrap(result, 1000)
  assert np.std(draws[:, 3]) == pytest.approx(np.sqrt(result.covariance[3, 3]), rel=0.2)
  assert time.monotonic() - begin < 60
