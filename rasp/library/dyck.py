"""Balanced brackets: shuffle-Dyck, where kinds of brackets close independently of each other, and Dyck proper.

Source: Weiss, Goldberg and Yahav 2021 (arXiv:2106.06981), section 4; Bhattamishra et al. 2020 (arXiv:2009.11264).
"""

from rasp.language import SOp, aggregate, indices, length, select, until, where
from rasp.library.sequences import pair_balance
from rasp.program import program

PAIRS = ('()', '[]', '{}')


def shuffle_dyck(pairs=('()',)) -> SOp:
  """Whether the whole input is balanced in every pair, at every position.

  The share balance/(i+1) of every prefix must never be negative (a mean over everything of "is negative" is 0), and be
  0 at the last position. Two layers for any number of pairs.
  """
  balances = [pair_balance(*pair) for pair in pairs]
  negative, zero = balances[0] < 0, balances[0] == 0
  for b in balances[1:]:
    negative, zero = negative | (b < 0), zero & (b == 0)
  everywhere = select(True, True, '==')
  ever_negative = aggregate(everywhere, negative, default=0).named('ever_negative')
  zero_at_end = aggregate(select(indices, length - 1, '=='), zero).named('zero_at_end')
  return (zero_at_end & ~ever_negative).named(f'shuffle_dyck_{len(pairs)}')


def prefix_dyck1() -> SOp:
  """For every prefix of brackets: T it is balanced, P it can still become so, F it cannot. Causal."""
  balance = pair_balance('(', ')')
  broken = aggregate(until, balance < 0)
  return where(broken > 0, 'F', where(balance == 0, 'T', 'P')).named('prefix_dyck1')


PROGRAMS = {p.name: p for p in (
    program(lambda: shuffle_dyck(PAIRS[:1]), vocabulary='()', example='(())()', name='balanced_parentheses'),
    program(lambda: shuffle_dyck(PAIRS[:1]), vocabulary='()', example='(()', name='shuffle_dyck1'),
    program(lambda: shuffle_dyck(PAIRS[:2]), vocabulary='()[]', example='([)]', name='shuffle_dyck2'),
    program(lambda: shuffle_dyck(PAIRS), vocabulary='()[]{}', example='([{)]}', name='shuffle_dyck3'),
    program(lambda: prefix_dyck1(), vocabulary='()', example='(()))', name='prefix_dyck1'),
)}
