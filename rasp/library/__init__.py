"""Programs by name: each s-op has its idea and its source in its docstring."""

from rasp.library import arithmetic, dyck, hops, rounds, sequences

PROGRAMS = sequences.PROGRAMS | dyck.PROGRAMS | arithmetic.PROGRAMS | hops.PROGRAMS | rounds.PROGRAMS
