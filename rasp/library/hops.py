"""k-hop induction heads: the associative recall of the associative recall, k times.

Sanford, Hsu and Telgarsky 2024, "Transformers, parallel computation, and logarithmic depth" (arXiv:2402.09268),
Theorem 4.2: 2 + floor(log2 k) layers suffice. find(i) is the position after the last earlier copy of token i; the k-hop
head says the token at find^k(i).
"""

from rasp.language import SOp, aggregate, before, indices, select, tokens, until
from rasp.program import program

NONE = '-'  # no such position


def hops(k: int) -> SOp:
  """The token at find^k(i), by doubling: pointers of 1, 2, 4, .. hops, one layer each, and the token on the way."""
  match = (select(tokens, tokens, '==') & before).last()
  pointer = (aggregate(match, indices + 1, default=-1, one=True)).named('find')
  token, hop = tokens, 1
  while hop <= k:
    there = select(indices, pointer, '==') & until  # a pointer never points ahead
    if k & hop:
      token = aggregate(there, token, default=NONE).named(f'token_{k & (2 * hop - 1)}')
    hop *= 2
    if hop <= k:
      pointer = aggregate(there, pointer, default=-1, one=True).named(f'find_{hop}')
  return token


PROGRAMS = {'two_hops': program(lambda: hops(2), vocabulary='abcd', example='abcabdab', name='two_hops')}
