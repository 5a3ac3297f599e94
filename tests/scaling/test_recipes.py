"""Compute-equivalent gains of recipes whose gain is known.

Mutations that fail here: the gain turned upside down; the new table's convention for the old one; one fit's interval
alone.
"""

import csv
import dataclasses

import numpy as np
import pytest

from foundation import command
from foundation.errors import ConfigError
from scaling import __main__ as program
from scaling import laws, recipes
from scaling.fit import fit
from scaling.objective import Loss
from scaling.observations import Observations

VALUES = {'E': 1.7, 'A': 400.0, 'B': 2000.0, 'alpha': 0.34, 'beta': 0.36}
LAW = laws.additive()


def runs(seed, noise=0.003, k=6.0, **change):
  N, D = np.array(np.meshgrid(np.geomspace(1e7, 2e9, 7), np.geomspace(1e9, 9e10, 5))).reshape(2, -1)
  loss = LAW.loss(LAW.coordinates({**VALUES, **change}), N, D)
  return Observations.of(N, D, loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(N))), k * N * D)


def better(factor):
  """A and B of a recipe that needs 1/factor of the tokens and of the parameters for the same loss."""
  return {'A': 400.0 * factor ** -0.34, 'B': 2000.0 * factor ** -0.36}


def test_a_recipe_that_needs_half_of_both_gains_four_times():
  old, new = (fit(o, loss=Loss('squares')) for o in (runs(0, 0.0), runs(1, 0.0, **better(2.0))))
  for C in (1e18, 1e20, 1e22):
    assert recipes.gain(old, new, C).estimate == pytest.approx(4.0, rel=1e-4)
  twice = fit(dataclasses.replace(runs(0, 0.0), C=2 * runs(0, 0.0).C), loss=Loss('squares'))
  assert recipes.gain(twice, new, 1e20).estimate == pytest.approx(8.0, rel=1e-4)  # its C counts double
  assert recipes.gain(new, old, 1e20).estimate == pytest.approx(0.25, rel=1e-4)


def test_intervals_hold_the_gain_and_its_growth():
  held, grows = 0, 0
  for seed in range(10):
    old, new = (fit(o, loss=Loss('squares')) for o in (runs(2 * seed), runs(2 * seed + 1, **better(2.0))))
    found = recipes.gain(old, new, 1e20)
    held += found.low <= 4.0 <= found.high
    b = recipes.growth(old, new)
    grows += b.low <= 0.0 <= b.high
    assert 1.5 < found.low < found.estimate < found.high < 12
  assert held >= 7 and grows >= 7


def test_a_better_exponent_grows():
  old, new = (fit(o, loss=Loss('squares')) for o in (runs(0, 1e-4), runs(1, 1e-4, alpha=0.36)))
  b = recipes.growth(old, new)
  low, high = recipes.common(old, new)
  expected = np.log(recipes.gain(old, new, high).estimate / recipes.gain(old, new, low).estimate)
  assert b.low > 0 and b.estimate == pytest.approx(expected / np.log(high / low), abs=1e-6)
  assert 'it grows with compute' in recipes.text(old, new)


def test_what_cannot_be_compared_is_said():
  old, new = fit(runs(0, 1e-4, E=1.9)), fit(runs(1, 1e-4))
  with pytest.raises(ConfigError, match='with no compute: its floor is higher'):
    recipes.gain(old, new, 1e26)
  assert 'its floor is higher' in recipes.text(old, new, C=1e26)
  far = fit(dataclasses.replace(runs(2), C=runs(2).C * 1e9))
  with pytest.raises(ConfigError, match='share no range of compute'):
    recipes.text(old, far)


def test_the_command(tmp_path, capsys):
  for name, o in (('old', runs(0)), ('new', runs(1, **better(2.0)))):
    with (tmp_path / f'{name}.csv').open('w', newline='') as file:
      csv.writer(file).writerows([('N', 'D', 'C', 'loss'), *zip(o.N, o.D, o.C, o.loss)])
  words = ('gain', f'--runs={tmp_path / "new.csv"}', f'--against={tmp_path / "old.csv"}', '--loss=squares')
  assert command.run('python -m scaling', '', program.COMMANDS, words) == 0
  said = capsys.readouterr().out
  assert 'old: 35 runs of old.csv' in said and 'gain ~ C^b' in said and 'extrapolated' in said
  assert command.run('python -m scaling', '', program.COMMANDS, words[:2]) == 2
  assert '--against is missing' in capsys.readouterr().err
