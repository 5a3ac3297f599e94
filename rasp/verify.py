"""A compiled program against the interpreter: every short input, random longer ones, and the closest calls."""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from rasp import interpreter
from rasp.compiler import Compiled
from rasp.language import SOp, Value

BATCH = 512


@dataclasses.dataclass(frozen=True)
class Verdict:
  """wrong: inputs with a wrong value anywhere; worst: the largest distance from the exact value."""
  inputs: int
  wrong: int
  worst: float
  first: tuple[Any, ...] | None = None  # input, expected, got

  @property
  def right(self) -> bool:
    return self.wrong == 0


def inputs(vocabulary: Sequence[Value], longest: int, exhaustive: int, samples: int, seed: int
           ) -> Iterator[list[Value]]:
  """Every input of up to `exhaustive` tokens, then for each longer length `samples` random and all adversarial ones."""
  rng = np.random.default_rng(seed)
  for n in range(1, longest + 1):
    if n <= exhaustive:
      yield from map(list, itertools.product(vocabulary, repeat=n))
      continue
    yield from adversarial(vocabulary, n)
    for _ in range(samples):
      # Few distinct tokens as often as many: equal counts are the closest calls.
      some = rng.choice(len(vocabulary), rng.integers(1, len(vocabulary) + 1), replace=False)
      yield [vocabulary[i] for i in rng.choice(some, n)]


def adversarial(vocabulary: Sequence[Value], n: int) -> Iterator[list[Value]]:
  """Largest and nearly largest counts (one token, one exception), equal counts, matches at both ends."""
  a, b = vocabulary[0], vocabulary[-1]
  yield [a] * n
  yield [b] * n
  yield [a] * (n - 1) + [b]
  yield [b] + [a] * (n - 1)
  yield [a] * (n // 2) + [b] * (n - n // 2)
  yield ([a, b] * n)[:n]
  yield [vocabulary[i % len(vocabulary)] for i in range(n)]


def verify(compiled: Compiled, program: SOp, exhaustive: int = 5, samples: int = 40, seed: int = 0) -> Verdict:
  """Runs the decoder, jitted, on many inputs; `program` is the s-op that the interpreter takes."""
  total = wrong = 0
  worst, first = 0.0, None
  longest = compiled.report.longest
  rows = inputs(compiled.vocabulary, longest, min(exhaustive, longest), samples, seed)
  while batch := list(itertools.islice(rows, BATCH)):
    padded = batch + [batch[-1]] * (BATCH - len(batch))
    got = compiled.batch(padded, longest)
    want = [interpreter.run(program, row) for row in batch]
    distance = compiled.errors(padded, want + [want[-1]] * (BATCH - len(batch)), longest)
    worst = max(worst, float(distance.max()))
    for row, expected, found in zip(batch, want, got):
      total += 1
      if not equal(expected, found):
        wrong += 1
        first = first or (row, expected, found)
  return Verdict(total, wrong, worst, first)


def equal(expected: Sequence[Value], found: Sequence[Value]) -> bool:
  """Exact for what is decoded to values; numbers that are read out may differ by 1e-3."""
  return len(expected) == len(found) and all(
      e == f and (e is None) == (f is None) if not isinstance(f, float) else abs(float(e) - f) < 1e-3
      for e, f in zip(expected, found))


def ablate(compiled: Compiled, layer: int, head: int) -> Compiled:
  """The same program without one head: its output is multiplied by 0."""
  params = jax.tree.map(np.array, compiled.params)
  params['blocks']['out']['weight'][layer, head] = 0
  return dataclasses.replace(compiled, params=params)


def swap_layer(compiled: Compiled, layer: int, params: Any) -> Compiled:
  """The same program with one layer's parameters taken from `params`, for example a trained copy."""
  blocks = jax.tree.map(lambda mine, theirs: np.where(
      (np.arange(len(mine)) == layer).reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine),
      compiled.params['blocks'], params['blocks'])
  return dataclasses.replace(compiled, params=compiled.params | {'blocks': blocks})
