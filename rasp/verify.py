"""Whether a compiled program is right: against the interpreter on short, random and hard inputs; what its parts do."""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from rasp import interpreter
from rasp.compiling import Compiled
from rasp.language import SOp, Value

BATCH = 512
MOST = 20_000  # inputs of one length that are all tried


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the check of a program came to.

  wrong: inputs with a wrong value anywhere. worst: the largest distance from the exact value.
  """
  inputs: int
  wrong: int
  worst: float
  first: tuple[Any, ...] | None = None  # wrong one: input, expected, output

  @property
  def right(self) -> bool:
    return self.wrong == 0


def inputs(vocabulary: Sequence[Value], longest: int, exhaustive: int, samples: int, seed: int
           ) -> Iterator[list[Value]]:
  """Every input of up to `exhaustive` tokens, of lengths at which there are at most MOST; then for each longer length
  `samples` random and all adversarial ones, and at length 1 the whole vocabulary."""
  rng = np.random.default_rng(seed)
  for n in range(1, longest + 1):
    if n <= exhaustive and (n == 1 or len(vocabulary) ** n <= MOST):
      yield from map(list, itertools.product(vocabulary, repeat=n))
      continue
    yield from adversarial(vocabulary, n)
    for _ in range(samples):
      # Few distinct tokens as often as many: equal counts are the closest calls.
      tokens = rng.choice(len(vocabulary), rng.integers(1, len(vocabulary) + 1), replace=False)
      yield [vocabulary[i] for i in rng.choice(tokens, n)]


def adversarial(vocabulary: Sequence[Value], n: int) -> Iterator[list[Value]]:
  """Inputs that are hardest to get right: largest and nearly largest counts, equal counts, matches at both ends."""
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
    outputs = compiled.batch(padded, longest)
    exact = [interpreter.run(program, row) for row in batch]
    distance = compiled.errors(padded, exact + [exact[-1]] * (BATCH - len(batch)), longest)
    worst = max(worst, float(distance.max()))
    for row, expected, output in zip(batch, exact, outputs):
      total += 1
      if not equal(expected, output, max(1e-3, 1.01 * compiled.report.bound)):
        wrong += 1
        first = first or (row, expected, output)
  return Verdict(total, wrong, worst, first)


def equal(expected: Sequence[Value], output: Sequence[Value], tolerance: float = 1e-3) -> bool:
  """Whether an output is right: values exactly, numbers that are read out to `tolerance`."""
  return len(expected) == len(output) and all(
      e == f and (e is None) == (f is None) if not isinstance(f, float) or e is None or isinstance(e, str) else
      abs(float(e) - f) <= tolerance for e, f in zip(expected, output))


def ablate(compiled: Compiled, layer: int, head: int) -> Compiled:
  """The same program without one head, to see what that head is for: its output is multiplied by 0."""
  params = jax.tree.map(np.array, compiled.params)
  params['blocks']['out']['weight'][layer, head] = 0
  return dataclasses.replace(compiled, params=params)


def swap_layer(compiled: Compiled, layer: int, params: Any) -> Compiled:
  """The same program with one layer's parameters taken from `params`, for example a trained copy."""
  blocks = jax.tree.map(lambda own, other: np.where(
      (np.arange(len(own)) == layer).reshape(-1, *[1] * (own.ndim - 1)), other, own),
      compiled.params['blocks'], params['blocks'])
  return dataclasses.replace(compiled, params=compiled.params | {'blocks': blocks})
