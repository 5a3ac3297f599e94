"""A program through all passes: rewritten, encoded as cheaply as a proof allows, scheduled, proven and emitted."""

from collections.abc import Iterable, Sequence
import dataclasses
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from rasp import interpreter, language
from rasp.compiling import bound, emit, encode, rewrite, schedule
from rasp.compiling.analysis import Analysis
from rasp.compiling.compiled import Compiled, Report
from rasp.language import RaspError, SOp, Value
from rasp.program import Program

LONGEST = 64
MOST = 5000
CHECKED = 40  # random inputs on which an unproven "selects one value" is tried out before it is believed


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
  interpreter.check_tokens((), vocabulary, f"'{name}': ", root.source)
  if longest > MOST:
    raise RaspError(root.source, f'longest is {longest}; expected at most {MOST}, no proof reaches further')
  analysis = Analysis(vocabulary, longest)
  root = rewrite.rewrite(root, analysis)
  causal = _causal(root, analysis, causal)
  assumed = _assumed(root, analysis, vocabulary)
  try:
    plan, error = _proven(root, analysis, causal, dtype)
  except bound.Refused as reason:
    other = ' or float32' if dtype != 'float32' else ''
    raise RaspError(root.source, f"'{name}' cannot be proven right to length {longest} in {dtype}: {reason}; expected "
                                 f'a shorter length{other}') from None
  codes = plan.circuit.codes
  tokens = {v: 1 + i for i, v in enumerate(analysis.vocabulary)}
  for v in codes:
    tokens.setdefault(v, len(tokens) + 1)
  outputs = {tokens[v]: v for v in codes} or None
  model = emit.settings(plan, dtype)
  params = emit.emit(plan, model, len(tokens) + 1, outputs and {t: codes[v] for t, v in outputs.items()})
  leaves = jax.tree.leaves(params)
  report = Report(
      model.layers, model.heads, model.head_width, model.width, model.feedforward, sum(a.size for a in leaves),
      sum(int(np.count_nonzero(a)) for a in leaves), max(float(np.abs(a).max()) for a in leaves), error, longest, dtype,
      causal, assumed)
  return Compiled(name, model, params, vocabulary, outputs, codes, report, root, plan, emit.readout(plan))


def _causal(root: SOp, analysis: Analysis, wanted: bool | None) -> bool:
  """Whether to compile to a causal decoder. Raises RaspError if that is wanted and the program reads ahead."""
  later = analysis.first_not_causal(root)
  if wanted and later is not None:
    line, selector = later
    raise RaspError(line, f'{selector!r} reads keys after the query, so this program is not causal; '
                          'compile with causal=False, or select with rasp.until')
  return later is None if wanted is None else wanted


def _assumed(root: SOp, analysis: Analysis, vocabulary: Sequence[Value]) -> tuple[str, ...]:
  """Names of the aggregates that copy one value without a proof that only one is selected; each is tried out."""
  unproven = [n for n in language.nodes(root) if n.kind == 'aggregate' and analysis.copies(n)
              and not analysis.unique(n.selector) and len(analysis(n.args[0]).values) > 1]
  if unproven:
    rng = np.random.default_rng(0)
    for trial in range(CHECKED):
      n = min(analysis.longest, 1 + trial % 8)
      trace = interpreter.Trace([vocabulary[i] for i in rng.integers(0, len(vocabulary), n)])
      for node in unproven:
        trace(node)  # raises, quoting the line, if two values are selected
  return tuple(repr(n) if n.name else str(n.source) for n in unproven)


def _proven(root: SOp, analysis: Analysis, causal: bool, dtype: str) -> tuple[schedule.Plan, float]:
  """The cheapest plan with a proof, and its largest error. Raises Refused if no effort gives one."""
  values = analysis(root).values
  categorical = values is not None and not any(isinstance(v, Fraction) for v in values)
  effort = encode.Effort()
  while True:
    circuit = encode.encode(root, analysis, causal, categorical, effort)
    plan = schedule.schedule(circuit)
    try:
      return plan, bound.prove(plan, dtype)
    except bound.Refused as reason:
      effort = _harder(effort, reason)
      if effort.apart != analysis.apart:
        analysis = Analysis(analysis.vocabulary, analysis.longest, effort.apart)


def _harder(effort: encode.Effort, reason: bound.Refused) -> encode.Effort:
  """What to try after a refusal: a map in two layers, counts nearer to proportional, inputs that are exact before."""
  node: Any = reason.step.node if reason.step else None
  if node is None:
    raise reason
  if reason.ramps and node.kind == 'map' and node not in effort.apart:
    return dataclasses.replace(effort, apart=effort.apart | {node})
  if effort.sharpness < 14:
    return dataclasses.replace(effort, sharpness=effort.sharpness + 4)
  if node not in effort.decoded and node.kind == 'map':
    return dataclasses.replace(effort, decoded=effort.decoded | {node})
  raise reason
