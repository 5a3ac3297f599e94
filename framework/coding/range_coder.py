"""A range coder: symbols and their cumulative counts to bytes and back (Martin 1979, "Range encoding").

A symbol that has `size` of `total` counts costs log2(total / size) bits, and 2^-16 of that at most besides. Integers
only: both directions compute the same on every machine.
"""

_BITS = 48
_BYTE = 1 << (_BITS - 8)  # below this range, the top byte of `low` is settled but for a carry
MOST = 1 << 24  # of `total`


class Encoder:
  """`encode` symbols, then `finish`."""

  def __init__(self):
    self._low, self._range, self._out = 0, 1 << _BITS, bytearray()

  def encode(self, first: int, size: int, total: int) -> None:
    """The symbol whose counts are [first, first + size) of `total` <= MOST."""
    unit = self._range // total
    self._low += unit * first
    self._range = unit * size
    while self._range < _BYTE:
      self._shift()
      self._range <<= 8

  def _shift(self) -> None:
    self._carry()
    self._out.append(self._low >> (_BITS - 8))
    self._low = (self._low & (_BYTE - 1)) << 8

  def _carry(self) -> None:
    if self._low >> _BITS:
      self._low &= (1 << _BITS) - 1
      place = len(self._out) - 1
      while self._out[place] == 255:
        self._out[place] = 0
        place -= 1
      self._out[place] += 1

  def finish(self) -> bytes:
    """All bytes: the fewest that end inside the last range, since a decoder reads zeros after them."""
    for count in range(1, _BITS // 8 + 1):
      step = 1 << (_BITS - 8 * count)
      value = -(-self._low // step) * step
      if value < self._low + self._range:
        self._low = value
        break
    for _ in range(count):
      self._shift()
    return bytes(self._out)


class Decoder:
  """The symbols of an Encoder's bytes, in order; of other bytes, some symbols."""

  def __init__(self, data: bytes):
    self._data, self._place, self._range = data, _BITS // 8, 1 << _BITS
    self._value = int.from_bytes(data[:self._place].ljust(self._place, b'\0'), 'big')

  @property
  def beyond(self) -> int:
    """How many bytes it has read after the last: what an Encoder wrote needs no more than 6."""
    return max(0, self._place - max(len(self._data), _BITS // 8))

  def peek(self, total: int) -> int:
    """A count of [0, total) that belongs to the next symbol."""
    return min(self._value // (self._range // total), total - 1)

  def take(self, first: int, size: int, total: int) -> None:
    """Goes past the symbol of these counts, which hold what `peek` gave."""
    unit = self._range // total
    self._value -= unit * first
    self._range = unit * size
    while self._range < _BYTE:
      byte = self._data[self._place] if self._place < len(self._data) else 0
      self._value = self._value << 8 | byte
      self._place += 1
      self._range <<= 8
