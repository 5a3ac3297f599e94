"""The compiler: a program becomes a decoder's weights, with a proven bound on their error, in passes of one file each.

  pass            takes                           hands on
  analysis        vocabulary, longest input       Analysis: what values every s-op can take, what is causal or unique
  rewrite         s-op, Analysis                  the same program as an s-op of fewer and shallower steps
  encode          s-op, Analysis, Effort          Circuit: the heads, steps and features that compute it
  schedule        Circuit                         Plan: a layer, and a direction of the residual stream, for each
  bound           Plan, dtype                     the largest error of the output, or Refused: why there is no proof
  emit            Plan, dtype                     the decoder's settings, and its parameters as NumPy arrays
  pipeline        program, vocabulary, ..         Compiled: what `rasp.compile` returns

Each pass reads only what the one before hands on, and changes nothing of it; `pipeline` alone knows their order, and
goes back to `encode` with more Effort where `bound` refuses. `circuit` holds the values from Feature to Circuit,
`selections` is the half of the analysis that is about selectors, `conjunctions` turns them into what single heads can
select, and `orders` proves that a sort reads one key. `said` chooses how the output is said, `readout` writes that into
the head and proves that it can be told apart, `wiring` names what the weights do, and `compiled` is what runs.
"""

from rasp.compiling.compiled import Compiled, Report
from rasp.compiling.pipeline import compile  # pylint: disable=redefined-builtin

__all__ = ['Compiled', 'Report', 'compile']
