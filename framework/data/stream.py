"""An endless text of a synthetic language, addressed by token: it stands where a split of a corpus stands.

Block k of a split is drawn from a counter-based generator whose key is (seed, split, k). So any token is a pure
function of its place, whatever was read before, and nothing is stored.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any, get_type_hints

import numpy as np

from foundation import entries
from framework.config import ConfigError, Data, nearest
from framework.data import tasks
from framework.data import tokenizer as tokenizers

ENDLESS = 2**40  # tokens
HELD_OUT = 2**18  # tokens of the validation split
LAYOUT = 1  # part of every digest: raise it when the way blocks are drawn or joined changes


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """The split number `split` of `task`; the interface is that of `framework.data.corpus.Split`."""
  task: Any
  split: int
  tokens: int
  seed: int = 0

  @property
  def starts(self) -> np.ndarray:
    """Of documents; an endless text cannot list them."""
    return np.zeros(1, np.int64)

  @property
  def bytes(self) -> int:
    """A symbol counts as one byte."""
    return self.tokens

  @property
  def documents(self) -> int:
    return 1

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop), clipped to the split."""
    start, stop = max(0, start), min(stop, self.tokens)
    return self.rows(np.array([start]), max(0, stop - start))[0]

  def rows(self, starts_B: np.ndarray, length: int) -> np.ndarray:
    """int32 [B, length]: `length` tokens from each start."""
    T = self.task.length
    tokens_BxL = np.empty((len(starts_B), length), np.int32)
    for row_L, start in zip(tokens_BxL, map(int, starts_B)):
      first = start // T
      joined = np.concatenate([self._block(k) for k in range(first, max(first + 1, -(-(start + length) // T)))])
      row_L[:] = joined[start - first * T:][:length]
    return tokens_BxL

  def _block(self, number: int) -> np.ndarray:
    key = np.array([self.seed << 8 | self.split, number], np.uint64)
    return self.task.block(np.random.Generator(np.random.Philox(key=key)))


def task_of(text: str) -> Any:
  """The task that `data.task` describes: 'zipf_pairs', 'zipf_pairs:noise=0.1,symbols=32' or 'my_task.py:size=3'.

  Raises:
    ConfigError: there is no such task or setting, the task refuses its value, or is no task.
  """
  with entries.blaming():
    return checked(made(text), f"data.task is '{text}'")


def checked(task: Any, subject: str) -> Any:
  """The task itself. Raises ConfigError, which begins with the subject, if its alphabet or two of its blocks are not
  what the docstring of framework.data.tasks says."""
  alphabet, length = task.alphabet, task.length
  if not isinstance(alphabet, str) or not alphabet:
    raise ConfigError(f'{subject}, whose alphabet is {alphabet!r}; expected a string of distinct characters')
  if len(set(alphabet)) < len(alphabet):
    twice = next(symbol for symbol in alphabet if alphabet.count(symbol) > 1)
    raise ConfigError(f'{subject}, whose alphabet has {twice!r} twice; expected distinct characters')
  if not isinstance(length, (int, np.integer)) or length < 1:
    raise ConfigError(f'{subject}, whose length is {length!r}; expected the number of tokens of a block, at least 1')
  entries.check_takes(task.block, 'block(rng)', subject, tasks.__name__)
  blocks = []
  for number in (0, 1, 1):
    block = task.block(np.random.Generator(np.random.Philox(key=np.array([0, number], np.uint64))))
    tokens = np.asarray(block)
    entries.gives(tokens if tokens.dtype.kind in 'iubf' else block, tokens.shape == (length,) and
                  tokens.dtype.kind in 'iub', f'{length} whole numbers, as its length says', subject, 'block(rng)')
    outside = tokens[(tokens < 0) | (tokens > len(alphabet))]
    if len(outside):
      raise ConfigError(f'{subject}, whose block(rng) has the token {outside[0]}; expected 0 to {len(alphabet)}, of '
                        f'which {len(alphabet)} is the end of a document')
    blocks.append(tokens)
  if not np.array_equal(blocks[1], blocks[2]):
    raise ConfigError(f'{subject}, whose block(rng) gives two blocks for one state of rng; expected one that rng alone '
                      'decides, else no run can be repeated')
  return task


def made(text: str) -> Any:
  """As `task_of`, unchecked."""
  name, _, settings = text.partition(':')
  cls = entries.find(tasks, name, 'data.task', ('Task',)).Task
  if not isinstance(cls, type):
    raise ConfigError(f"data.task is '{text}', whose Task is {cls!r}; expected a class, as the docstring of "
                      f'{tasks.__name__} says')
  for need in ('alphabet', 'length', 'block'):
    if not hasattr(cls, need):
      raise ConfigError(f"data.task is '{text}', whose Task has no '{need}'; expected what the docstring of "
                        f'{tasks.__name__} says')
  if not dataclasses.is_dataclass(cls):
    raise ConfigError(f"data.task is '{text}', whose Task is no dataclass; expected @dataclasses.dataclass(frozen=True)")
  hints = get_type_hints(cls)  # types, also where annotations are strings
  fields: dict[str, Any] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
  given = {}
  for clause in filter(None, settings.split(',')):
    key, equals, value = clause.partition('=')
    if key not in fields or not equals:
      raise ConfigError(f"data.task is '{text}'; {name} has the settings {', '.join(fields)}, written key=value"
                        f'{nearest(key, fields)}')
    try:
      given[key] = fields[key](value)
    except ValueError:
      raise ConfigError(f"data.task is '{text}'; expected {fields[key].__name__} for {key}") from None
  return cls(**given)


def splits(data: Data) -> tuple[Stream, Stream, tokenizers.Symbols, str]:
  """(train, validation, tokenizer, digest) of `data.task`. Raises ConfigError."""
  if data.path or data.validation_path:
    key = 'data.path' if data.path else 'data.validation_path'
    raise ConfigError(f"{key} is '{getattr(data, key.split('.')[1])}' beside data.task '{data.task}'; expected one of "
                      'the two')
  task = task_of(data.task)
  name = data.task.partition(':')[0]
  if name.endswith('.py'):  # a file elsewhere is what it holds, whatever it is called
    name = pathlib.Path(name).expanduser().read_text(encoding='utf-8')
  digest = hashlib.sha256(f'{LAYOUT} {name} {task}'.encode()).hexdigest()[:32]
  return Stream(task, 0, ENDLESS), Stream(task, 1, HELD_OUT), tokenizers.Symbols(task.alphabet), digest
