"""The causality rule."""

import numpy as np

from framework import timestamps


def test_decoder_is_lower_triangular():
  tau = timestamps.decoder_stamps(4)
  np.testing.assert_array_equal(timestamps.may_read(tau, tau), np.tril(np.ones((4, 4), bool)))


def test_segments_are_blocks():
  tau, segments = np.arange(4), np.array([[1, 1, 2, 2]])
  expected = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], bool)
  np.testing.assert_array_equal(timestamps.may_read(tau, tau, segments, segments)[0], expected)


def test_equal_stamps_read_each_other_and_score_only_later_tokens():
  tau = np.array([2, 2, 3])
  np.testing.assert_array_equal(timestamps.may_read(tau, tau), [[1, 1, 0], [1, 1, 0], [1, 1, 1]])
  np.testing.assert_array_equal(timestamps.may_score(tau, np.array([2, 3, 4])), [False, True, True])


def test_a_cached_query_continues_the_count():
  np.testing.assert_array_equal(timestamps.may_read(timestamps.decoder_stamps(1, 2), timestamps.decoder_stamps(4)),
                                [[True, True, True, False]])
