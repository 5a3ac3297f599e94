"""Windows: every token a target exactly once, documents kept apart, the same for any host, step and thread."""

import itertools

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from framework.config import ConfigError
from framework.data import windows
from framework.data.corpus import Split

END = 256


def split_of(tokens, folder):
  tokens = np.asarray(tokens, '<u2')
  path = folder / f'{len(list(folder.iterdir()))}.bin'
  tokens.tofile(path)
  starts = np.flatnonzero(tokens[:-1] == END)
  return Split(str(path), tokens.dtype, len(tokens), starts, int((tokens != END).sum()), len(starts))


def documents(lengths, rng):
  """The layout of a corpus: an end before every document and one after the last."""
  parts = [np.concatenate([[END], rng.integers(0, 256, length)]) for length in lengths]
  return np.concatenate([*parts, [END]])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('splits')


@pytest.fixture(scope='module')
def split(folder):
  rng = np.random.default_rng(0)
  return split_of(documents(rng.integers(1, 60, 40), rng), folder)


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@hypothesis.given(lengths, st.integers(1, 24), st.integers(1, 24), st.booleans())
@hypothesis.settings(deadline=None, max_examples=300)
def test_every_token_is_a_target_exactly_once(folder, lengths, window, stride, packed):
  stride = min(stride, window)
  tokens = documents(lengths, np.random.default_rng(len(lengths)))
  split = split_of(tokens, folder)
  total = windows.count(len(tokens), stride)
  made = windows.Windows(split, END, window, stride, packed).batch(np.arange(total))
  seen = np.zeros(len(tokens), int)
  for w in range(total):
    # The definition, a token at a time.
    first, last = 1 + w * stride, min(1 + (w + 1) * stride, len(tokens))
    start = max(0, last - 1 - window)
    for i in range(window):
      place = start + i + 1
      if place < len(tokens):
        assert made['tokens'][w, i] == tokens[place - 1]
        assert made['targets'][w, i] == tokens[place]
        assert made['segments'][w, i] >= 1
        assert made['weights'][w, i] == (first <= place < last)
        seen[place] += int(made['weights'][w, i])
      else:
        assert len(tokens) < window + 1
        assert made['segments'][w, i] == 0 and made['weights'][w, i] == 0
  assert seen[0] == 0 and (seen[1:] == 1).all()
  np.testing.assert_array_equal(made.pop('start'), [max(0, min((w + 1) * stride, len(tokens) - 1) - window)
                                                    for w in range(total)])
  for name, array in made.items():
    assert array.shape == (total, window), name
    assert array.dtype == (np.float32 if name == 'weights' else np.int32), name


