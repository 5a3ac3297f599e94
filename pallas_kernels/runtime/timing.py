"""How long a function takes on the device that is there."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from pallas_kernels.runtime import device

WARM_UP, REPEATS = 3, 20
L2 = 64 << 20  # bytes, above any L2 cache of today's GPUs; inputs are rotated past it


def copies(arguments: Sequence[jax.Array | jax.ShapeDtypeStruct]) -> int:
  """How many sets of inputs to rotate so that none is still in the cache when its turn comes."""
  size = sum(x.size * x.dtype.itemsize for x in arguments)
  return max(1, min(8, -(-2 * L2 // max(size, 1))))


def seconds(f: Callable, inputs: Sequence[Sequence[Any]], repeats: int = REPEATS) -> float:
  """Median seconds of jax.jit(f)(*one of the inputs), taken in turn.

  By CUPTI on an NVIDIA GPU where it can be had: the time of the kernels alone. Elsewhere by the clock, calls of a batch
  issued one after another and the last waited for, as the difference of two batches, which leaves out the wait.
  """
  f = jax.jit(f)
  for n in range(WARM_UP):
    jax.block_until_ready(f(*inputs[n % len(inputs)]))
  if device.platform() == 'gpu':
    try:
      from jax.experimental.mosaic.gpu import profiler
      measure = profiler.measure(f)
      return statistics.median(measure(*inputs[n % len(inputs)])[1] * 1e-3  # type: ignore[operator]  # None: TypeError
                               for n in range(repeats))
    except (ImportError, RuntimeError, TypeError):  # no CUPTI here, or somebody else has it
      pass
  def batch(count):
    start = time.perf_counter()
    out = None
    for n in range(count):
      out = f(*inputs[n % len(inputs)])
    jax.block_until_ready(out)
    return time.perf_counter() - start
  one = batch(1)
  count = max(1, min(50, int(0.05 / max(one, 1e-6))))
  repeats = repeats if one < 0.5 else 3
  return statistics.median((batch(2 * count) - batch(count)) / count for _ in range(repeats)) if count > 1 else (
      statistics.median(batch(1) for _ in range(repeats)))
