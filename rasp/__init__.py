"""RASP: programs of selectors and aggregates, compiled to the weights of the decoder. See README.md."""

from rasp.language import (
    RaspError, Selector, SOp, aggregate, apply, before, constant, default, divide, everything, indices, largest, length,
    select, selector_width, smallest, tokens, total, until, where)
from rasp.program import Program, program
from rasp.compiling import Compiled, Report, compile  # pylint: disable=redefined-builtin

__all__ = [
    'Compiled', 'Program', 'RaspError', 'Report', 'SOp', 'Selector', 'aggregate', 'apply', 'before', 'compile',
    'constant', 'default', 'divide', 'everything', 'indices', 'largest', 'length', 'program', 'select',
    'selector_width', 'smallest', 'tokens', 'total', 'until', 'where']
