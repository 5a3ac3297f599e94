"""A law of one's own is a file: it goes through every command, and a half-written one is refused by what it lacks.

Mutations that fail here: a law's kind guessed from its columns; a search that stops at its grid; a derivative or an
optimum that is believed.
"""

import csv
import re
import textwrap

import numpy as np
import pytest

from foundation import command
from foundation.errors import ConfigError
from scaling import __main__ as program
from scaling import laws, uncertainty
from scaling.laws._optimum import searched

LAW = """from scaling.laws import Law

def law():
  def log_loss(theta, x, xp):
    e, a, b, alpha = (theta[..., i, None] for i in range(4))
    return xp.log(xp.exp(e) + xp.exp(a - alpha * x['n']) + xp.exp(b - alpha * x['d']))
  return Law('mine', 'E + A/N^alpha + B/D^alpha', 'me', ('E', 'A', 'B', 'alpha'), log_loss)
"""


@pytest.fixture
def mine(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(LAW)
  return str(path)


@pytest.fixture
def runs(tmp_path, known):
  _, _, _, o = known
  noise = np.exp(np.random.default_rng(0).normal(0, 0.004, len(o)))
  with (tmp_path / 'runs.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('N', 'D', 'loss'), *zip(o.N, o.D, o.loss * noise)])
  return [f'--runs={tmp_path / "runs.csv"}', '--loss=squares']


def call(*words):
  return command.run('python -m scaling', '', program.COMMANDS, words)


def test_a_law_without_closed_optimum_goes_through_every_command(tmp_path, mine, runs, capsys):
  """It is the tied law, searched: what is said of the optimum is what the closed form says."""
  def say(*words):
    assert call(*words) == 0
    return capsys.readouterr().out
  quick = ('--simulations=3', '--bootstrap=20')
  fitted = say('fit', *runs, *quick, f'--law={mine}', f'--report={tmp_path / "report"}')
  tied = say('fit', *runs, *quick, '--law=tied')
  for name in ('alpha', 'N_opt', 'D_opt', 'loss at'):
    ours, theirs = (re.search(rf'^{name}.* (\S+) .* 90 % \[(.*), (.*)\]', text, re.M) or re.search(
        rf'^{name}.*? (\d\S*)   90 % \[(.*), (.*)\]', text, re.M) for text in (fitted, tied))
    assert [float(v) for v in ours.groups()] == pytest.approx([float(v) for v in theirs.groups()], rel=2e-3), name
  assert 'N_opt' in (tmp_path / 'report' / 'index.html').read_text()
  assert 'mine: loss at N=1e+06' in say('predict', *runs, f'--law={mine}', '--N=1e6', '--D=8e6', '--simulations=0')
  plans = [say('plan', *runs, f'--law={law}', '--budget=1e14', '--N=1e6').splitlines() for law in (mine, 'tied')]
  assert [line.split()[:2] for line in plans[0][:4]] == [line.split()[:2] for line in plans[1][:4]]
  bought = [say('design', *runs, f'--law={law}', '--budget=1e13', '--most=5').splitlines() for law in (mine, 'tied')]
  assert bought[0][:4] == bought[1][:4] and '->' in bought[0][1]
  assert re.search(r'^mine +\S+ +\S+ +0\.\d+$', say('compare', *runs, f'--laws=additive,{mine}'), re.M)


def test_the_search_finds_the_closed_optimum_and_its_derivative():
  for name in ('additive', 'coupled', 'kaplan', 'overtraining'):
    law, closed = laws.law(name), []
    theta = law.start(np.array([[0.5, 6.0, 7.0, 0.34, 0.37], [0.2, 5.0, 6.5, 0.4, 0.3]]))
    C = 1e21
    n = uncertainty.n_opt(law, C)
    closed = [n.value(theta), n.gradient(theta)]
    found = uncertainty.Quantity('', lambda t, law=law: searched(law, t, np.log(C / 6.0)))
    np.testing.assert_allclose(found.value(theta), closed[0], rtol=1e-6)
    np.testing.assert_allclose(found.gradient(theta), closed[1], rtol=1e-4, atol=1e-5)
  rising = laws.Law('rising', '', '', ('E', 'alpha'), lambda t, x, xp: t[..., 0, None] + t[..., 1, None] * x['n'])
  assert np.isnan(searched(rising, np.array([0.5, 0.3]), np.log(1e20)))


def test_the_example_of_the_protocol_is_a_law(tmp_path):
  text = textwrap.dedent(laws.__doc__.partition('for example\n')[2].partition('\nBefore')[0])
  (tmp_path / 'example.py').write_text(text)
  law = laws.law(str(tmp_path / 'example.py'))
  assert law.terms is None and law.plain and law.start(np.ones((2, 5))).shape == (2, 7)


@pytest.mark.parametrize('old, new, said', [
    ('def law', 'def lore', "whose file has no 'law'"),
    ('return Law(', 'Law(', 'whose law() gives NoneType; expected a scaling.laws.Law'),
    (', log_loss)', ')', "missing 1 required positional argument: 'log_loss'"),
    ("'alpha'), log_loss", "'gamma'), log_loss", "nothing says where 'gamma' starts"),
    (', log_loss)', ", log_loss, columns=('n', 'd', 'z'))", "columns has 'z'; expected one of n, d, u, k, c, t, g, lr"),
    (', log_loss)', ", log_loss, logs=('E', 'a'))", "logs has 'a'; expected one of E, A, B, alpha"),
    (', log_loss)', ', log_loss, start=lambda additive: additive)', 'start gives shape (2, 5); expected (lanes, 4)'),
    ('range(4)', 'range(3)', 'log_loss fails in log_loss at line 5 (ValueError: not enough values to unpack'),
    ('return xp.log(', 'xp.log(', 'log_loss gives NoneType, or no finite numbers; expected (2, 5)'),
    ('theta, x, xp', 'theta, x', 'log_loss fails (TypeError: '),
    ('def law()', 'def law(one, two)', 'law() takes one, two; expected no argument'),
    ("('E', 'A', 'B', 'alpha'), log_loss", '(), log_loss', 'parameters is (); expected at least one'),
    ("x['n']) +", "x['n'].sum()) +", 'gives a row another loss alone than among other rows'),
    ('xp.exp(a -', 'xp.exp(abs(a) -', 'another derivative by A than the differences of log_loss'),
    (', log_loss)', ', log_loss, jacobian=lambda theta, x: theta)', 'jacobian gives shape (2, 4)'),
    (', log_loss)', ', log_loss, terms=lambda t, x, xp=0: Terms(*(t[..., i] for i in range(4)), 2 * t[..., 3], 1.0))',
     'terms put the optimum of 6e20 FLOPs at N = '),
])
def test_a_half_written_law_is_refused(tmp_path, runs, capsys, old, new, said):
  path = tmp_path / 'half.py'
  path.write_text(LAW.replace(old, new, 1).replace('import Law', 'import Law, Terms'))
  assert old in LAW and call('fit', *runs, f'--law={path}') == 2
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and said in err and (str(path) in err or 'law mine' in err)


def test_an_unknown_law_is_refused_with_the_nearest(tmp_path, mine, runs, capsys):
  assert call('compare', *runs, '--laws=additive,tide') == 2
  assert "--laws is 'tide'; expected one of additive, bounded" in (err := capsys.readouterr().err) and "'tied'?" in err
  assert call('fit', *runs, f'--law={mine.replace("mine", "mien")}') == 2
  assert f"which does not exist (did you mean '{mine}'?)" in capsys.readouterr().err
  with pytest.raises(ConfigError, match='expected one of additive, .*repeated_coupled'):
    laws.law('')


ONE = LAW.replace('e, a, b, alpha = (theta[..., i, None] for i in range(4))', "e = theta[..., 0, None]").replace(
    "return xp.log(xp.exp(e) + xp.exp(a - alpha * x['n']) + xp.exp(b - alpha * x['d']))", "return e + 0 * x['n']").replace(
    "('E', 'A', 'B', 'alpha')", "('E',)")
BLIND = LAW.replace('e, a, b, alpha = (theta[..., i, None] for i in range(4))', 'a, alpha = (theta[..., i, None] for i in (0, 1))'
                    ).replace("xp.log(xp.exp(e) + xp.exp(a - alpha * x['n']) + xp.exp(b - alpha * x['d']))",
                              "a - alpha * x['n']").replace("('E', 'A', 'B', 'alpha')", "('A', 'alpha')")


@pytest.mark.parametrize('text', [ONE, BLIND], ids=['one parameter', 'blind to D'])
def test_a_law_without_an_optimum_has_a_report_and_no_next_runs(tmp_path, runs, capsys, text):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  call('fit', *runs, '--simulations=2', '--bootstrap=10', f'--law={path}', f'--report={tmp_path / "report"}')
  out = capsys.readouterr()
  assert not out.err and f'report {tmp_path}/report/index.html' in out.out
  assert 'law mine' in (tmp_path / 'report' / 'index.html').read_text()
  assert (tmp_path / 'report' / 'contours.svg').exists() and not (tmp_path / 'report' / 'optimum.svg').exists()
  assert call('design', *runs, f'--law={path}', '--budget=1e13') == 2
  assert re.search(r'^error: the law mine has no optimum at \S+ FLOPs; no next run can be valued by it\n$',
                   capsys.readouterr().err)


def test_fixed_parameters_leave_something_to_fit_and_to_know(runs, capsys):
  every = 'E=0.85,A=56,B=83,alpha=0.35,beta=0.37'
  assert call('fit', *runs, f'--fix={every}') == 2
  assert 'every parameter of the law additive is kept as given (E, A, B, alpha, beta)' in capsys.readouterr().err
  assert call('design', *runs, f'--fix={every[7:]}', '--budget=1e13') == 2  # E alone, which moves no optimum
  assert 'no free parameter of the law additive moves its N_opt at ' in capsys.readouterr().err
