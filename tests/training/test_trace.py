"""The profiler's trace of some steps."""

import os
import signal

import jax
import pytest

from framework.config import ConfigError
from framework.training import trace


@pytest.mark.parametrize('text, steps', [('', []), ('20:22', [20, 21, 22]), ('1:1', [1])])
def test_steps_are_read(text, steps):
  assert list(trace.steps_of(text)) == steps


@pytest.mark.parametrize('text', ['20', '5:4', '0:3', ':', 'a:b', '-1:3', '1:2:3', '1.5:3'])
def test_other_steps_are_refused(text):
  with pytest.raises(ConfigError, match=f"--profile is '{text}'; expected the first and the last step, as 20:25"):
    trace.steps_of(text)


@pytest.mark.parametrize('start, end, wanted', [
    (1, 10, [(4, 'on'), (7, 'off')]), (5, 10, [(5, 'on'), (7, 'off')]), (1, 5, [(4, 'on'), ('end', 'off')]),
    (7, 10, []), (1, 3, [])])
def test_the_trace_begins_and_ends_with_its_steps_or_the_run(monkeypatch, tmp_path, start, end, wanted):
  seen, now = [], [0]
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: seen.append((now[0], 'on')))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: seen.append((now[0], 'off')))
  with trace.of(tmp_path, trace.steps_of('4:6')) as at:
    for number in range(start, end + 1):
      now[0] = number
      at(number)
    now[0] = 'end'
  assert seen == wanted


def test_a_signal_asks_for_the_next_steps(monkeypatch, tmp_path):
  seen, before = [], signal.getsignal(signal.SIGPROF)
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: seen.append((number, 'on')))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: seen.append((number, 'off')))
  with trace.of(tmp_path, trace.steps_of('2:3')) as at:
    for number in range(1, 20):
      if number in (3, 5, 12):
        os.kill(os.getpid(), signal.SIGPROF)
      at(number)
  assert seen == [(2, 'on'), (4, 'off'), (4, 'on'), (9, 'off'), (9, 'on'), (14, 'off'), (14, 'on'), (19, 'off')]
  assert signal.getsignal(signal.SIGPROF) is before
