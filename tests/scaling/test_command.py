"""The command line as a user meets it, and the files that figures leave.

Mutations that fail here: a printed parameter without its error; an exit of 0 for a refused table; a figure without its
table; a command whose help has no example.
"""

import csv
import dataclasses
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from foundation.errors import ConfigError
from scaling import holdout, laws, plot, report, uncertainty
from scaling.fit import fit
from scaling.objective import Loss
from scaling.observations import Observations

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments):
  return subprocess.run([sys.executable, '-m', 'scaling', *arguments], cwd=ROOT, capture_output=True, text=True,
                        timeout=300)


def test_fit_prints_a_row_a_parameter_and_the_objective(tables):
  done = run('fit', f'--runs={tables / "chinchilla_epoch_245.csv"}', '--exclude=outlier5', '--delta=1e-3',
             '--simulations=40')
  assert done.returncode == 0, done.stderr
  rows = {line.split()[0]: line for line in reversed(done.stdout.splitlines())}  # the first of each name
  for name, value, sd in (('E', 1.8172, 0.025), ('A', 477.8, 117), ('B', 2143, 1276), ('alpha', 0.3473, 0.0146),
                          ('beta', 0.3672, 0.0204)):
    found = re.match(rf'{name} (\S+) ± (\S+) .*90 % \[.*simulated coverage', rows[name])
    assert float(found[1]) == pytest.approx(value, rel=2e-4) and float(found[2]) == pytest.approx(sd, rel=0.12)
  assert float(rows['objective'].split()[1]) <= 1.01828e-3


def test_refusals_are_one_line_and_exit_2(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text('N,D,loss\n1e6,1e8,3\n2e6,1e8,2.9\n')
  for arguments, words in ((['fit', f'--runs={path}'], 'few_sizes'), (['fti'], "did you mean 'fit'"),
                           (['plan', '--report=x'], "not a flag of 'python -m scaling plan', only of fit (did you"),
                           (['fit', '--budget=1'], "only of plan, design (did you mean '--"),
                           (['fit'], '--runs'), (['predict', f'--runs={path}'], 'expected the parameters and tokens'),
                           (['fit', f'--runs={path}', 'x'], "'x' is not a flag")):
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count('\n') == 1 and not done.stdout


@pytest.mark.parametrize('command', ['fit', 'predict', 'plan', 'design', 'compare'])
def test_help_holds_an_example_and_every_flag(command):
  done = run(command, '--help')
  assert done.returncode == 0 and f'  python -m scaling {command} --' in done.stdout
  shown = set(re.findall(r'^  --(\w+):', done.stdout, re.M))
  used = set(re.findall(rf'python -m scaling {command} (.*)', done.stdout)[1:])
  for line in used:
    assert set(re.findall(r'--(\w+)=', line)) <= shown


def test_choices_of_the_flags_are_those_of_the_library():
  from scaling import __main__ as program, objective, observations, plan
  flags = {flag.name: flag for command in program.COMMANDS for flag in command.flags}
  assert flags['loss'].choices == objective.LOSSES and flags['unit'].choices == plan.UNITS
  assert flags['params'].choices == observations.PARAMETER_COUNTS
  assert flags['compute'].choices == observations.COMPUTE_COUNTS
  assert flags['kind'].choices == uncertainty.BOOTSTRAPS
  assert flags['law'].help.startswith(' | '.join(laws.names()))


def test_predict_compare_plan_design_and_report(tmp_path, known):
  _, _, _, o = known
  noise = np.exp(np.random.default_rng(0).normal(0, 0.004, len(o)))
  path, book = tmp_path / 'runs.csv', tmp_path / 'ledger.jsonl'
  with path.open('w', newline='') as file:
    csv.writer(file).writerows([('N', 'D', 'loss'), *zip(o.N, o.D, o.loss * noise)])
  runs = [f'--runs={path}', '--loss=squares']
  done = run('predict', *runs, '--N=1e6', '--D=8e6', f'--ledger={book}', '--name=big', '--simulations=20')
  assert done.returncode == 0 and 'one run, with its noise' in done.stdout, done.stderr
  done = run('compare', f'--ledger={book}', '--name=big', '--measured=1.9')
  assert done.returncode == 0 and 'measured 1.9' in done.stdout
  assert run('compare', f'--ledger={book}', '--name=big', '--measured=1.8').returncode == 2
  done = run('plan', *runs, '--budget=1e14', '--N=1e6')
  assert 'N 1e+06 instead loses' in done.stdout, done.stderr
  assert done.returncode == 0 and re.search(r'^N \S+ parameters$', done.stdout, re.M), done.stderr
  done = run('design', *runs, '--budget=1e13', '--seed_noise=0.003')
  assert done.returncode == 0 and '->' in done.stdout, done.stderr
  done = run('design', *runs, '--budget=1e13', '--K=8')
  assert done.returncode == 2 and 'knows no experts' in done.stderr
  done = run('fit', *runs, f'--report={tmp_path / "report"}', '--simulations=0', '--bootstrap=100')
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'report' / 'index.html').read_text()
  names = re.findall(r'from (\w+)\.csv', page)
  assert names == ['envelope', 'contours', 'optimum', 'holdout', 'residuals']  # no slice of equal compute
  for name in names:
    assert all((tmp_path / 'report' / f'{name}.{kind}').stat().st_size > 10 for kind in ('png', 'svg', 'csv'))
  assert page.count('<figure>') == len(names) and 'src="data:image/svg+xml' in page
  assert page.index('advises') < page.index('<figure>') and 'expects a loss of' in page


