"""Laws against automatic differentiation, numerical minimisation and each other.

Each check fails under: a wrong sign of beta in the Jacobian; `q` dropped from the balance of the optimum; D' = D for
repeated data; the offset ln L0 left out of the bounded law.
"""

import numpy as np
import pytest
from scipy import optimize

from foundation.errors import ConfigError
from scaling import laws

NAMES = laws.names()


def example(name):
  law = laws.law(name, 5.545)
  rng = np.random.default_rng(1)
  x = {'n': rng.uniform(15, 24, 9), 'd': rng.uniform(19, 27, 9), 'k': rng.uniform(0, 4, 9)}
  x['u'], x['c'] = x['d'] - rng.uniform(-1, 3, 9), x['n'] + x['d'] + np.log(6)
  x |= {column.key: column.of(rng.uniform(0.1, 0.9, 9)) for column in law.reads if column.key not in x}
  theta = law.start(np.array([[0.5, 6.0, 7.0, 0.34, 0.37], [0.2, 5.0, 6.5, 0.4, 0.3]]))
  return law, theta, {key: x[key] for key in law.columns}


@pytest.mark.parametrize('name', NAMES)
def test_jacobian_is_that_of_jax(name):
  import jax
  import jax.numpy as jnp
  law, theta, x = example(name)
  with jax.enable_x64(True):
    columns = {key: jnp.asarray(value) for key, value in x.items()}
    auto = jax.vmap(jax.jacfwd(lambda t: law.log_loss(t, columns, jnp)))(jnp.asarray(theta))
    np.testing.assert_allclose(law.jacobian(theta, x), np.asarray(auto), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('name', [n for n in NAMES if laws.law(n, 5.545).decides])
@pytest.mark.parametrize('C', [1e18, 1e23])
def test_closed_form_optimum_is_the_numerical_one(name, C):
  law, theta, x = example(name)
  K = 8.0 if 'k' in law.columns else None
  at = {column.name: 0.5 for column in law.reads if column.key not in 'nduk'}
  for lane in theta:
    n, d = laws.allocation(law, lane, C, K=K, at=at)
    found = optimize.minimize_scalar(
        lambda v: float(np.log(law.loss(lane, np.exp(v), C / 6 / np.exp(v), K=K, **at))), bounds=(n - 3, n + 3),
        method='bounded', options={'xatol': 1e-10})
    assert found.x == pytest.approx(n, abs=1e-5)
    assert n + d == pytest.approx(np.log(C / 6))


def test_coupled_nests_additive_kaplan_and_the_larger_term():
  coupled, plain = laws.coupled(), laws.additive()
  theta = np.array([0.5, 6.0, 7.0, 0.34, 0.37])
  N, D = np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)
  np.testing.assert_allclose(coupled.loss(np.append(theta, 0.0), N, D), plain.loss(theta, N, D), rtol=1e-13)
  kaplan = laws.kaplan().loss(theta[1:], N, D)
  nested = coupled.loss(np.concatenate([[-60.0], theta[1:], [np.log(theta[4])]]), N, D)
  np.testing.assert_allclose(nested, kaplan, rtol=1e-12)
  larger = np.exp(0.5) + np.maximum(np.exp(6.0) * N ** -0.34, np.exp(7.0) * D ** -0.37)
  np.testing.assert_allclose(coupled.loss(np.append(theta, -7.0), N, D), larger, rtol=1e-3)


def test_kaplan_constants_of_the_paper():
  """N_c = 6.4e13, D_c = 1.8e13, exponents .076 and .103 in the paper's own form, equation 1.5."""
  law = laws.kaplan()
  theta = law.coordinates({'A': 6.4e13 ** 0.076, 'B': 1.8e13 ** 0.103, 'alpha': 0.076, 'beta': 0.103})
  N, D = 1.5e9, 2.2e10
  assert float(law.loss(theta, N, D)) == pytest.approx(((6.4e13 / N) ** (0.076 / 0.103) + 1.8e13 / D) ** 0.103)


