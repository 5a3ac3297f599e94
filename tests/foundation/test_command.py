"""Command lines: who owns a flag, what is refused in one line, and what help shows.

Mutations that fail here: one pile of flags for all subcommands; bounds that let NaN pass; help that lists every flag.
"""

import subprocess
import sys

import pytest

from foundation.command import Command, Flag, run
from foundation.errors import ConfigError

RUNS = Flag('runs', str, '', 'folder of runs')


def both(calls):
  fit = Command('fit', lambda flags: calls.append(flags), 'fits.', 'Example:\n  tool fit --runs=x', (
      RUNS, Flag('report', str, '', 'folder to write'), Flag('draws', int, 10, 'draws', least=1, most=99),
      Flag('level', float, 0.9, 'level'), Flag('kind', str, 'pairs', 'of draw', ('pairs', 'rows')),
      Flag('sure', bool, None, 'or not'), Flag('names', list, ['a'], 'some')))
  plan = Command('plan', lambda flags: 1, 'plans.', 'Example:\n  tool plan --runs=x', (
      RUNS, Flag('budget', float, 0.0, 'FLOPs')))
  return [fit, plan]


def call(*words, commands=None, **more):
  return run('tool', 'About it.', commands or both([]), words, **more)


def test_a_subcommand_gets_its_values():
  calls = []
  assert call('fit', '--runs', 'x', '--draws=5', '--level=1e-1', '--kind=rows', '--nosure', '--names=b, c',
              commands=both(calls)) == 0
  assert vars(calls[0]) == {'runs': 'x', 'report': '', 'draws': 5, 'level': 0.1, 'kind': 'rows', 'sure': False,
                            'names': ['b', 'c']}
  call('--runs=y', 'fit', commands=both(calls))
  assert vars(calls[1]) == {'runs': 'y', 'report': '', 'draws': 10, 'level': 0.9, 'kind': 'pairs', 'sure': None,
                            'names': ['a']}
  assert call('plan') == 1


@pytest.mark.parametrize('words, said', [
    (['plan', '--report=x'], "--report is not a flag of 'tool plan', only of fit (did you mean '--"),
    (['fit', '--budget', '3'], "--budget is not a flag of 'tool fit', only of plan (did you mean '--"),
    (['plan', '--budgt=3'], "--budgt is not a flag of 'tool plan' (did you mean '--budget'?)"),
    (['fti'], "command is 'fti'; expected one of fit, plan (did you mean 'fit'?)"),
    ([], "command is ''; expected one of fit, plan"),
    (['fti', '--help'], "did you mean 'fit'?"),
    (['fit', 'x'], "'x' is not a flag; flags are written --name=value"),
    (['fit', '--level=nan'], '--level=nan: expected a finite number'),
    (['fit', '--level=inf'], '--level=inf: expected a finite number'),
    (['fit', '--draws=1e3'], '--draws=1e3: expected a whole number'),
    (['fit', '--draws=0'], '--draws=0: expected at least 1'),
    (['fit', '--draws=100'], '--draws=100: expected at most 99'),
    (['fit', '--kind=pair'], "--kind=pair: expected one of pairs, rows (did you mean 'pairs'?)"),
    (['fit', '--nosure=1'], '--nosure=1 does not take an argument'),
    (['fit', '--flagfile=/no/such'], '/no/such'),
    (['fit', '--runs'], 'Missing value for flag --runs'),
    (['fit', '--sure=perhaps'], '--sure=perhaps')])
def test_a_refusal_is_one_line_and_2(words, said, capsys):
  calls = []
  assert call(*words, commands=both(calls)) == 2 and not calls
  out, err = capsys.readouterr()
  assert not out and err.startswith('error: ') and err.count('\n') == 1 and said in err


def test_errors_of_the_subcommand(capsys):
  def fails(error):
    def function(_):
      raise error
    return [Command('', function, 'fails.', 'Example:\n  tool')]
  assert call(commands=fails(ConfigError('two\nlines'))) == 2 and capsys.readouterr().err == 'error: two lines\n'
  assert call(commands=fails(FileNotFoundError(2, 'No such file', 'x'))) == 2
  assert call(commands=fails(KeyError('own')), refusals=(KeyError,)) == 2
  with pytest.raises(ZeroDivisionError):
    call(commands=fails(ZeroDivisionError()))


def test_help_is_of_the_program_or_of_one_subcommand(capsys):
  assert call('--help') == 0
  out = capsys.readouterr().out
  assert out.startswith('About it.') and '  fit   fits.\n  plan  plans.\n' in out and '--runs' not in out
  for word in ('--help', '-h'):
    assert call('fit', word) == 0
    out = capsys.readouterr().out
    assert out.startswith('tool fit: fits.') and '  tool fit --runs=x' in out and 'budget' not in out
    assert '  --kind: of draw: pairs | rows (default pairs)\n' in out and '  --draws: draws (default 10)\n' in out


def test_it_needs_nothing_heavy():
  code = 'import sys, foundation.command; print([m for m in ("jax", "numpy", "matplotlib") if m in sys.modules])'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '[]\n'
