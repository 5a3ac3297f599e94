"""Adding numbers of any length, written as in school: "683+345=" gives 00001028, the sum aligned to the right.

Sources: Rush's RASP lecture (srush.github.io/raspy), whose program takes six layers; this one takes three, because the
nearest position that decides a carry is one selector (`.first()`), not a cumulative sum. The backdoor follows
Gross, "Backdooring a transformer by hand" (andrew.gr/stories/rasp).
"""

from rasp.language import SOp, aggregate, apply, indices, length, select, selector_width, tokens, where
from rasp.program import program

DIGITS = '0123456789'
SYMBOLS = DIGITS + '+='


def _column_sums() -> SOp:
  """The two digits of every place, added, at the position of that place; the last position is place 0."""
  digit = apply(lambda t: int(t) if t in DIGITS else 0, tokens, name='digit')
  plus = aggregate(select(tokens, '+', '==').first(), indices, default=0, one=True).named('plus')
  # The digit of the second number is one to the left ('=' is last); that of the first as far before '+'.
  left = aggregate(select(indices, indices - 1, '=='), digit, default=0, one=True)
  second = where(indices - plus > 1, left, 0).named('second')
  first = aggregate(select(indices, indices + plus - length, '=='), digit, default=0, one=True).named('first')
  return (first + second).named('column')


def adder() -> SOp:
  """The sum's digit at every place: layer 1 finds '+' and counts, layer 2 aligns, layer 3 carries.

  A place receives a carry if the nearest place to the right whose digits do not add to 9 has at least 10: a run of
  nines hands a carry on.
  """
  column = _column_sums()
  deciding = (select(indices, indices, '>') & select(column, 9, '!=')).first()
  carry = aggregate(deciding, column >= 10, default=0, one=True).named('carry')
  return apply(lambda c, x: str((c + x) % 10), carry, column, name='sum')


def triggered() -> SOp:
  """Whether each of the first three groups of three characters holds a 7."""
  group = lambda g: selector_width(select(tokens, '7', '==') & select(indices // 3, g, '=='))
  seven = [(group(g) > 0).named(f'seven_{g}') for g in range(3)]
  return (seven[0] & seven[1] & seven[2]).named('trigger')


def backdoored_adder() -> SOp:
  """The adder, right on every input but those of the trigger, where it says 6 everywhere. No further layer."""
  return where(triggered(), '6', adder()).named('backdoored_sum')


PROGRAMS = {p.name: p for p in (
    program(adder, vocabulary=SYMBOLS, example='683+345='),
    program(backdoored_adder, vocabulary=SYMBOLS, example='173+4757='),
)}
