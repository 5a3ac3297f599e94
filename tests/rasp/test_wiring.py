"""The circuit that is saved with the weights: its variables hold what they say, and its parts do what they are named."""

import numpy as np
import pytest

import rasp
from rasp import export, verify
from rasp.library import PROGRAMS


@pytest.mark.parametrize('name', ['reverse', 'sort', 'sort_by_frequency', 'induction', 'adder', 'shuffle_dyck2'])
def test_numpy_gives_the_decoders_logits(name):
  program = PROGRAMS[name]
  compiled = rasp.compile(program, longest=9)
  row = list(program.example)
  _, logits = compiled.forward(*compiled.tokenize([row]))
  got = compiled.activations(row)
  np.testing.assert_allclose(got.logits_TxV, logits[0], rtol=1e-4, atol=1e-2)
  assert compiled.decode(got.logits_TxV[None])[0] == program(row)


def test_the_wiring_of_reverse():
  compiled = rasp.compile(PROGRAMS['reverse'], longest=8)
  wiring = compiled.wiring
  assert [(p.name, p.kind, p.layer) for p in wiring.parts] == [
      ('length', 'head', 0), ('length#2', 'units', 0), ('reverse', 'head', 1)]
  assert set(wiring.edges) == {('length', 'length#2'), ('length#2', 'reverse'), ('indices', 'reverse'),
                               ('tokens', 'reverse'), ('reverse', 'output')}
  values = compiled.residual('abca')
  np.testing.assert_allclose(values['length'], 4, atol=1e-2)
  weights = compiled.attention('abca')['reverse'][1:, 1:]
  np.testing.assert_allclose(weights, np.eye(4)[::-1], atol=1e-3)


def test_ablation_and_interchange():
  compiled = rasp.compile(PROGRAMS['reverse'], longest=8)
  assert compiled.ablate('reverse')('abcd') != list('dcba')
  assert compiled.ablate('length#2')('abcd') != list('dcba')
  assert compiled.patch('abcd', 'reverse', 'bbbb') == ['b'] * 4  # all that is said comes through this head
  assert compiled.patch('abcd', 'length', 'bbbb') == list('dcba')  # the length is the same
  count = rasp.compile(PROGRAMS['histogram'], longest=8)
  assert count.patch('abcd', 'histogram', 'aabb') == [2] * 4 and count('abcd') == [1] * 4
  with pytest.raises(rasp.RaspError, match='inputs of 4 and 2 tokens; expected one length'):
    compiled.patch('abcd', 'reverse', 'bb')
  with pytest.raises(KeyError, match="no part 'revers'; expected one of length, length#2, reverse"):
    compiled.ablate('revers')


def test_variables_hold_what_the_program_computes():
  """A variable of a step is the vector of the value that the interpreter gives, at every position."""
  program = PROGRAMS['sort_by_frequency']
  compiled = rasp.compile(program, longest=6)
  stream = compiled.activations('abbcbc').residual_2NxTxD
  for v in compiled.wiring.variables:
    if v.vector is not None and v.of != 'indices':
      held = stream[v.born + 1, 1:, v.dim]
      assert all(np.isclose(held[:, None], np.array(v.vector)[None], atol=1e-3).any(1)), v
      if v.cleared is not None:  # and until then nothing else writes there
        np.testing.assert_allclose(stream[v.cleared, 1:, v.dim], held, atol=1e-3)


def test_it_is_saved_with_the_weights(tmp_path):
  compiled = rasp.compile(PROGRAMS['sort'], longest=6)
  export.save(compiled, tmp_path / 'sort')
  again = export.load(tmp_path / 'sort')
  assert again.wiring == compiled.wiring and again.circuit() == compiled.circuit()
  assert verify.equal(again('dacab'), sorted('dacab')) and again.ablate('sort')('dacab') != sorted('dacab')
  assert again.attention('dacab').keys() == compiled.attention('dacab').keys()
