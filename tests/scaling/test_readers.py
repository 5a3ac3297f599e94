"""Tables as people have them, and what is taken from them: columns, units, conditions, several files.

Mutations that fail here: a header of a standard name that overwrites a mapping; a prefix that is not taken off; a comma
that is a point where it separates thousands; `or` that binds as `and`.
"""

import gzip
import json

import numpy as np
import pytest

from foundation.errors import ConfigError
from scaling import lints, table
from tests.scaling.test_table import good, text

ROWS = good()


def read(path, content, **how):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return table.read(path, **how)


def same(runs):
  o = runs.observe()
  for name in ('N', 'D', 'loss'):
    np.testing.assert_allclose(getattr(o, name), [row[name] for row in ROWS], rtol=1e-9)


@pytest.mark.parametrize('last', [False, True])
def test_a_mapping_wins_over_a_header_of_the_standard_name(tmp_path, last):
  rows = [{'N_noembed': r['N'], 'D': r['D'], 'loss': r['loss'], 'N': 3 * r['N']} for r in ROWS]
  if not last:
    rows = [dict(reversed(row.items())) for row in rows]
  runs = read(tmp_path / 'a.csv', text(rows), columns={'N': 'N_noembed'})
  same(runs)
  assert any(w.startswith("mapped: the column 'N'") for w in runs.warnings)
  np.testing.assert_allclose(runs.where('N_noembed<2e7').numbers['N'], [r['N'] for r in ROWS if r['N'] < 2e7])
  other = read(tmp_path / 'b.csv', text([{'N': r['N'], 'D': r['D'], 'C': r['loss']} for r in ROWS]), columns={'loss': 'C'})
  np.testing.assert_allclose(other.observe().C, [6 * r['N'] * r['D'] for r in ROWS])  # a loss is no compute


@pytest.mark.parametrize('mark', [',', ';', '\t', '|'])
def test_any_separator(tmp_path, mark):
  same(read(tmp_path / 'a.csv', text(ROWS).replace(',', mark)))


def test_encodings_and_decimal_commas(tmp_path):
  named = text([{**r, 'name': 'größe'} for r in ROWS])
  for encoding in ('utf-8', 'utf-8-sig', 'utf-16', 'latin-1'):
    same(read(tmp_path / 'a.csv', named.encode(encoding)))
  comma = '\n'.join(['N;D;loss', *(f"{r['N']:.0f};{r['D']:.0f};{r['loss']!r}".replace('.', ',') for r in ROWS)])
  same(read(tmp_path / 'b.csv', comma))


def test_gzip_and_json_lines(tmp_path):
  same(read(tmp_path / 'a.csv.gz', gzip.compress(text(ROWS).encode())))
  lines = '\n'.join(json.dumps({'config': {'N': r['N'], 'D': r['D']}, 'summary': {'loss': r['loss']}}) for r in ROWS)
  same(read(tmp_path / 'a.jsonl', lines))
  same(read(tmp_path / 'a.jsonl.gz', gzip.compress(lines.encode())))
  same(read(tmp_path / 'a.json', json.dumps([json.loads(line) for line in lines.split('\n')])))
  with pytest.raises(ConfigError, match='whole gzip file'):
    read(tmp_path / 'b.csv.gz', gzip.compress(text(ROWS).encode())[:-40])
  with pytest.raises(ConfigError, match='line 2: .*expected a JSON object a line'):
    read(tmp_path / 'b.jsonl', '{"N": 1}\n{"N"')


def test_exports_of_trackers(tmp_path):
  same(read(tmp_path / 'w.csv', text([{'Name': f'run {i}', 'config/N': r['N'], 'config/tokens': r['D'],
                                       'summary/loss': r['loss']} for i, r in enumerate(ROWS)])))
  same(read(tmp_path / 'm.csv', text([{'run_id': i, 'params.n_params': r['N'], 'params.tokens': r['D'],
                                       'metrics.val_loss': r['loss']} for i, r in enumerate(ROWS)])))


def test_numbers_with_suffixes_commas_and_units(tmp_path):
  rows = [{'N': f"{r['N'] / 1e6:.6f}M", 'D': f"{r['D']:,.0f}", 'loss': np.exp(r['loss'])} for r in ROWS]
  same(read(tmp_path / 'a.csv', text(rows), units={'loss': 'perplexity'}))
  assert read(tmp_path / 'b.csv', 'N,D,loss\n1.3B,2T,2\n').observe().D[0] == 2e12


