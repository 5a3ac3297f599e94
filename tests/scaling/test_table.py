"""Malformed tables: each gets one clear line that names the row or value, or a named warning.

`good` is a sound table; each case changes one thing about it. Mutations that fail here: any check removed; a message
without the row; a refusal turned into a warning; `--allow` that allows everything.
"""

import csv
import io
import json

import numpy as np
import pytest

from foundation.errors import ConfigError
from scaling import laws, lints, table
from scaling.observations import Counting

N = [1.2345e7, 3.7182e7, 1.1371e8, 3.2468e8, 9.9713e8]
D = [4.1234e8, 1.3579e9, 3.9182e9, 1.2347e10]
HEADER = ['N', 'D', 'C', 'loss', 'steps', 'schedule', 'lr']


def good():
  law = laws.additive()
  theta = law.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})
  return [{'N': n, 'D': d, 'C': 6 * n * d, 'loss': float(law.loss(theta, n, d)), 'steps': 2000 + i, 'schedule': 'wsd',
           'lr': 1e-3} for i, (n, d) in enumerate((n, d) for n in N for d in D)]


def text(rows, header=None):
  out = io.StringIO()
  writer = csv.DictWriter(out, header or list(rows[0]), extrasaction='ignore')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def each(**changes):
  """A table with columns computed from each row: changes[name](row), None drops the column."""
  rows = good()
  for row in rows:
    new = {name: change(row) for name, change in changes.items() if change}
    row.update(new)
    for name, change in changes.items():
      if change is None:
        del row[name]
  return text(rows)


def one(index, **changes):
  rows = good()
  rows[index].update(changes)
  return text(rows)


def rates(best_at):
  rows = []
  for row in good():
    for i, lr in enumerate((1e-3, 2e-3, 4e-3)):
      rows.append({**row, 'lr': lr, 'loss': row['loss'] + 0.01 * abs(i - best_at)})
  return text(rows)