def test_context_is_at_least_window_minus_stride(split):
  window, stride = 32, 5
  total = windows.count(split.tokens, stride)
  made = windows.Windows(split, END, window, stride, False).batch(np.arange(total))
  for weights in made['weights'][(window + stride - 1) // stride:]:
    assert np.flatnonzero(weights)[0] >= window - stride


@hypothesis.given(lengths, st.integers(1, 24), st.data())
@hypothesis.settings(deadline=None)
def test_packed_segments_are_documents(folder, lengths, window, data):
  stride = data.draw(st.integers(1, window))
  tokens = documents(lengths, np.random.default_rng(1))
  split = split_of(tokens, folder)
  document_of = np.cumsum(tokens == END)  # an end belongs to the document that it opens
  total = windows.count(len(tokens), stride)
  made = windows.Windows(split, END, window, stride, True).batch(np.arange(total))
  for w in range(total):
    start = max(0, min((w + 1) * stride, len(tokens) - 1) - window)
    real = min(window, len(tokens) - 1)
    own = document_of[start:start + real]
    np.testing.assert_array_equal(made['segments'][w, :real], own - own[0] + 1)
    firsts = np.array([np.flatnonzero(own == document)[0] for document in own])
    np.testing.assert_array_equal(made['positions'][w, :real], np.arange(real) - firsts)
    # A target is in its input's document, or is the end that closes it.
    after = document_of[start + 1:start + 1 + real]
    closing = made['targets'][w, :real] == END
    assert ((after == own) | closing).all() and (after == own + closing).all()
    assert (made['positions'][w, real:] == 0).all()


def test_unpacked_windows_run_through(split):
  made = windows.Windows(split, END, 40, 40, False).batch(np.array([0, 3]))
  assert (made['segments'] == 1).all()
  assert (made['positions'] == np.arange(40)).all()
  packed = windows.Windows(split, END, 40, 40, True).batch(np.array([0, 3]))
  for name in ('tokens', 'targets', 'weights'):
    np.testing.assert_array_equal(made[name], packed[name])
  assert packed['segments'].max() > 1


def test_one_hand_made_window(folder):
  split = split_of([END, 1, 2, END, 3, END], folder)
  made = windows.Windows(split, END, 4, 3, True).batch(np.array([0, 1]))
  assert made['tokens'].tolist() == [[END, 1, 2, END], [1, 2, END, 3]]
  assert made['targets'].tolist() == [[1, 2, END, 3], [2, END, 3, END]]
  assert made['weights'].tolist() == [[1, 1, 1, 0], [0, 0, 1, 1]]
  assert made['segments'].tolist() == [[1, 1, 1, 2], [1, 1, 2, 2]]
  assert made['positions'].tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
  short = windows.Windows(split, END, 7, 7, True).batch(np.array([0]))
  assert short['segments'].tolist() == [[1, 1, 1, 2, 2, 0, 0]]
  assert short['weights'].tolist() == [[1, 1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize('total,batch,seed', [(37, 5, 3), (1, 4, 0), (8, 8, 2**32 - 1), (30, 10, 7)])
def test_indices_of_the_first_epoch_are_grains(total, batch, seed):
  expected = grain.MapDataset.range(total).shuffle(seed)
  flat = np.concatenate([windows.indices(total, batch, seed, step) for step in range(-(-total // batch))])
  np.testing.assert_array_equal(flat[:total], [expected[i] for i in range(total)])


def test_the_orders_of_two_epochs_stay_as_they_are():
  """Pinned: the figures of the README are of runs in these orders, and a run goes on in the order that it began in."""
  flat = np.concatenate([windows.indices(12, 5, 3, step) for step in range(5)])
  assert flat[:24].tolist() == [4, 7, 11, 8, 2, 5, 10, 6, 1, 9, 3, 0, 9, 10, 4, 8, 0, 6, 3, 2, 7, 11, 5, 1]


seeds = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 2**32 - 2, 2**32 - 1]))


def epoch(total, batch, seed, number):
  """The order of one epoch, put together from the batches that hold it."""
  first, last = number * total // batch, -(-(number + 1) * total // batch)
  flat = np.concatenate([windows.indices(total, batch, seed, step) for step in range(first, last)])
  return flat[number * total - first * batch:][:total]


@hypothesis.given(st.integers(30, 60), st.integers(1, 40), seeds, st.integers(0, 10**6), st.integers(0, 40))
@hypothesis.example(1, 3, 0, 0, 1)  # one window
@hypothesis.example(1, 3, 2**32 - 1, 10**6, 2)
@hypothesis.example(12, 30, 2**32 - 1, 5, 13)  # a batch of more than an epoch
@hypothesis.settings(deadline=None, max_examples=10)  # grain is slow below some thousand windows, most where few
def test_an_epoch_is_a_permutation_and_hosts_see_their_rows_of_it(total, batch, seed, number, cut):
  order = epoch(total, batch, seed, number)
  assert (np.sort(order) == np.arange(total)).all() and order.dtype == np.int64
  step = number * total // batch
  whole = windows.indices(total, batch, seed, step)
  parts = [windows.indices(total, batch, seed, step, rows) for rows in (slice(0, cut), slice(cut, batch))]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  np.testing.assert_array_equal(windows.indices(total, batch, seed, step, slice(None, None, 3)), whole[::3])


@hypothesis.given(st.lists(st.tuples(seeds, st.integers(0, 40)), min_size=2, max_size=6, unique=True))
@hypothesis.example([(0, 1), (1, 0)])
@hypothesis.example([(0, 3), (1, 2), (2, 1), (3, 0)])
@hypothesis.example([(2**32 - 1, 1), (0, 0), (2**32 - 1, 2), (1, 0)])
@hypothesis.settings(deadline=None, max_examples=5)
def test_no_epoch_of_a_seed_is_one_of_another(pairs):
  orders = {tuple(epoch(60, 7, seed, number)) for seed, number in pairs}
  assert len(orders) == len(pairs) and tuple(range(60)) not in orders


def test_near_seeds_share_no_key():
  after = np.arange(1, 10**5, dtype=np.uint64) * np.uint64(windows.EPOCH) % np.uint64(2**32)
  assert np.minimum(after, 2**32 - after).min() >= 10**4


def test_neighbouring_seeds_and_epochs_have_nothing_in_common():
  """Two permutations agree at one place in the mean, at eight or more once in 100,000 times."""
  orders = [epoch(97, 97, seed, number) for seed in range(5) for number in range(5)]
  agreements = [(one == other).sum() for one, other in itertools.combinations([*orders, np.arange(97)], 2)]
  assert max(agreements) < 8 and np.mean(agreements) == pytest.approx(1, abs=0.2)


def take(split, steps, **changes):
  of_windows = {name: changes.pop(name) for name in ('stride', 'random_phase', 'left_out') if name in changes}
  batches = windows.Windows(split, END, 16, **{'stride': 12} | of_windows).batches(6, seed=4, **changes)
  out = list(itertools.islice(batches, steps))
  batches.close()
  return out


def same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize('prefetch', [0, 1, 5])
def test_resuming_and_prefetching_change_nothing(split, prefetch):
  whole = take(split, 30)
  for start in (0, 1, 17):
    for one, other in zip(whole[start:], take(split, 30 - start, start_step=start, prefetch=prefetch), strict=True):
      same(one, other)


@pytest.mark.parametrize('hosts', [2, 3, 6])
def test_hosts_share_the_global_batch(split, hosts):
  each = 6 // hosts
  parts = [take(split, 12, rows=slice(host * each, (host + 1) * each)) for host in range(hosts)]
  for step, whole in enumerate(take(split, 12)):
    same(whole, {name: np.concatenate([part[step][name] for part in parts]) for name in whole})
    assert whole['rows'].tolist() == list(range(6)) and whole['rows'].dtype == np.int32


def test_loader_reads_what_indices_say(split):
  total = windows.count(split.tokens, 12)
  for step, made in enumerate(take(split, 5, start_step=40), 40):
    made.pop('rows')
    same(made, windows.Windows(split, END, 16, 12, True).batch(windows.indices(total, 6, 4, step)))


def test_errors_of_the_thread_reach_the_caller(folder):
  split = split_of(np.arange(200), folder)
  with open(split.path, 'r+b') as file:
    file.truncate(100)
  with pytest.raises(OSError, match='ends before'):
    take(split, 20)


@pytest.mark.parametrize('batch_size,stride', [(1, 16), (7, 16), (8, 5), (1000, 16)])
def test_evaluation_scores_every_token_once(split, batch_size, stride):
  made = list(windows.Windows(split, END, 16, stride).each(batch_size))
  assert {batch['tokens'].shape for batch in made} == {(batch_size, 16)}
  assert sum(batch['weights'].sum() for batch in made) == split.tokens - 1
  total = windows.count(split.tokens, stride)
  assert len(made) == -(-total // batch_size)
  rows = np.concatenate([batch['tokens'] for batch in made])[:total]
  np.testing.assert_array_equal(rows, windows.Windows(split, END, 16, stride, True).batch(np.arange(total))['tokens'])


def test_evaluation_on_a_sample_and_on_hosts(split):
  text = windows.Windows(split, END, 16, 16)
  total = windows.count(split.tokens, 16)
  whole = list(text.each(4, 10))
  kept = np.concatenate([batch['tokens'][batch['weights'].any(axis=1)] for batch in whole])
  expected = [i * total // 10 for i in range(10)]
  np.testing.assert_array_equal(kept, windows.Windows(split, END, 16, 16, True).batch(np.array(expected))['tokens'])
  halves = [list(text.each(4, 10, half)) for half in (slice(0, 2), slice(2, 4))]
  for step, batch in enumerate(whole):
    same(batch, {name: np.concatenate([half[step][name] for half in halves]) for name in batch})
  assert len(list(text.each(4, 10**6))) == -(-total // 4)


@hypothesis.given(st.integers(2, 90), st.integers(1, 24), st.integers(1, 24), st.data())
@hypothesis.settings(deadline=None, max_examples=100)
def test_with_a_phase_every_token_is_still_a_target_exactly_once(folder, tokens, window, stride, data):
  stride = min(stride, window)
  phase = data.draw(st.integers(0, stride - 1))
  split = split_of(np.arange(tokens), folder)
  total = windows.count(tokens, stride, random_phase=True)
  made = windows.Windows(split, END, window, stride, False).batch(np.arange(total), phase_B=np.full(total, phase))
  scored = made['targets'][made['weights'] > 0]
  np.testing.assert_array_equal(np.sort(scored), np.arange(1, tokens))
  firsts = [min(t[w > 0]) for t, w in zip(made['targets'], made['weights']) if w.any()]
  assert all(first % stride == (1 - phase) % stride for first in firsts[1:])


def test_scoring_whole_windows_scores_each_token_window_over_stride_times(folder):
  split = split_of(np.arange(200), folder)
  for stride, times in ((12, 1), (4, 3), (3, 4), (1, 12)):
    total = windows.count(200, stride)
    made = windows.Windows(split, END, 12, stride, False, scored='window').batch(np.arange(total))
    counts = np.bincount(made['targets'][made['weights'] > 0], minlength=200)
    assert counts[0] == 0 and (counts[1:200 - 12] == times).all() and counts.max() == times


def test_unscored_first_targets_are_a_stride_in_other_words(folder):
  """With a tenth of each window unscored nothing is lost if the stride is nine tenths of it (PaLM's setting)."""
  split = split_of(np.arange(401), folder)
  def scored(stride, unscored):
    text = windows.Windows(split, END, 20, stride, False, scored='window', unscored=unscored)
    made = text.batch(np.arange(windows.count(401, stride)))
    return np.bincount(made['targets'][made['weights'] > 0], minlength=401), made
  lost, made = scored(20, 0.1)
  assert (made['weights'][:, :2] == 0).all() and (made['weights'][:, 2:] == 1).all()
  assert set(np.flatnonzero(lost == 0)) == {0} | {1 + 20 * w + i for w in range(20) for i in (0, 1)}
  kept, made = scored(18, 0.1)
  assert kept[0] == 0 and (kept[1:] == 1).all()
  same(made, windows.Windows(split, END, 20, 18, False).batch(np.arange(len(made['tokens']))))


def test_phases_are_those_of_epochs(split):
  total = windows.count(split.tokens, 12, True)
  places = np.concatenate([windows.phases(total, 7, 3, step, 12) for step in range(60)])
  by_epoch = [set(places[e * total:(e + 1) * total]) for e in range(len(places) // total)]
  assert len(by_epoch) > 3 and all(len(seen) == 1 for seen in by_epoch) and len(set.union(*by_epoch)) > 2
  assert (0 <= places).all() and (places < 12).all()
  some, ninth = (windows.phases(total, 7, 3, 9, 12, rows) for rows in (slice(2, 4), slice(None)))
  np.testing.assert_array_equal(some, ninth[2:4])
  whole = take(split, 3 * total // 6, random_phase=True)
  epoch = np.concatenate([batch['targets'][batch['weights'] > 0] for batch in whole[:total // 6]])
  assert len(epoch) >= (total - 6) * 11  # the first and the last window of the epoch may be short
  for one, other in zip(whole[17:], take(split, len(whole) - 17, random_phase=True, start_step=17), strict=True):
    same(one, other)


@pytest.mark.parametrize('stride', [5, 16])
@pytest.mark.parametrize('parts', [2, 3, 5])
def test_folds_share_no_document_and_no_window(split, parts, stride):
  places = windows.folds(split, parts)
  assert places[0] == 0 and places[-1] == split.tokens and set(places[1:-1]) <= set(split.starts)
  assert np.abs(np.diff(places) - split.tokens / parts).max() < 60  # the longest document
  total = windows.count(split.tokens, stride)
  for first, end in zip(places[:-1], places[1:]):
    low, high = windows.touching(split, first, end, 16, stride)
    touched = []
    for w in range(total):
      last = min((w + 1) * stride, split.tokens - 1)
      touched.append(last >= first and max(0, last - 16) < end)
    np.testing.assert_array_equal(np.flatnonzero(touched), np.arange(low, high))
    left = windows.skip(np.arange(total - (high - low)), (low, high))
    np.testing.assert_array_equal(left, np.flatnonzero(~np.array(touched)))
    for batch in take(split, 20, stride=stride, left_out=(low, high)):
      begin = batch['start'].astype(int)
      assert ((begin >= end) | (begin + 16 < first)).all()


def test_too_many_folds_are_refused(split):
  with pytest.raises(ConfigError, match='data.folds is 60; the training text has 40 documents'):
    windows.folds(split, 60)


def test_more_arrays_are_those_of_the_windows(split):
  total = windows.count(split.tokens, 12)
  made = take(split, 5, extra=lambda picked: {'number': picked})
  for step, batch in enumerate(made):
    np.testing.assert_array_equal(batch['number'], windows.indices(total, 6, 4, step))