def test_two_of_three_and_steps(tmp_path):
  for left_out in ('N', 'D'):
    runs = read(tmp_path / 'a.csv', text([{k: v for k, v in r.items() if k != left_out} for r in ROWS]))
    same(runs)
    assert any(f.code == 'derived' for f in lints.lint(runs))
  rows = [{'N': r['N'], 'steps': r['D'] / 2048, 'batch_size': 8, 'window': 256, 'loss': r['loss']} for r in ROWS]
  same(read(tmp_path / 'b.csv', text(rows)))
  same(read(tmp_path / 'c.csv', text([{**r, 'batch_size': 2048} for r in rows]).replace('batch_size', 'batch_tokens')))


class Frame:
  """What of a pandas DataFrame is read."""

  def __init__(self, rows):
    self.columns, self.index, self.rows = list(rows[0]), range(len(rows)), rows

  def itertuples(self, index, name):
    return (tuple(row.values()) for row in self.rows)


def test_a_data_frame():
  same(table.read(Frame(ROWS)))
  pandas = pytest.importorskip('pandas')
  same(table.read(pandas.DataFrame(ROWS)))


def test_parquet(tmp_path):
  path = tmp_path / 'a.parquet'
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    path.write_bytes(b'PAR1')
    with pytest.raises(ConfigError, match=r'\.\[data\]'):
      table.read(path)
    return
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
  same(table.read(path))


def test_several_tables_are_one(tmp_path):
  parts = [read(tmp_path / 'a.csv', text(ROWS[:8])), read(tmp_path / 'b.csv', text([{**r, 'seed': 3} for r in ROWS[8:]]))]
  runs = table.joined(parts)
  same(runs)
  assert runs.rows[0] == 'a.csv line 2' and runs.rows[8] == 'b.csv line 2'
  assert np.isnan(runs.numbers['seed'][:8]).all() and (runs.numbers['seed'][8:] == 3).all()


@pytest.mark.parametrize('expression, keeps', [
    ('role=train,N<2e7', lambda r, i: i > 0 and r['N'] < 2e7),
    ('N<2e7 or N>9e8', lambda r, i: r['N'] < 2e7 or r['N'] > 9e8),
    ('N<2e7 or N>9e8, D<1e9', lambda r, i: r['N'] < 2e7 or r['N'] > 9e8 and r['D'] < 1e9),
    ('(N<2e7 or N>9e8) and D<1e9', lambda r, i: (r['N'] < 2e7 or r['N'] > 9e8) and r['D'] < 1e9),
    ('not (N<2e7 or N>9e8)', lambda r, i: not (r['N'] < 2e7 or r['N'] > 9e8)),
    ('"summary/x y"=3|4', lambda r, i: i in (3, 4)),
    ("role!='held out'", lambda r, i: i > 0),
    ('rerun=True', lambda r, i: i == 3),
    ('rerun!=1', lambda r, i: i != 3)])
def test_conditions(tmp_path, expression, keeps):
  rows = [{**r, 'role': 'train' if i else 'held out', 'summary/x y': i, 'rerun': i == 3} for i, r in enumerate(ROWS)]
  runs = read(tmp_path / 'a.csv', text(rows))
  kept = runs.where(expression)
  assert list(kept.numbers['loss']) == [r['loss'] for i, r in enumerate(ROWS) if keeps(r, i)]


def test_a_column_of_true_and_false_excludes(tmp_path):
  runs = read(tmp_path / 'a.csv', text([{**r, 'outlier5': i in (2, 5)} for i, r in enumerate(ROWS)]))
  assert len(runs.exclude('outlier5')) == len(ROWS) - 2
  with pytest.raises(ConfigError, match="no column 'outlier'.*did you mean 'outlier5'"):
    runs.exclude('outlier')


@pytest.mark.parametrize('expression, said', [
    ('(N<3', 'a bracket is not closed'), ('N<', 'N< has no value'), ('N<3)', "')' was not expected there"),
    ('schedule<3', "column 'schedule' holds texts"), ('Nn<3', "no column 'Nn'"), ('or', 'is no comparison')])
def test_conditions_that_are_none(tmp_path, expression, said):
  with pytest.raises(ConfigError) as error:
    read(tmp_path / 'a.csv', text(ROWS)).where(expression)
  assert said in str(error.value) and '\n' not in str(error.value)
