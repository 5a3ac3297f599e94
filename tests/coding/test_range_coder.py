"""The range coder: any symbols under any counts come back, at the price that the counts ask for."""

import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from framework.coding import range_coder


def code(intervals):
  encoder = range_coder.Encoder()
  for interval in intervals:
    encoder.encode(*interval)
  return encoder.finish()


@st.composite
def interval(draw):
  total = draw(st.one_of(st.integers(1, 9), st.integers(1, range_coder.MOST)))
  first = draw(st.one_of(st.just(0), st.integers(0, total - 1)))
  size = draw(st.one_of(st.just(1), st.just(total - first), st.integers(1, total - first)))
  return first, size, total


@settings(max_examples=300, deadline=None)
@given(st.lists(interval(), max_size=60))
def test_what_goes_in_comes_out_at_its_price(intervals):
  data = code(intervals)
  bits = sum(math.log2(total / size) for _, size, total in intervals)
  assert 8 * len(data) <= bits + 2**-14 * len(intervals) + 16
  decoder = range_coder.Decoder(data)
  for first, size, total in intervals:
    assert first <= decoder.peek(total) < first + size
    decoder.take(first, size, total)


def test_carries_run_through_many_bytes():
  """The last of 3 symbols again and again makes `low` creep up to a power of 2; then the first ones, then a carry."""
  intervals = [(2**24 - 1, 1, 2**24)] * 40 + [(1, 1, 3)] * 40 + [(2**23, 2**23, 2**24)] * 30
  for n in range(1, len(intervals)):
    decoder = range_coder.Decoder(code(intervals[:n]))
    for first, size, total in intervals[:n]:
      assert first <= decoder.peek(total) < first + size
      decoder.take(first, size, total)


@pytest.mark.parametrize('data', [b'', b'\0' * 9, b'\xff' * 40, bytes(range(256))])
def test_any_bytes_decode_to_something(data):
  decoder = range_coder.Decoder(data)
  for total in np.random.default_rng(0).integers(1, range_coder.MOST, 400).tolist():
    assert 0 <= (count := decoder.peek(total)) < total
    decoder.take(count, 1, total)


def test_the_test_sees_a_coder_without_carries(monkeypatch):
  def drop(self):
    self._low &= (1 << 48) - 1
  monkeypatch.setattr(range_coder.Encoder, '_carry', drop)
  with pytest.raises(AssertionError):
    test_carries_run_through_many_bytes()
