import os
import pathlib

import numpy as np
import pytest

from scaling import laws
from scaling.observations import Observations


@pytest.fixture(scope='session')
def tables():
  """Folder of published run tables beside the project's root, or where LEMMA_SHARED says."""
  root = pathlib.Path(__file__).resolve().parents[2]
  folder = pathlib.Path(os.environ.get('LEMMA_SHARED', root.parent / 'shared')) / 'data' / 'scaling'
  if not folder.is_dir():
    pytest.skip(f'no published run tables at {folder}; set LEMMA_SHARED to the folder that holds data/scaling')
  return folder


@pytest.fixture(scope='session')
def known():
  """A law with known parameters and 20 runs on it (5 sizes, 4 token counts), without noise."""
  law = laws.additive()
  values = {'E': 0.85, 'A': 56.0, 'B': 83.0, 'alpha': 0.35, 'beta': 0.37}
  theta = law.coordinates(values)
  n, d = (g.ravel() for g in np.meshgrid([1e4, 3.3e4, 9.5e4, 1.64e5, 4.67e5], [2.5e5, 5e5, 1e6, 2e6], indexing='ij'))
  return law, theta, values, Observations.of(n, d, law.loss(theta, n, d))