def isoflop(inside):
  rows = []
  law = laws.additive()
  theta = law.coordinates({'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36})
  for C in (1e18, 1e19, 1e20):
    best = np.exp(laws.allocation(law, theta, C)[0])
    for factor in (0.31, 0.62, 1.03, 2.1, 4.2) if inside else (1.6, 2.9, 5.1, 9.3, 17.0):
      n = best * factor
      d = C / 6 / n
      rows.append({'N': n, 'D': d, 'loss': float(law.loss(theta, n, d))})
  return text(rows)


REFUSED = {
    'empty file': ('', 'the file is empty'),
    'header only': ('N,D,loss\n', 'a header and no rows'),
    'no N': (each(N=None, C=None), "no column 'N'"),
    'no D': (each(D=None, C=None), "no column 'D'"),
    'no loss': (each(loss=None), "no column 'loss'"),
    'misspelt loss': (text([{('los' if k == 'loss' else k): v for k, v in row.items()} for row in good()]),
                      "did you mean 'los'"),
    'column twice': ('N,N,D,loss\n1,1,2,3\n', "'N' appears 2 times"),
    'two columns for N': (
        text([{'params': r['N'], 'parameters': r['N'], 'D': r['D'], 'loss': r['loss']} for r in good()]),
        "both 'params' and 'parameters' could be N"),
    'ragged row': (text(good()).replace(',0.001\r\n', '\r\n', 1), 'line 2: 6 cells; expected 7'),
    'word for a number': (one(3, loss='diverged'), "line 5: loss='diverged' is not a number"),
    'a minus and a suffix': (one(0, N='-M'), "line 2: N='-M' is not a number"),
    'a comma of either kind': (text(good()).replace(',', ';').replace('2000;', '2,000;', 1), "'2,000' is 2.000 or 2000"),
    'unclosed quote': (text(good()).replace('wsd', '"wsd', 1), 'line 2: unexpected end of data'),
    'two unclosed quotes': ('N,D,loss,note\n1e7,1e9,3,"a\n2e7,1e9,3,b\n3e7,1e9,3,c"\n' + '4e7,1e9,3,d\n' * 9,
                            'line 2: a quoted cell goes on to line 4'),
    'quote within a row': (one(3, schedule='x').replace(',x,', ',"ws"d,'), "line 5: ',' expected after"),
    'a cell of megabytes': (one(3, schedule='x' * 200000), 'line 5: field larger than field limit'),
    'NaN loss': (one(2, loss='nan'), 'line 4: loss is missing or NaN'),
    'empty loss': (one(2, loss=''), 'line 4: loss is missing or NaN'),
    'infinite loss': (one(2, loss='inf'), 'line 4: loss=inf'),
    'zero tokens': (one(5, D=0), 'line 7: D=0; expected a positive'),
    'negative loss': (one(1, loss=-2.2), 'line 3: loss=-2.2'),
    'duplicate row': (text(good() + [good()[4]]), 'duplicates: line 22 repeats N, D and loss of line 6'),
    'one size': (text([{**r, 'N': 1e8, 'C': 6e8 * r['D']} for r in good()[:4]]), 'few_sizes: 1 distinct N'),
    'four sizes': (text(good()[:16]), 'few_sizes: 4 distinct N'),
    'two token counts': (text([r for r in good() if r['D'] < 2e9]), 'few_tokens: 2 distinct D'),
    'short range': (each(N=lambda r: r['N'] ** 0.3, D=lambda r: r['D'] ** 0.3 * 1e6, C=None),
                    'short_range: C spans'),
    'log10 N': (each(N=lambda r: np.log10(r['N'])), 'log10_column: N lies in'),
    'log10 D': (each(D=lambda r: np.log10(r['D'])), 'log10_column: D lies in'),
    'natural log N': (each(N=lambda r: np.log(r['N'])), 'natural logarithm'),
    'N in millions': (each(N=lambda r: r['N'] / 1e6), 'say --units=N=millions'),
    'perplexity': (each(loss=lambda r: np.exp(1.5 * r['loss'])), 'perplexity: line'),
    'bits column': (text([{'N': r['N'], 'D': r['D'], 'loss_bits': r['loss'] / np.log(2)} for r in good()]),
                    '--units=loss=bits'),
    'accuracy': (each(loss=lambda r: 1 / r['loss']), 'not_falling: loss rises'),
    'swapped': (each(N=lambda r: r['D'], D=lambda r: r['N']), 'swapped: 19 of 20 rows'),
    'D divided by 6N twice': (each(D=lambda r: r['D'] / (6 * r['N'])),
                              'compute: C/(6ND) is 6N: D was divided by 6N twice'),
    'D divided by 6 twice': (each(D=lambda r: r['D'] / 6), 'compute: C/(6ND) is 6: D was divided by 6 twice'),
    'C without the 6': (each(C=lambda r: r['N'] * r['D']), 'compute: C is N D, without the 6'),
    'C of the forward pass': (each(C=lambda r: 2 * r['N'] * r['D']), 'compute: C is 2ND'),
    'C in PFLOP-days': (each(C=lambda r: r['C'] / 8.64e19), 'C=pflop_days'),
    'few steps': (one(7, steps=40), 'few_steps: line 9'),
    'mixed schedules': (one(7, schedule='cosine'),
                        'mixed_schedules: schedules cosine, wsd in one table, cosine in line 9'),
    'rate at the edge': (rates(2), 'rate_edge: line 4: the best learning rate 0.004'),
    'no interior minimum': (isoflop(False), 'no_interior_minimum: 3 of 3'),
}
assert len(REFUSED) >= 30


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_one_clear_line(name, tmp_path):
  content, words = REFUSED[name]
  path = tmp_path / 'runs.csv'
  path.write_text(content)
  with pytest.raises(ConfigError) as error:
    lints.check(table.read(path))
  assert words in str(error.value)
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


def codes(content, tmp_path, uninformed=None):
  path = tmp_path / 'runs.csv'
  path.write_text(content)
  return {f.code: f for f in lints.lint(table.read(path), uninformed=uninformed)}


@pytest.mark.parametrize('content', [text(good()), rates(1), isoflop(True)], ids=['plain', 'rates', 'isoflop'])
def test_a_sound_table_passes(content, tmp_path):
  assert not [f for f in codes(content, tmp_path).values() if f.refuses]


def test_named_warnings(tmp_path):
  mixed = text([{**r, 'loss': r['loss'] / (np.log(2) if i in (3, 9, 14) else 1)} for i, r in enumerate(good())])
  found = codes(mixed, tmp_path)
  assert 'line 5, line 11, line 16' in found['mixed_units'].message and 'bits' in found['mixed_units'].message
  assert 'seeds' in codes(text(good() + [{**good()[4], 'loss': good()[4]['loss'] * 1.01}]), tmp_path)
  rounded = codes(each(N=lambda r: float(f'{r["N"]:.1e}'), C=None), tmp_path)
  assert not rounded['rounded'].refuses
  assert not codes(each(loss=lambda r: r['loss'] * (1.5 if r['N'] < 2e7 and r['D'] < 5e8 else 1)), tmp_path,
                   uninformed=6.0)['above_uniform'].refuses
  assert codes(each(loss=lambda r: r['loss'] / np.log(2)), tmp_path, uninformed=2.5)['bits'].refuses


def test_only_what_is_allowed_is_allowed(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text(text([{**r, 'steps': 30} for r in good()[:16]]))
  runs = table.read(path)
  with pytest.raises(ConfigError, match='few_steps'):
    lints.check(runs, allow=['few_sizes'])
  observations, findings = lints.check(runs, allow=['few_sizes', 'few_steps'])
  assert len(observations) == 16 and {f.code for f in findings} >= {'few_sizes', 'few_steps'}
  with pytest.raises(ConfigError, match="did you mean 'few_sizes'"):
    lints.check(runs, allow=['few_size'])


def test_units_columns_and_selection(tmp_path):
  path = tmp_path / 'runs.csv'
  rows = [{'params': r['N'] / 1e6, 'logD': np.log10(r['D']), 'c4': r['loss'] / np.log(2),
           'role': 'train' if i else 'held',
           'bad': int(i == 3)} for i, r in enumerate(good())]
  path.write_text(text(rows))
  runs = table.read(path, {'D': 'logD', 'loss': 'c4'}, {'N': 'millions', 'D': 'log10', 'loss': 'bits'})
  o = runs.observe()
  np.testing.assert_allclose(o.N, [r['N'] for r in good()])
  np.testing.assert_allclose(o.D, [r['D'] for r in good()])
  np.testing.assert_allclose(o.loss, [r['loss'] for r in good()])
  np.testing.assert_allclose(o.C, 6 * o.N * o.D)
  assert len(runs.where('role=train')) == 19 and len(runs.exclude('bad')) == 19
  assert len(runs.where('role=train,N<2e7')) == 3 and len(runs.where('bad!=1')) == 19
  for act, words in ((lambda: runs.where('N~3'), "condition 'N~3'"), (lambda: runs.where('N<x'), 'expected a number'),
                     (lambda: runs.where('N<1'), 'no row is left'), (lambda: runs.exclude('bda'), "did you mean 'bad'"),
                     (lambda: table.read(path, {'D': 'logd'}), "did you mean 'logD'"),
                     (lambda: table.read(path, units={'loss': 'nat'}), "did you mean 'nats'"),
                     (lambda: table.read(tmp_path / 'rons.csv'), "did you mean 'runs.csv'"),
                     (lambda: Counting('totl'), "did you mean 'total'"),
                     (lambda: table.parse_assignments('N', '--columns'), 'is not NAME=VALUE')):
    with pytest.raises(ConfigError) as error:
      act()
    assert words in str(error.value)


def test_run_folders_and_counting(tmp_path):
  for i, r in enumerate(good()):
    folder = tmp_path / f'run{i:02d}'
    folder.mkdir()
    status = 'stopped by SIGTERM' if i == 7 else 'complete'
    (folder / 'result.json').write_text(json.dumps({
        'run': folder.name, 'params_total': 1000 + i, 'params_embedding': 300, 'params_head': 200,
        'flops_train_exact': 7.7e3 * (i + 1), 'flops_6nd': 1.0, 'tokens': 5000.0 + i, 'tokens_unique': 4000,
        'loss_nats_per_token': r['loss'], 'loss_by_position': [1.0, 2.0], 'status': status, 'steps': 300}))
  runs = table.read(tmp_path)
  assert len(runs) == 19 and 'unfinished: run run07' in runs.warnings[0]
  for kind, least in (('', 700), ('total', 1000), ('no_input', 700), ('body', 500)):
    assert runs.observe(Counting(kind)).N[0] == least
  np.testing.assert_allclose(runs.observe(Counting('', 'exact')).C[:2], [7700, 15400])
  np.testing.assert_allclose(runs.observe(Counting('total', '6nd')).C[0], 6 * 1000 * 5000)
  assert runs.observe().U[0] == 4000
  assert runs.by_position.shape == (19, 2) and runs.take(slice(3)).by_position.shape == (3, 2)
  with pytest.raises(ConfigError, match="no column 'N'"):
    runs.observe(Counting('given'))
  (tmp_path / 'run03' / 'result.json').write_text('{')
  with pytest.raises(ConfigError, match='run03/result.json is not JSON'):
    table.read(tmp_path)
  (tmp_path / 'run04' / 'result.json').unlink()
  with pytest.raises(ConfigError, match='no result.json'):
    table.read(tmp_path / 'run04')


def written(folder, losses, **more):
  for i, loss in enumerate(losses):
    (folder / f'{i}').mkdir(parents=True)
    (folder / f'{i}' / 'result.json').write_text(json.dumps({
        'params_total': 1000 * (i + 1), 'params_embedding': 300, 'params_head': 0, 'tokens': 1e6,
        'loss_nats_per_token': 2.0, 'loss_by_position': loss, **more}))
  return table.read(folder)


def test_a_tied_embedding_multiplies_and_is_counted(tmp_path):
  runs = written(tmp_path, [[1.0]])
  assert [runs.observe(Counting(kind)).N[0] for kind in ('', 'no_input', 'total', 'body')] == [1000, 1000, 1000, 700]


def test_losses_by_position(tmp_path):
  losses = np.random.default_rng(0).uniform(1, 2, (3, 20))
  runs = written(tmp_path / 'a', [[None, *row] for row in losses])  # no target at the first position
  names, each = runs.grouped_positions()
  assert names == [str(i) for i in range(2, 22)]
  np.testing.assert_array_equal(each, losses)
  names, means = runs.grouped_positions(3)
  assert names == ['2', '3-7', '8-21']  # 22^(1/3) = 2.8, 22^(2/3) = 7.85
  np.testing.assert_allclose(means[:, 1], losses[:, 1:6].mean(1))
  other = written(tmp_path / 'b', [[1.0, 2.0], [1.0]])
  with pytest.raises(ConfigError, match='no loss_by_position of one length'):
    other.grouped_positions()


def test_best_rate_keeps_the_least_loss_of_each_cell(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text(rates(1))
  best = table.best_rate(table.read(path))
  assert len(best) == 20 and set(best.numbers['lr']) == {2e-3}
