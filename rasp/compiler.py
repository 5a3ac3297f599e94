"""Program -> decoder: rewrite, encode, schedule, prove, emit; and what comes out."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from framework import models
from framework.config import Model
from rasp import bound, emit, interpreter, language, rewrite, schedule
from rasp.domains import Analysis
from rasp.encode import Encoder
from rasp.language import Program, RaspError, SOp, Value

LONGEST = 64
MOST = 5000
CHECKED = 40  # random inputs on which an unproven "selects one value" is tried out before it is believed


@dataclasses.dataclass(frozen=True)
class Report:
  """Sizes, and what is proven: |decoder - exact| <= bound for every input of 1 .. longest tokens."""
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


@functools.partial(jax.jit, static_argnums=0)
def _forward(module, params, tokens_BxL, segments_BxL):
  positions = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
  x, _ = module.apply({'params': params}, tokens_BxL, positions, segments_BxL)
  return x, module.logits(params, x)


@functools.partial(jax.jit, static_argnums=0)
def _extend(module, params, tokens_BxL, first, cache):
  positions = first + jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
  x, cache = module.apply({'params': params}, tokens_BxL, positions, jnp.ones_like(tokens_BxL), cache=cache)
  return module.logits(params, x), cache


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
  """A program as a decoder: `model` and `params` are the framework's own, `module` runs them.

  Token 0 stands before every input; token 1 + v is number v of `vocabulary`. `outputs` maps token ids to the values
  that they say; None: the program gives numbers, and logit 0 is the number.
  """
  name: str
  model: Model
  params: Any
  vocabulary: tuple[Value, ...]
  outputs: dict[int, Value] | None
  codes: dict[Value, float]
  report: Report
  program: SOp
  plan: schedule.Plan | None = None
  readout: Any = None  # [D] and a constant: the code of the output, before the head picks the nearest

  @property
  def module(self):
    return models.build(self.model, self.params['embedding'].shape[0], self.report.longest + 1)

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
    with jax.default_matmul_precision('highest'):
      return _forward(self.module, self.params if params is None else params, tokens_BxL, segments_BxL)

  def circuit(self) -> list[tuple[str, str]]:
    """Which heads and units compute which s-op: what interpretability methods are asked to find."""
    out, used = [], {}
    for head in self.plan.heads if self.plan else ():
      number = used[head.time] = used.get(head.time, -1) + 1
      out.append((f'layer {head.time // 2 + 1} head {number + 1}', repr(head.node)))
    for t in range(1, 2 * self.report.layers, 2):
      unit = sum(1 if emit.unsigned(c) else 2 for c in self.plan.cleared.get(t, ())) if self.plan else 0
      for step in (s for s in (self.plan.steps if self.plan else ()) if s.time == t):
        last = unit + 2 * len(bound.ramps(step))
        out.append((f'layer {t // 2 + 1} units {unit + 1}-{last}', repr(step.node)))
        unit = last
    return out

  def decode(self, logits_BxLxV: np.ndarray) -> list[list[Value]]:
    """The values that logits say, BOS left out."""
    logits = np.asarray(logits_BxLxV)[:, 1:]
    if self.outputs is None:
      return logits[..., 0].astype(float).tolist()
    return [[self.outputs.get(int(t)) for t in row] for row in logits.argmax(-1)]

  def batch(self, sequences: Sequence[Sequence[Value]], length: int = 0, params: Any = None) -> list[list[Value]]:
    """The outputs of several inputs at once."""
    _, logits = self.forward(*self.tokenize(sequences, length), params)
    return [row[:len(s)] for row, s in zip(self.decode(logits), sequences)]

  def __call__(self, sequence: Iterable[Value]) -> list[Value]:
    return self.batch([list(sequence)])[0]

  def errors(self, sequences: Sequence[Sequence[Value]], exact: Sequence[Sequence[Value]], length: int = 0
             ) -> np.ndarray:
    """|read out - exact| at every real position, flat: the distance that `report.bound` bounds."""
    tokens, segments = self.tokenize(sequences, length)
    hidden, _ = self.forward(tokens, segments)
    weights, const = self.readout
    read = np.asarray(hidden, np.float64)[:, 1:] @ weights + const
    want = np.zeros_like(read)
    for row, values in enumerate(exact):
      want[row, :len(values)] = [self.codes[v] if self.outputs is not None else float(v) for v in values]
    return np.abs(read - want)[segments[:, 1:] == 1]

  def cached(self, sequence: Iterable[Value]) -> list[Value]:
    """The outputs, one token at a time from the cache. Raises RaspError where the program is not causal."""
    if not self.report.causal:
      raise RaspError(self.program.source, f"'{self.name}' reads later tokens; only a causal program runs with a cache")
    tokens, _ = self.tokenize([list(sequence)])
    cache = self.module.empty_cache(1, tokens.shape[1])
    parts = []
    with jax.default_matmul_precision('highest'):
      for i in range(tokens.shape[1]):
        logits, cache = _extend(self.module, self.params, tokens[:, i:i + 1], i, cache)
        parts.append(np.asarray(logits))
    return self.decode(np.concatenate(parts, axis=1))[0]


def compile(  # pylint: disable=redefined-builtin
    program: Program | SOp, vocabulary: Iterable[Value] = (), longest: int = LONGEST, *, causal: bool | None = None,
    dtype: str = 'float32') -> Compiled:
  """Weights that compute `program` on every input of 1 to `longest` tokens of `vocabulary`.

  Args:
    vocabulary: every value that a token may take; default: the program's own.
    causal: compile to a causal decoder, which runs with the cache; None: where the program allows it.
    dtype: float32 or bfloat16, of the arithmetic; refused where the proof does not hold in it.

  Raises:
    RaspError: the program is wrong, or cannot be met at this length or dtype; the message quotes a line.
  """
  if isinstance(program, Program):
    root, name, vocabulary = program.result, program.name, tuple(vocabulary) or program.vocabulary
  else:
    root, name, vocabulary = program, program.name or 'program', tuple(vocabulary)
  if not vocabulary or longest < 1 or dtype not in bound.BITS:
    raise RaspError(root.source, f"vocabulary {vocabulary!r}, longest {longest}, dtype '{dtype}'; expected at least "
                                 'one token, a length of at least 1 and float32 or bfloat16')
  if longest > MOST:
    raise RaspError(root.source, f'longest is {longest}; expected at most {MOST}, no proof reaches further')
  analysis = Analysis(vocabulary, longest)
  root = rewrite.rewrite(root, analysis)
  later = analysis.first_not_causal(root)
  if causal and later is not None:
    line, selector = later
    raise RaspError(line, f'{selector!r} reads keys after the query, so this program is not causal; '
                                 'compile with causal=False, or select with rasp.until')
  causal = later is None if causal is None else causal
  assumed = _check_unique(root, analysis, vocabulary, longest)
  domain = analysis(root)
  categorical = domain.values is not None and not any(isinstance(v, Fraction) for v in domain.values)
  try:
    encoder, plan, error = _prove(root, analysis, causal, categorical, dtype)
  except bound.Refused as reason:
    other = ' or float32' if dtype != 'float32' else ''
    raise RaspError(root.source, f"'{name}' cannot be proven right to length {longest} in {dtype}: {reason}; expected "
                                 f'a shorter length{other}') from None
  domain = encoder.analysis(root)  # may list more values than before, if a map was split
  codes = encoder.codes(root) if categorical else None
  model = emit.settings(plan, encoder, causal, dtype)
  values = dict(zip(domain.values, codes.tolist())) if categorical else {}
  tokens = {v: 1 + i for i, v in enumerate(analysis.vocabulary)}
  outputs = None
  if categorical:
    for v in domain.values:
      tokens.setdefault(v, len(tokens) + 1)
    outputs = {tokens[v]: v for v in domain.values}
  params = emit.emit(plan, encoder, model, len(tokens) + 1,
                     {t: values[v] for t, v in outputs.items()} if categorical else None)
  leaves = jax.tree.leaves(params)
  report = Report(
      model.layers, model.heads, model.head_width, model.width, model.feedforward, sum(a.size for a in leaves),
      sum(int(np.count_nonzero(a)) for a in leaves), max(float(np.abs(a).max()) for a in leaves), error, longest, dtype,
      causal, assumed)
  parts, const = plan.expand(plan.output)
  weights = np.zeros(model.width)
  for c, a in parts.items():
    weights[c.dim] += a
  return Compiled(name, model, params, tuple(vocabulary), outputs, values, report, root, plan, (weights, const))


def _prove(root: SOp, analysis: Analysis, causal: bool, categorical: bool, dtype: str
           ) -> tuple[Encoder, schedule.Plan, float]:
  """The cheapest encoding with a proof.

  What is refused is tried again: a map of too many inputs in two layers, counts that are nearer to proportional, then
  inputs that are made exact in a layer before.
  """
  decoded: frozenset[SOp] = frozenset()
  sharpness = 6
  while True:
    encoder = Encoder(analysis, causal, sharpness, decoded)
    # A copied value is read out as it comes, a mean as well; the rest from a feed-forward layer, where it is exact.
    output = encoder.exact(root, encoder.codes(root)) if categorical and not _copied(root, analysis) else (
        encoder.number(root))
    plan = schedule.plan(encoder, output)
    try:
      return encoder, plan, bound.prove(plan, analysis.longest, dtype)[1]
    except bound.Refused as reason:
      if reason.step is None:
        raise
      node = reason.step.node
      if reason.ramps and node.kind == 'map' and node not in analysis.apart:
        analysis = Analysis(analysis.vocabulary, analysis.longest, analysis.apart | {node})
      elif sharpness < 14:
        sharpness += 4
      elif node not in decoded and node.kind == 'map':
        decoded |= {node}
      else:
        raise


def _copied(root: SOp, analysis: Analysis) -> bool:
  return root.kind == 'aggregate' and analysis.copies(root)


def _check_unique(root: SOp, analysis: Analysis, vocabulary: Sequence[Value], longest: int) -> tuple[str, ...]:
  """Names of the aggregates that copy one value without a proof that only one is selected; each is tried out."""
  unproven = [n for n in language.nodes(root) if n.kind == 'aggregate' and analysis.copies(n)
              and not analysis.unique(n.selector) and len(analysis(n.args[0]).values) > 1]
  if unproven:
    rng = np.random.default_rng(0)
    for trial in range(CHECKED):
      n = min(longest, 1 + trial % 8)
      trace = interpreter.Trace([vocabulary[i] for i in rng.integers(0, len(vocabulary), n)])
      for node in unproven:
        trace(node)  # raises, quoting the line, if two values are selected
  return tuple(repr(n) if n.name else str(n.source) for n in unproven)
