"""Synthetic languages, one file each: `data.task=NAME:setting=value,...` trains on the class `Task` of NAME.py.

A `Task` is a frozen dataclass whose fields are its settings, and which has

  alphabet: str, distinct characters in order; symbol i is written alphabet[i], and len(alphabet) is the end of a document
  length: int, tokens of a block
  block(rng) -> int [length], one block of the language, drawn with a numpy Generator

`framework/data/stream.py` joins blocks to an endless text. A block that begins with the end-of-document token opens a
document of its own; without such tokens the text is one long document.
"""
