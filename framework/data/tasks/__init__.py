"""Synthetic languages, one file each: `data.task=NAME:setting=value,...` trains on the class `Task` of NAME.py.

A `Task` is a frozen dataclass whose fields are its settings, and which has

  alphabet: str, distinct characters in order; symbol i is written alphabet[i], len(alphabet) is the end of a document
  length: int, tokens of a block
  block(rng) -> int [length], one block of the language, drawn with a numpy Generator

Languages with a question (one_way, path_star, k_hop, addition) draw a block by `spell(u, xp)`, a function of `draws`
uniform numbers for numpy or jax.numpy, and say where the question ends, `start`, which token is hard to answer, `hard`,
and the accuracy on it of who cannot compute, `chance`.

Where they are known, a task has `entropy`, nats per token, and `nats(tokens)`, -ln p of each token of a text after
those before it; a sweep then compares its irreducible loss with them.

`framework/data/stream.py` joins blocks to an endless text. A block that begins with the end-of-document token opens a
document of its own; without such tokens the text is one long document.
"""
