"""Every notebook runs from its first cell to its last, which shows a picture; without Jupyter."""

import ast
import json

import pytest

from tests.commands import ROOT

NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def run_cell(source, names):
  """The value of a cell's last expression, as a notebook shows it; None if it ends with a statement."""
  tree = ast.parse(source)
  last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
  exec(compile(tree, 'cell', 'exec'), names)
  return eval(compile(ast.Expression(last.value), 'cell', 'eval'), names) if last else None


def test_there_is_one_a_formula():
  assert [path.stem for path in NOTEBOOKS] == ['attention', 'chinchilla', 'gemm', 'perplexity', 'rasp']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_ends_with_a_picture(path, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  monkeypatch.setattr('tempfile.tempdir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  notebook = json.loads(path.read_text(encoding='utf-8'))
  assert notebook['nbformat'] == 4
  cells = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
  assert len(cells) <= 7 and not any(cell['outputs'] for cell in cells)
  names, shown = {'__name__': '__main__'}, None
  for cell in cells:
    shown = run_cell(''.join(cell['source']), names)
  svg = shown._repr_svg_()
  assert svg.startswith('<?xml') and svg.count('<path') > 5
  assert 'nan' not in capsys.readouterr().out


def test_runs_from_python(tmp_path):
  """What the notebooks call, on a run that is opened again and goes on."""
  from framework import runs
  from framework.config import Config, ConfigError, Data, Evaluation, Model, Optimizer, Training
  (tmp_path / 'a.txt').write_text('the cat and the hat, ' * 60)
  config = Config(data=Data(path=str(tmp_path / 'a.txt'), cache=str(tmp_path / 'cache'), window=16),
                  model=Model(layers=1, width=16, heads=2), optimizer=Optimizer(warmup_steps=1, schedule='constant'),
                  training=Training(steps=4, batch=4, log_every=2, devices=1), evaluation=Evaluation(windows=4))
  run = runs.train(config, tmp_path / 'run')
  assert [row['step'] for row in run.rows] == [2, 4] and run.result['status'] == 'complete'
  assert run.evaluate(windows=4)['nats_per_token'] == run.result['loss_nats_per_token']
  other = run.evaluate('another text')
  assert (other['targets'], other['bytes']) == (13, 12)
  text = run.sample('the', tokens=5)
  assert text.startswith('the') and text == runs.open(tmp_path / 'run').sample('the', tokens=5)
  weights, tokens = run.attention('the cat')
  assert weights.shape == (1, 2, 8, 8) and tokens == ['∅', *'the cat']
  config.training.steps = 6  # a run is a beginning
  assert runs.train(config, tmp_path / 'run').load().step == 6 and run.load(4).step == 4 and run.load().step == 6
  with pytest.raises(ConfigError, match='holds no run'):
    runs.open(tmp_path)
  with pytest.raises(ConfigError, match='the text is empty'):
    run.attention('')
