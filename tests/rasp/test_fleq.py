"""Function blocks as programs of the looped computer, against NumPy's own linear algebra."""

import numpy as np
import pytest

from rasp.machines import fleq

A = np.array([[2.0, 1, 0], [1, 3, 1], [0, 1, 2]])


def agree(program, memory, instructions, atol):
  want, want_pc = fleq.reference(program, memory, instructions)
  got, pc = fleq.run(program, memory, instructions)
  np.testing.assert_allclose(got, want, atol=atol)
  assert pc == want_pc
  return got


def test_calculator():
  """(3 + 4) * 5 - 6, on numbers as one-by-one matrices."""
  program, memory = fleq.assemble(
      [(None, 'add', 'a', 'b', 'r', None), (None, 'multiply', 'r', 'c', 'r', None),
       (None, 'subtract', 'r', 'd', 'r', None)],
      {name: [[value]] for name, value in dict(a=3, b=4, c=5, d=6, r=0).items()})
  assert agree(program, memory, 3, 1e-4)[4, 0, 0] == pytest.approx(29)


def test_newton_finds_the_inverse():
  inverse = agree(*fleq.newton_inverse(A, 12), 1e-4)[0]
  np.testing.assert_allclose(inverse, np.linalg.inv(A), atol=1e-5)


@pytest.mark.slow
def test_power_iteration_finds_the_first_eigenvector():
  vector = agree(*fleq.power_iteration(A / 4, np.ones(3), 12), 1e-4)[0][:, 0]
  np.testing.assert_allclose(vector, np.abs(np.linalg.eigh(A)[1][:, -1]), atol=1e-4)


@pytest.mark.slow
def test_gradient_descent_solves_an_in_context_regression():
  inputs, weights = np.array([[1, 0.5, 0], [0, 1, 0.5], [0.5, 0, 1]]), np.array([1.0, -2, 0.5])
  found = agree(*fleq.gradient_descent(inputs, inputs @ weights, 0.5, 40), 1e-3)[0][:, 0]
  np.testing.assert_allclose(found, weights, atol=1e-3)


def test_three_layers_an_instruction_and_the_loop_of_a_trained_model():
  model = fleq.computer(*fleq.newton_inverse(A, 2)).model
  assert model.layers == 3 and model.activation == 'swiglu' and model.loops == 12


@pytest.mark.slow
def test_random_straight_programs():
  rng = np.random.default_rng(0)
  for _ in range(3):
    program = [(rng.choice(list(fleq.OPERATIONS)), *map(int, rng.integers(0, 5, 3)), i + 1) for i in range(6)]
    agree(program, rng.uniform(-0.5, 0.5, (5, 2, 2)), 6, 1e-4)


def test_a_write_that_is_lost_is_seen(monkeypatch):
  original = fleq.Weights.head
  def deaf(self, layer, number, scores, values):
    if (layer, number) != (0, 1):
      original(self, layer, number, scores, values)
  monkeypatch.setattr(fleq.Weights, 'head', deaf)
  with pytest.raises(AssertionError):
    test_newton_finds_the_inverse()