def test_overtraining_is_the_papers_form():
  law = laws.overtraining()
  theta = law.coordinates({'E': 1.8, 'A': 100.0, 'B': 200.0, 'eta': 0.136})
  N, D = 4e8, 8e10
  M, C = D / N, 6 * N * D
  assert float(law.loss(theta, N, D)) == pytest.approx(1.8 + (100 * M ** 0.136 + 200 * M ** -0.136) * C ** -0.136)


def test_bounded_never_exceeds_the_uninformed_loss():
  law = laws.bounded(5.545)
  theta = law.coordinates({'E': 1.2, 'A': 40.0, 'B': 900.0, 'alpha': 0.4, 'beta': 0.5})
  losses = law.loss(theta, np.geomspace(1, 1e12, 13), np.geomspace(1, 1e12, 13))
  assert (losses < 5.545 + 1e-12).all() and (np.diff(losses) < 0).all()
  assert losses[0] == pytest.approx(5.545, rel=2e-3) and losses[-1] == pytest.approx(1.2, rel=1e-2)
  h = 40 / 1e3 ** 0.4 + 900 / 1e5 ** 0.5
  assert float(law.loss(theta, 1e3, 1e5)) == pytest.approx(1.2 + (5.545 - 1.2) * h / (1 + h))


def test_repetition_against_the_papers_formula():
  law = laws.repeated(laws.tied())
  theta = law.coordinates({'E': 1.87, 'A': 521.0, 'B': 1488.0, 'alpha': 0.353, 'R_D': 15.4, 'R_N': 5.3})
  N, D, U = 2.8e9, 3.2e10, 4e9
  R = D / U - 1
  tokens = U + U * 15.4 * (1 - np.exp(-R / 15.4))
  best = (521.0 / 1488.0) ** (1 / 0.353) * U
  R_n = N / best - 1
  assert R_n > 0  # so that the parameters' part is in use
  size = best + best * 5.3 * (1 - np.exp(-R_n / 5.3))
  assert float(law.loss(theta, N, D, U)) == pytest.approx(1.87 + 521 * size ** -0.353 + 1488 * tokens ** -0.353)
  once = law.loss(theta, 1e6, 1e9, 1e9)
  assert float(once) == pytest.approx(float(laws.tied().loss(theta[:4], 1e6, 1e9)))
  assert law.loss(theta, 1e8, 1e12, 1e9) > laws.tied().loss(theta[:4], 1e8, 1e12)


def test_experts_of_one_are_the_base():
  law, base = laws.experts(laws.additive()), laws.additive()
  theta = np.array([0.5, 6.0, 7.0, 0.34, 0.37, 0.6, -0.01])
  assert float(law.loss(theta, 1e9, 1e11, K=1)) == pytest.approx(float(base.loss(theta[:5], 1e9, 1e11)))
  n = np.log(1e9)
  effective = np.exp(n + (0.6 - 0.01 * n) * np.log(16))
  assert float(law.loss(theta, 1e9, 1e11, K=16)) == pytest.approx(float(base.loss(theta[:5], effective, 1e11)))


@pytest.mark.parametrize('act, words', [
    (lambda: laws.law('additiv'), "did you mean 'additive'"),
    (lambda: laws.law('bounded'), 'ln(vocabulary)'),
    (lambda: laws.additive().coordinates({'E': 1.0, 'gamma': 2.0}), "no parameter 'gamma'"),
    (lambda: laws.additive().coordinates({'E': 1.0, 'A': 2.0}), "needs a value of 'B'"),
    (lambda: laws.additive().coordinates({'E': -1.0, 'A': 2.0, 'B': 1, 'alpha': 1, 'beta': 1}), 'E=-1.0'),
    (lambda: laws.law('repeated').loss(np.ones(7), 1e9, 1e9), 'column U'),
    (lambda: laws.allocation(laws.law('repeated'), np.ones(7), 1e20), 'no closed-form optimum'),
])
def test_refusals(act, words):
  with pytest.raises(ConfigError, match='.') as error:
    act()
  assert words in str(error.value) and '\n' not in str(error.value)
