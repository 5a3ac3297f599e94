"""Additions against Python's integers."""

import numpy as np
import pytest

from framework.data.tasks.addition import Task


def number(digits, base):
  value = 0
  for digit in digits:
    value = value * base + digit
  return value


@pytest.mark.parametrize('digits,chain,base', [(8, 6, 10), (3, 0, 7), (5, 4, 2)])
def test_blocks_are_true(digits, chain, base):
  task, rng, carries = Task(digits, chain, base), np.random.default_rng(0), []
  for _ in range(1000):
    block = list(map(int, task.block(rng)))
    assert len(block) == task.length and block[0] == task.end == len(task.alphabet)
    a, b = block[1:1 + digits], block[2 + digits:2 + 2 * digits]
    assert task.alphabet[block[1 + digits]] == '+' and task.alphabet[block[task.start]] == '='
    said = block[task.start + 1:task.start + 2 + digits]
    assert max(a + b + said) < base and number(a, base) + number(b, base) == number(said, base)
    assert [x + y for x, y in zip(a, b)][:chain] == [base - 1] * chain
    working = block[task.start + 3 + digits:-1]
    assert task.alphabet[block[task.start + 2 + digits]] == ';' and len(working) == digits
    assert [(w - base) % base for w in working] == said[:0:-1]  # the digits, least significant first
    carry = 0
    for w, x, y in zip(working, a[::-1], b[::-1]):
      carry = (x + y + carry) // base
      assert (w - base) // base == carry
    assert block[-1] == carry == block[task.hard]
    carries.append(carry)
  assert 1 - np.mean(carries) == pytest.approx(task.chance, abs=0.05)
