"""MPC's constant-round algorithms as RASP: broadcast, prefix sums and sorting, each in a constant number of layers.

Goodrich, Sitchinava and Zhang 2011 (arXiv:1101.1902) for the algorithms; Sanford, Hsu and Telgarsky 2024
(arXiv:2402.09268) for rounds as layers. The shuffle round itself is rasp/machines/parallel.py.
"""

from rasp.language import SOp, aggregate, everything, select, selector_width, tokens, until
from rasp.library.sequences import sort
from rasp.program import program


def broadcast() -> SOp:
  """The first machine's word at every machine: one layer."""
  return aggregate(everything.first(), tokens).named('broadcast')


def prefix_sum() -> SOp:
  """The sum of the bits up to each machine: one layer, a causal count."""
  return selector_width(select(tokens, '1', '==') & until).named('prefix_sum')


PROGRAMS = {p.name: p for p in (
    program(broadcast, vocabulary='abcd', example='cabd'),
    program(prefix_sum, vocabulary='01', example='10110'),
    program(lambda: sort().named('sort_words'), vocabulary='abcdefgh', example='hafbcc', name='sort_words'),
)}