def test_the_first_sentence_of_a_page(known):
  _, _, _, exact = known
  o = dataclasses.replace(exact, loss=exact.loss * np.exp(np.random.default_rng(0).normal(0, 0.004, len(exact))))
  result = fit(o, loss=Loss('squares'))
  C = 10 * float(o.C.max())
  about = report.doubt(result, C, draws=50, simulations=0)
  N, D = result.optimum(C)
  assert f'advises {float(N):.3g} [' in report.headline(result, about, C)
  assert f'parameters and {float(D):.3g} [' in report.headline(result, about, C)
  unsure = dataclasses.replace(result, agreeing=1, notes=('1 of 8 starts',))
  assert 'was not accepted: 1 of 8 starts' in report.headline(unsure, about, C)
  open_end = dataclasses.replace(about, intervals=tuple(
      dataclasses.replace(i, high=np.inf) if i.name.startswith('N_opt') else i for i in about.intervals))
  assert 'does not know what to train' in report.headline(result, open_end, C)


def test_the_table_behind_a_figure(tmp_path, known):
  _, _, _, o = known
  result = fit(o, loss=Loss('squares'))
  charts = {'envelope': plot.envelope(o, result), 'isoflops': plot.isoflops(o, result),
            'contours': plot.contours(o, result), 'residuals': plot.residuals(result),
            'optimum': plot.optimum_band(o, result, uncertainty.bootstrap(result, 20)),
            'holdout': plot.holdout_error([holdout.holdout(o, laws.additive(), Loss('squares'))])}
  for name, chart in charts.items():
    png, svg, table = plot.save(chart, tmp_path / name)
    assert png.read_bytes()[:4] == b'\x89PNG' and '<svg' in svg.read_text()
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == len(chart.rows)
  law = [row for row in csv.DictReader((tmp_path / 'envelope.csv').open()) if row['series'] == 'law']
  for row in law[::20]:
    n, _ = result.optimum(float(row['C']))
    assert float(row['N']) == pytest.approx(float(n)) and float(row['loss']) == pytest.approx(
        float(result.predict(float(row['N']), float(row['D']))))
  again = plot.save(plot.envelope(o, result), tmp_path / 'again' / 'envelope')
  assert again[1].read_text() == (tmp_path / 'envelope.svg').read_text()


def test_matplotlib_and_jax_are_not_imported_before_they_are_needed():
  code = ('import sys, scaling.__main__, scaling.report, scaling.plot, scaling.uncertainty, scaling.plan; '
          'print([m for m in ("matplotlib", "jax", "numpyro") if m in sys.modules])')
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.strip() == '[]', done.stderr


@pytest.mark.parametrize('seed', range(4))
def test_nonsense_is_answered_or_refused_never_a_traceback(seed):
  """Tables without a law in them: few sizes, D tied to N, pure noise."""
  from scaling import plan, report
  rng = np.random.default_rng(seed)
  rows = int(rng.integers(6, 14))
  N, D = 10 ** rng.uniform(4, 10, rows), 10 ** rng.uniform(5, 12, rows)
  N, D = (rng.choice(N[:3], rows), D) if seed == 0 else (N, N * 20) if seed == 1 else (N, D)
  o = Observations.of(N, D, np.exp(rng.normal(0.5, 0.3, rows)))
  for name in ('additive', 'coupled'):
    try:
      result = fit(o, laws.law(name))
      assert report.summary(result, report.doubt(result, 1e20, 10, 3))
      plan.compute_optimal(result, 1e20)
      plan.next_runs(result, 1e22, 1e21)
    except ConfigError as error:
      assert '\n' not in str(error)
