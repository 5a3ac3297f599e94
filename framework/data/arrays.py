"""Documents of token ids that somebody has tokenised already: NumPy's .npy, Megatron's .bin with its .idx, and the bare
.bin of nanoGPT, llm.c and others, whose type has to be said (data.ids) since the file does not say it.

The tokenizer that made them is named by data.tokenizer. Its tokens that open and close documents divide them wherever
they stand, at the beginning, between them or at the end.
"""

from collections.abc import Iterator
import pathlib
import struct

import numpy as np

from foundation.errors import ConfigError
from framework.data import sources
from framework.data.sources import Source

TYPES = ('uint16', 'uint32', 'int32', 'int64')  # of a bare .bin, in little-endian order
BLOCK = 1 << 20  # tokens read at a time
_MEGATRON = b'MMIDIDX\x00\x00'
_MEGATRON_TYPES = {1: 'u1', 2: 'i1', 3: '<i2', 4: '<i4', 5: '<i8', 8: '<u2'}
_LLM_C = {20240520: '<u2', 20240801: '<u4'}  # the first number of a header of 256


def documents(source: Source, kind: str, ends: tuple[int, ...], size: int) -> Iterator[tuple[int, np.ndarray]]:
  """(number of the document from 1, some of its ids, int32), without ends of documents.

  Args:
    kind: the type of a bare .bin, one of TYPES, or 'file': every file says its own.
    ends: the tokens that close or open a document. size: of the tokenizer.

  Raises:
    ConfigError: a file is no such array, or has ids that the tokenizer has not.
  """
  number, inside, place = 0, False, 0
  for ids_N, closes in _blocks(source, kind):
    bad = (ids_N < 0) | (ids_N >= size)
    if bad.any():
      first = int(bad.argmax())
      raise ConfigError(f"{source.key}: '{source.path}' has the id {ids_N[first]} at token {place + first}; expected 0 to "
                        f'{size - 1}: the data.tokenizer and the type (data.ids is {kind!r}) that made the file')
    place += len(ids_N)
    cuts = np.flatnonzero(np.isin(ids_N, ends))
    for first, last in zip([0, *(cuts + 1)], [*cuts, len(ids_N)]):
      if last > first:
        number, inside = number + (not inside), True
        yield number, ids_N[first:last].astype(np.int32)
      if last < len(ids_N):
        inside = False
    if closes:
      inside = False


def _blocks(source: Source, kind: str) -> Iterator[tuple[np.ndarray, bool]]:
  """(ids, whether a document ends behind them)."""
  path = pathlib.Path(source.path)
  if path.suffix == '.npy':
    yield from _of_array(_npy(source))
  elif path.with_suffix('.idx').exists():
    yield from _megatron(source)
  else:
    dtype, header = _bare(source, kind)
    if (source.size - header) % dtype.itemsize:
      raise _wrong(source, f'has {source.size:,} bytes, no whole number of {dtype.name}', 'data.ids to be its type, or a '
                   'whole file')
    count = (source.size - header) // dtype.itemsize
    yield from _of_array(np.memmap(path, dtype, 'r', header, shape=count) if count else np.zeros(0, dtype))


def _wrong(source: Source, what: str, expected: str) -> ConfigError:
  return ConfigError(f"{source.key}: '{source.path}' {what}; expected {expected}")


def _of_array(ids_N: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
  for start in range(0, len(ids_N), BLOCK):
    yield np.array(ids_N[start:start + BLOCK]).astype(np.int64), False


def _bare(source: Source, kind: str) -> tuple[np.dtype, int]:
  """The type of a .bin without an index, and the bytes of its header: 0, or llm.c's of 256 int32."""
  with open(source.path, 'rb') as file:
    head = file.read(12)
  if len(head) == 12:
    magic, version, count = struct.unpack('<3i', head)
    if magic in _LLM_C and version == 1 and 1024 + count * np.dtype(_LLM_C[magic]).itemsize == source.size:
      return np.dtype(_LLM_C[magic]), 1024
  if kind == 'file':
    raise _wrong(source, 'does not say the type of its ids, and has no index beside it',
                 f"data.ids to be one of {', '.join(TYPES)}, nearest is 'uint16', which nanoGPT writes")
  return np.dtype(kind).newbyteorder('<'), 0


def _npy(source: Source) -> np.ndarray:
  try:
    ids = np.load(source.path, mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise _wrong(source, f'is no array that can be read ({error})', 'a .npy of integers') from None
  if ids.ndim != 1 or ids.dtype.kind not in 'iu':
    raise _wrong(source, f'is an array of shape {ids.shape} of {ids.dtype}', 'one of one axis of integers')
  return ids


def _megatron(source: Source) -> Iterator[tuple[np.ndarray, bool]]:
  """Of Megatron-LM's indexed data set: the index has the lengths and places of sequences, and where documents begin."""
  dtype, lengths, places, begins = _index(source)
  with open(source.path, 'rb') as file:
    last = set((begins[1:] - 1).tolist())
    for number, (length, place) in enumerate(zip(lengths.tolist(), places.tolist())):
      file.seek(place)
      for left in range(length, 0, -BLOCK):
        ids = np.fromfile(file, dtype, min(left, BLOCK)).astype(np.int64)
        if len(ids) < min(left, BLOCK):
          raise _wrong(source, f'ends before its sequence {number} does', 'a whole file, as its .idx says')
        yield ids, number in last and left <= BLOCK
      if not length and number in last:
        yield np.zeros(0, np.int64), True


def _index(source: Source) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
  """The type of ids, and of an .idx the length of each sequence, its place in bytes, and the first of each document."""
  path = pathlib.Path(source.path).with_suffix('.idx')
  expected = 'the index that Megatron-LM writes beside it'
  content = path.read_bytes()
  try:
    if not content.startswith(_MEGATRON):
      raise ValueError('another beginning')
    version, code, sequences, documents_ = struct.unpack_from('<QBQQ', content, len(_MEGATRON))
    if version != 1 or code not in _MEGATRON_TYPES:
      raise ValueError(f'version {version}, type {code}')
    at = len(_MEGATRON) + 25
    if sequences > len(content) or documents_ > len(content):
      raise ValueError('more sequences than it has bytes')
    lengths = np.frombuffer(content, '<i4', sequences, at)
    places = np.frombuffer(content, '<i8', sequences, at + 4 * sequences)
    begins = np.frombuffer(content, '<i8', documents_, at + 12 * sequences)
    ordered = len(begins) > 0 and begins[0] == 0 and begins[-1] == sequences and (np.diff(begins) >= 0).all()
    if not ordered or (lengths < 0).any() or (places < 0).any():
      raise ValueError('no places of documents in order')
  except (ValueError, struct.error) as error:
    raise ConfigError(f"{source.key}: '{path}' is no index of '{source.name}' ({error}); expected {expected}") from None
  return np.dtype(_MEGATRON_TYPES[code]), lengths, places, begins
