"""RASP-L: what a causal transformer is expected to learn so that it generalises to longer inputs.

Zhou et al. 2023, "What algorithms can transformers learn?" (arXiv:2310.16028), section 3.2: selections are causal,
indices are only compared with each other and with their neighbours, never calculated with, and nothing knows the length
ahead. A program may break these rules and compile all the same; it is then no candidate for length generalisation.
"""

from rasp import language
from rasp.compiling.analysis import Analysis
from rasp.compiling.selections import is_everything
from rasp.language import SOp

PROBE = 6  # the length at which causality is looked at
COMPARISONS = ('==', '!=', '<', '<=', '>', '>=', '&', '|', '~')


def lint(program: SOp, vocabulary=('a', 'b')) -> list[str]:
  """A line for every expression that leaves RASP-L, with its place and what to write."""
  analysis = Analysis(vocabulary, PROBE)
  out = []
  def doubt(node: SOp, text: str):
    out.append((f'{node.source}: ' if node.source else '') + text)
  for node in language.nodes(program):
    if node.kind == 'width' and is_everything(node.selector):
      doubt(node, f'{node!r} is known only at the end; count with rasp.until, or mark the end by a token')
    elif node.selector is not None and not _causal(analysis, node):
      doubt(node, f'{node.selector!r} reads later keys; add `& rasp.until`')
    elif node.kind == 'map' and node.op not in COMPARISONS and any(map(_index, node.args)) and not _neighbour(node):
      doubt(node, f'{node!r} calculates with indices; compare them, or step to a neighbour with + 1 or - 1')
  return list(dict.fromkeys(out))


def _causal(analysis: Analysis, node: SOp) -> bool:
  try:
    return analysis.causal(node.selector)
  except language.RaspError:  # a vocabulary that the program is not made for decides nothing about indices
    return True


def _index(node: SOp) -> bool:
  return node.kind == 'indices' or node.kind == 'map' and node.op in ('+', '-', '*', '//', '%') and any(
      map(_index, node.args))


def _neighbour(node: SOp) -> bool:
  constants = [a.value for a in node.args if a.kind == 'constant']
  return node.op in ('+', '-') and constants in ([1], [-1]) and any(a.kind == 'indices' for a in node.args)
