"""A program through all passes: rewritten, encoded as cheaply as a proof allows, scheduled, proven and emitted."""

from collections.abc import Iterable, Sequence
import dataclasses
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from rasp import decoder, interpreter, language
from rasp.compiling import bound, emit, encode, readout, rewrite, schedule
from rasp.compiling.analysis import Analysis
from rasp.compiling.circuit import Refused
from rasp.compiling.compiled import Compiled, Report
from rasp.language import RaspError, SOp, Value
from rasp.program import Program

LONGEST = 64
MOST = 5000
CHECKED = 40  # short random inputs on which an unproven "selects one value" is tried out before it is believed
DIGITS = 4  # the most in which an output is said
LONG, LONG_TRIALS = 200, 12  # longer ones


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
  if not isinstance(vocabulary, Iterable):
    raise RaspError(None, f'vocabulary is {vocabulary!r}; expected the tokens, for example a string of letters')
  if isinstance(program, Program):
    root, name, vocabulary = program.result, program.name, tuple(vocabulary) or program.vocabulary
  else:
    root = language.lift(program)
    name, vocabulary = root.name or 'program', tuple(vocabulary)
  if not isinstance(longest, int) or isinstance(longest, bool):
    raise RaspError(root.source, f'longest is {longest!r}; expected a whole number from 1 to {MOST}')
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
    model, params, outputs, number = _emitted(plan, analysis, dtype)
  except Refused as reason:
    other = ' or float32' if dtype != 'float32' else ''
    raise RaspError(root.source, f"'{name}' cannot be proven right to length {longest} in {dtype}: {reason}; expected "
                                 f'a shorter length{other}') from None
  leaves = jax.tree.leaves(params)
  report = Report(
      model.layers, model.heads, model.head_width, model.width, model.feedforward, sum(a.size for a in leaves),
      sum(int(np.count_nonzero(a)) for a in leaves), max(float(np.abs(a).max()) for a in leaves), error, longest, dtype,
      causal, assumed)
  return Compiled(name, model, params, vocabulary, outputs, report, root, readout.readout(plan), number, plan)


def _emitted(plan: schedule.Plan, analysis: Analysis, dtype: str
             ) -> tuple[decoder.Model, Any, dict[int, Value], int]:
  """(settings, parameters, values by token id, the id that says a number) of a plan. Raises Refused."""
  said = plan.circuit.output
  tokens = {v: 1 + i for i, v in enumerate(analysis.vocabulary)}
  for v in said.codes:
    tokens.setdefault(v, len(tokens) + 1)
  outputs = {tokens[v]: v for v in said.codes}
  codes, number = {t: said.codes[v] for t, v in outputs.items()}, 0
  if said.unlisted:
    number = len(tokens) + 1
    codes[number] = said.unlisted
  model = emit.settings(plan, dtype)
  params = emit.emit(plan, model, len(tokens) + 1 + bool(number), codes)
  if dtype != 'float32' and not all(readout.held(a, bound.BITS[dtype]) for a in jax.tree.leaves(params)):
    raise Refused(f'its weights need more than {bound.BITS[dtype]} bits')
  return model, params, outputs, number


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
  unproven = [n for n in language.nodes(root) if n.kind == 'aggregate' and not analysis.unique(n.selector)
              and (analysis.copies(n) and len(analysis(n.args[0]).values) > 1 or not analysis(n.args[0]).numeric)]
  if unproven:
    rng = np.random.default_rng(0)
    lengths = [1 + trial % 8 for trial in range(CHECKED)] + [int(n) for n in np.geomspace(9, LONG, LONG_TRIALS)]
    for n in (min(n, analysis.longest) for n in lengths):
      # Few distinct tokens as often as many, which repeat what short inputs never do.
      tokens = rng.choice(len(vocabulary), rng.integers(1, len(vocabulary) + 1), replace=False)
      trace = interpreter.Trace([vocabulary[i] for i in rng.choice(tokens, n)])
      for node in unproven:
        trace(node)  # raises, quoting the line, if two values are selected
  for node in unproven:
    if two := analysis.two_values(node):
      raise RaspError(node.source, f'aggregate selects keys {two[1]} and {two[2]} at once for query {two[0]}, whose '
                                   'values differ; select one key (.last() or .first() takes one of several)')
  return tuple(repr(n) if n.name else str(n.source) for n in unproven)


def _proven(root: SOp, analysis: Analysis, causal: bool, dtype: str) -> tuple[schedule.Plan, float]:
  """The cheapest plan with a proof, and its largest error. Raises Refused if no effort gives one."""
  effort, first = encode.Effort(), None
  while True:
    circuit = encode.encode(root, analysis, causal, effort)
    plan = schedule.schedule(circuit)
    try:
      return plan, bound.prove(plan, dtype)
    except Refused as reason:
      first = first or reason  # the cheapest attempt says best what the program needs
      try:
        effort = _harder(effort, reason, root, analysis)
      except Refused:
        raise first from None
      if effort.apart != analysis.apart:
        analysis = analysis.keeping(effort.apart)


def _harder(effort: encode.Effort, reason: Refused, root: SOp, analysis: Analysis) -> encode.Effort:
  """What to try after a refusal: a map in two layers, counts nearer to proportional, inputs that are exact before."""
  gates = frozenset(n for n in language.nodes(root) if analysis.gates(n) and any(
      isinstance(v, Fraction) for v in analysis(n).values or ()))
  if gates - effort.gated and (reason.step or reason.readout):
    return dataclasses.replace(effort, gated=effort.gated | gates)
  if reason.readout and not effort.listed:
    return dataclasses.replace(effort, listed=True)
  if reason.readout and effort.digits < DIGITS:
    return dataclasses.replace(effort, digits=effort.digits + 1)
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
