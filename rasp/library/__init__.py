"""Programs by name: each s-op has its idea and its source in its docstring."""

from rasp.library import dyck, sequences

PROGRAMS = sequences.PROGRAMS | dyck.PROGRAMS
