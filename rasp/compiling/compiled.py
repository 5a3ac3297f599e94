"""What compiling gives: a program as a decoder that runs, and a report of its sizes and of what is proven."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from rasp import activations, decoder, interpreter
from rasp.compiling import wiring
from rasp.compiling.readout import Readout
from rasp.compiling.schedule import Plan
from rasp.compiling.wiring import Wiring
from rasp.language import RaspError, SOp, Value


@dataclasses.dataclass(frozen=True)
class Report:
  """How large a compiled program is, and what is proven: |decoder - exact| <= bound for 1 .. longest tokens."""
  layers: int
  heads: int
  head_width: int
  width: int
  feedforward: int
  parameters: int
  nonzero: int
  largest_weight: float
  bound: float
  longest: int
  dtype: str
  causal: bool
  assumed: tuple[str, ...]  # aggregates whose one selected value is not proven, only checked

  def __str__(self) -> str:
    return ', '.join(f'{f.name} {getattr(self, f.name)}' for f in dataclasses.fields(self) if f.name != 'assumed') + (
        f"; selects one value, checked and not proven: {', '.join(self.assumed)}" if self.assumed else '')


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
  """A program as a decoder: `model` and `params` are the framework's own, `module` runs them.

  Token 0 stands before every input; token 1 + v is number v of `vocabulary`. `outputs` maps token ids to the values
  that they say. A number that is not listed there is logit 0 itself: where there are no outputs, and where the token
  that is said is `number`.
  """
  name: str
  model: decoder.Model
  params: Any
  vocabulary: tuple[Value, ...]
  outputs: dict[int, Value]
  report: Report
  program: SOp
  readout: Readout
  number: int = 0
  plan: Plan | None = None
  saved: Wiring | None = None  # of a program that was loaded

  @property
  def module(self):
    return decoder.build(self.model, self.params['embedding'].shape[0], self.report.longest + 1)

  def tokenize(self, sequences: Sequence[Sequence[Value]], length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments) [B, 1 + length] with BOS in front; segment 0 is padding. Raises RaspError."""
    place = {v: 1 + i for i, v in enumerate(self.vocabulary)}
    length = length or max(map(len, sequences))
    tokens = np.zeros((len(sequences), 1 + length), np.int32)
    segments = np.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
      interpreter.check_tokens(sequence, self.vocabulary)
      if not 1 <= len(sequence) <= self.report.longest:
        raise RaspError(self.program.source, f"an input of {len(sequence)} tokens; '{self.name}' was compiled for 1 to "
                                             f'{self.report.longest}, compile with longest={len(sequence)}')
      tokens[row, 1:1 + len(sequence)] = [place[v] for v in sequence]
      segments[row, :1 + len(sequence)] = 1
    return tokens, segments

  def forward(self, tokens_BxL: np.ndarray, segments_BxL: np.ndarray, params: Any = None):
    """(hidden states [B, L, D], logits [B, L, V]); products in full precision on every device."""
    return decoder.run(self.module, self.params if params is None else params, tokens_BxL, segments_BxL)

  @functools.cached_property
  def wiring(self) -> Wiring:
    """Which heads and units compute which s-op, what they read, and which direction holds what: the circuit."""
    if self.saved is not None:
      return self.saved
    assert self.plan is not None  # what was not loaded was compiled
    return wiring.wiring(self.plan)

  def circuit(self) -> list[tuple[str, str]]:
    """Which heads and units compute which s-op: what interpretability methods are asked to find."""
    where = lambda p: f'layer {p.layer + 1} ' + (
        f'head {p.numbers[0] + 1}' if p.kind == 'head' else f'units {p.numbers[0] + 1}-{p.numbers[-1] + 1}')
    parts = sorted(self.wiring.parts, key=lambda p: p.kind)  # heads first
    return [(where(p), p.sop) for p in parts if p.numbers]

  def activations(self, sequence: Iterable[Value], exchange: activations.Exchange | None = None
                  ) -> activations.Activations:
    """Everything that the decoder computes on one input, in NumPy."""
    return activations.run(self.model, self.params, self.tokenize([list(sequence)])[0][0], exchange)

  def residual(self, sequence: Iterable[Value]) -> dict[str, np.ndarray]:
    """The number that each direction holds at every position after BOS, when it has been written: {variable: [L]}.
    A variable of several directions is counted: histogram, histogram.2, .."""
    stream = self.activations(sequence).residual_2NxTxD
    out: dict[str, np.ndarray] = {}
    for v in self.wiring.variables:
      number = sum(name.split('.')[0] == v.of for name in out)
      out[v.of if not number else f'{v.of}.{number + 1}'] = stream[v.born + 1, 1:, v.dim]
    return out

  def attention(self, sequence: Iterable[Value]) -> dict[str, np.ndarray]:
    """The attention weights of each head, BOS first: {part: [1 + L, 1 + L]}."""
    weights = self.activations(sequence).weights_NxHxTxT
    return {p.name: weights[p.layer, p.numbers[0]] for p in self.wiring.parts if p.kind == 'head'}

  def ablate(self, part: str) -> 'Compiled':
    """The same program without one part of its wiring, whose output is multiplied by 0."""
    p = self.wiring.part(part)
    name = 'out' if p.kind == 'head' else 'down'
    weight = self.params['blocks'][name]['weight'].copy()
    weight[p.layer, list(p.numbers)] = 0
    blocks = self.params['blocks'] | {name: self.params['blocks'][name] | {'weight': weight}}
    return dataclasses.replace(self, params=self.params | {'blocks': blocks}, saved=self.wiring)

  def patch(self, sequence: Iterable[Value], part: str, other: Iterable[Value]) -> list[Value]:
    """The output on `sequence` with one part's activations taken from another input of the same length: an
    interchange intervention (Geiger et al. 2021, arXiv:2106.02997). Raises RaspError where the lengths differ."""
    sequence, other = list(sequence), list(other)
    if len(sequence) != len(other):
      raise RaspError(self.program.source, f'inputs of {len(sequence)} and {len(other)} tokens; expected one length')
    p, there = self.wiring.part(part), self.activations(other)
    exchange = {('head', p.layer, h): there.heads_NxHxTxK[p.layer, h] for h in p.numbers} if p.kind == 'head' else {
        ('unit', p.layer, u): there.units_NxTxF[p.layer, :, u] for u in p.numbers}
    return self.decode(self.activations(sequence, exchange).logits_TxV[None])[0]

  def decode(self, logits_BxLxV: np.ndarray) -> list[list[Value]]:
    """The values that logits say, BOS left out."""
    logits = np.asarray(logits_BxLxV)[:, 1:]
    numbers = logits[..., 0].astype(float).tolist()
    if not self.outputs:
      return numbers
    said = 1 + logits[..., 1:].argmax(-1)
    return [[number if t == self.number else self.outputs.get(int(t)) for t, number in zip(*row)]
            for row in zip(said, numbers)]

  def batch(self, sequences: Sequence[Sequence[Value]], length: int = 0, params: Any = None) -> list[list[Value]]:
    """The outputs of several inputs at once."""
    _, logits = self.forward(*self.tokenize(sequences, length), params)
    return [row[:len(s)] for row, s in zip(self.decode(logits), sequences)]

  def __call__(self, sequence: Iterable[Value]) -> list[Value]:
    return self.batch([list(sequence)])[0]

  def errors(self, sequences: Sequence[Sequence[Value]], exact: Sequence[Sequence[Value]], length: int = 0
             ) -> np.ndarray:
    """|read out - exact| at every real position, flat: the distance that `report.bound` bounds."""
    hidden, _ = self.forward(*self.tokenize(sequences, length))
    rows = np.asarray(hidden, np.float64)[:, 1:]
    return np.concatenate([self.readout.errors(row, values) for row, values in zip(rows, exact)])

  def cached(self, sequence: Iterable[Value]) -> list[Value]:
    """The outputs, one token at a time from the cache. Raises RaspError where the program is not causal."""
    if not self.report.causal:
      raise RaspError(self.program.source, f"'{self.name}' reads later tokens; only a causal program runs with a cache")
    tokens, _ = self.tokenize([list(sequence)])
    cache = decoder.empty_cache(self.module, 1, tokens.shape[1])
    parts = []
    for i in range(tokens.shape[1]):
      _, logits, cache = decoder.extend(self.module, self.params, tokens[:, i:i + 1], i, cache)
      parts.append(np.asarray(logits))
    return self.decode(np.concatenate(parts, axis=1))[0]
