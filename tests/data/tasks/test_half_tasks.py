"""Tasks of a user's own file: whatever is no task is one line that names the file, when the task is made."""

import pytest

from framework.config import ConfigError
from framework.data import stream

TASK = '''import dataclasses
import numpy as np

@dataclasses.dataclass(frozen=True)
class Task:
  alphabet = 'ab'
  length = 2

  def block(self, rng):
    return np.array([0, 1])
'''


def made(tmp_path, text):
  (tmp_path / 'half.py').write_text(text)
  return stream.task_of(f'{tmp_path}/half.py')


@pytest.mark.parametrize('block', ['np.array([0, 1])', '[2, 0]', 'rng.integers(3, size=2)', 'np.array([True, False])'])
def test_what_a_block_may_be(tmp_path, block):
  assert made(tmp_path, TASK.replace('np.array([0, 1])', block)).length == 2


@pytest.mark.parametrize('old,new,words', [
    ('np.array([0, 1])', 'np.array([0, 1, 1])', ['shape (3,)', 'expected 2 whole numbers']),
    ('np.array([0, 1])', 'np.array([0.0, 0.5])', ['float64', 'expected 2 whole numbers']),
    ('np.array([0, 1])', 'np.array([0, 7])', ['the token 7', 'expected 0 to 2']),
    ('np.array([0, 1])', 'np.array([0, -1])', ['the token -1']),
    ('np.array([0, 1])', 'None', ['block(rng) gives None']),
    ('np.array([0, 1])', 'np.array(0)', ['shape ()']),
    ('return np.array([0, 1])', 'raise RuntimeError("bug")', ['fails in block at line 10 (RuntimeError: bug)']),
    ('def block(self, rng)', 'def block(self)', ['block() at line 9', 'called as block(rng)']),
    ("alphabet = 'ab'", "alphabet = ''", ["alphabet is ''"]),
    ("alphabet = 'ab'", "alphabet = 'aba'", ["'a' twice"]),
    ("alphabet = 'ab'", "alphabet = None", ['alphabet is None']),
    ('length = 2', 'length = 0', ['length is 0', 'at least 1']),
    ('length = 2', 'length = None', ['length is None']),
    ('length = 2', 'length = 2.0', ['length is 2.0']),
    ('@dataclasses.dataclass(frozen=True)', '', ['no dataclass']),
])
def test_half_a_task_is_one_line(tmp_path, old, new, words):
  assert old in TASK
  with pytest.raises(ConfigError) as caught:
    made(tmp_path, TASK.replace(old, new))
  line = str(caught.value)
  assert line.startswith(f"data.task is '{tmp_path}/half.py'") and '\n' not in line
  assert all(word in line for word in words), line


def test_a_block_that_something_else_than_rng_decides_is_refused(tmp_path):
  counted = TASK.replace('class Task:', 'class Task:\n  calls = []').replace(
      'return np.array([0, 1])', 'self.calls.append(0)\n    return np.array([0, len(self.calls) % 2])')
  with pytest.raises(ConfigError, match='two blocks for one state of rng'):
    made(tmp_path, counted)
  with pytest.raises(ConfigError, match='Task is 3; expected a class'):
    made(tmp_path, 'Task = 3\n')
