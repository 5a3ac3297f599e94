"""The mask: its dense form against a condition at a time, its blocks against its dense form."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.attention import mask as mask_lib
from pallas_kernels.attention.dispatch import make_mask
from tests.kernels import cases, oracle


@st.composite
def requests(draw):
  """(Q, T, block_q, block_k, keyword arguments) for a batch of 2 and 2 heads."""
  Q, T = draw(st.integers(1, 40)), draw(st.integers(1, 40))
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  out = {}
  if draw(st.booleans()):
    out['is_causal'] = True
    if draw(st.booleans()):
      out['prefix_lengths'] = rng.integers(0, T + 2, 2)
  if draw(st.integers(0, 3)) == 0:
    out['local_window_size'] = tuple(int(x) for x in rng.integers(0, 12, 2))
  if draw(st.integers(0, 3)) == 0:
    out['key_value_seq_lengths'] = rng.integers(0, T + 1, 2)
  if draw(st.integers(0, 3)) == 0:
    out['query_seq_lengths'] = rng.integers(0, Q + 1, 2)
  if draw(st.integers(0, 2)) == 0:
    out['segment_ids'] = (np.sort(rng.integers(0, 4, (2, Q))), np.sort(rng.integers(0, 4, (2, T))))
  if draw(st.integers(0, 2)) == 0:
    out['stamps'] = (rng.integers(-2, 20, (1, Q)), np.sort(rng.integers(0, 20, (2, T))))
  if draw(st.integers(0, 3)) == 0:
    out['mask'] = rng.random((2, draw(st.sampled_from((1, 2))), Q, T)) < draw(st.sampled_from((0.02, 0.5, 0.98)))
  return Q, T, draw(st.sampled_from((1, 4, 8, 16))), draw(st.sampled_from((1, 4, 8, 16))), out


def check_blocks(Q, T, block_q, block_k, arguments):
  mask = make_mask((2, Q, 2, 8), T, **arguments)
  expected = oracle.allowed(2, 2, Q, T, **arguments)
  array = mask.array()
  np.testing.assert_array_equal(np.broadcast_to(True if array is None else array, expected.shape), expected)
  kinds = np.broadcast_to(mask.kinds(block_q, block_k), (2, 2, -(-Q // block_q), -(-T // block_k)))
  for b, h, i, j in np.ndindex(kinds.shape):
    tile = expected[b, h, i * block_q:(i + 1) * block_q, j * block_k:(j + 1) * block_k]
    assert kinds[b, h, i, j] != mask_lib.SKIP or not tile.any()
    assert kinds[b, h, i, j] != mask_lib.FULL or (tile.all() and tile.shape[1] == block_k)
  for by_key, table in ((False, kinds), (True, kinds.swapaxes(2, 3))):
    order, full, visible = mask.schedule(block_q, block_k, by_key=by_key)
    order = np.broadcast_to(order, table.shape)
    sorted_kinds = np.take_along_axis(table, order, axis=-1)
    assert (np.diff(sorted_kinds.astype(int), axis=-1) <= 0).all()
    np.testing.assert_array_equal(np.broadcast_to(full, table.shape[:3]), (table == mask_lib.FULL).sum(-1))
    np.testing.assert_array_equal(np.broadcast_to(visible, table.shape[:3]), (table != mask_lib.SKIP).sum(-1))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(requests())
def test_array_and_blocks_say_what_the_words_say(request):
  check_blocks(*request)


@pytest.mark.parametrize('field', ['empty too early', 'full too early'])
def test_a_block_off_by_one_is_seen(field, monkeypatch):
  original = mask_lib.Mask.intervals
  def wrong(self):
    start, end = original(self)
    return start, end + (1 if field == 'full too early' else -1)
  kinds = mask_lib.Mask.kinds
  def off_by_one(self, *blocks):
    with monkeypatch.context() as patch:
      patch.setattr(mask_lib.Mask, 'intervals', wrong)
      return kinds(self, *blocks)
  monkeypatch.setattr(mask_lib.Mask, 'kinds', off_by_one)
  with pytest.raises(AssertionError):
    for arguments in cases.attention_masks(32, 32).values():
      check_blocks(32, 32, 1, 1, arguments)


def test_blocks_are_skipped_exactly_where_a_simple_mask_allows():
  """Conservative is not enough: these masks have no block called partial that is empty or full."""
  for arguments in ({'is_causal': True}, {'local_window_size': (20, 0)}, {'is_causal': True, 'prefix_lengths': [40, 3]},
                    {'segment_ids': np.repeat(np.arange(4), 16)[None]}, {'stamps': np.arange(64) // 10}):
    mask = make_mask((2, 64, 1, 8), 64, **arguments)
    tiles = oracle.allowed(2, 1, 64, 64, **arguments).reshape(2, 1, 8, 8, 8, 8)
    expected = np.where(tiles.all((3, 5)), mask_lib.FULL, np.where(tiles.any((3, 5)), mask_lib.PARTIAL, mask_lib.SKIP))
    np.testing.assert_array_equal(np.broadcast_to(mask.kinds(8, 8), expected.shape), expected)


def test_blocks_of_a_static_mask_are_constants_of_the_program():
  def order():
    return make_mask((1, 64, 1, 8), 64, is_causal=True).schedule(8, 8)
  text = str(jax.make_jaxpr(order)())
  assert 'sort' not in text and 'min' not in text
