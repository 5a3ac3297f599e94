"""A law that never exceeds the loss of a model that knows nothing, L0 = ln(vocabulary).

E + (L0 - E) h/(1 + h), h = A/N^alpha + B/D^beta.
"""

import numpy as np

from foundation.errors import ConfigError
from scaling.laws._law import STANDARD, Law
from scaling.laws._terms import in_order, two_terms


def law(uninformed: float) -> Law:
  """uninformed: L0 in nats."""
  if not uninformed > 0:
    raise ConfigError(f'uninformed loss {uninformed} must be positive: ln(vocabulary) in nats, ln 256 = 5.545 for '
                      'bytes')
  return Law('bounded', f'E + ({uninformed:.4g} - E) h/(1+h), h = A/N^alpha + B/D^beta',
             'arXiv:2605.09189, without its overfitting term', STANDARD,
             *two_terms(lambda t, xp: (*t, None), in_order('e', 'a', 'b', 'alpha', 'beta'), float(np.log(uninformed))),
             start=lambda s: s - np.array([0.0, *2 * [np.log(uninformed)], 0.0, 0.0]))
