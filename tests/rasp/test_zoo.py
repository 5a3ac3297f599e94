"""Every program of the zoo at lengths 1, 2, a half and the longest, against plain Python."""

import random

import numpy as np
import pytest
from tests.rasp import forms

import rasp
from rasp import zoo


def test_there_are_eighty():
  assert len(zoo.ZOO) >= 80


@pytest.mark.parametrize('name', zoo.ZOO)
def test_program_and_truth(name):
  entry = zoo.ZOO[name]
  compiled = rasp.compile(entry.program, longest=zoo.LONGEST)
  rng = random.Random(0)
  vocabulary = entry.program.vocabulary
  rows = [list(entry.program.example), *([vocabulary[0]] * zoo.LONGEST, [vocabulary[-1]] * zoo.LONGEST)]
  for n in (1, 1, 2, 2, 2, zoo.LONGEST // 2, zoo.LONGEST // 2, zoo.LONGEST // 2, *[zoo.LONGEST] * 6):
    few = rng.sample(vocabulary, rng.randint(1, len(vocabulary)))
    rows.append([rng.choice(few) for _ in range(n)])
  for row in rows:
    want = entry.truth(row)
    assert forms.same(want, entry.program(row), 0), (row, want, entry.program(row))
    activations = compiled.activations(row)
    got = compiled.decode(activations.logits_TxV[None])[0]
    assert forms.same(want, got, compiled.report.bound), (row, want, got)
  assert not compiled.report.assumed


@pytest.mark.parametrize('name', list(zoo.ZOO)[::9])
def test_the_decoder_itself(name):
  """A ninth of them in JAX; the test above is the same arithmetic in NumPy."""
  entry = zoo.ZOO[name]
  compiled = rasp.compile(entry.program, longest=zoo.LONGEST)
  row = [entry.program.vocabulary[k * k % len(entry.program.vocabulary)] for k in range(zoo.LONGEST)]
  got = compiled(row)
  assert forms.same(entry.truth(row), got, compiled.report.bound) and len(got) == len(row)
  assert np.isfinite(compiled.report.bound)
