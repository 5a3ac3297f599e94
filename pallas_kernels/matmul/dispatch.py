"""The matmul call: what it accepts, and the choice of its backend."""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foundation.errors import nearest
from pallas_kernels.matmul.epilogue import ACTIVATIONS, Operands, Settings
from pallas_kernels.runtime import device, tune

IMPLEMENTATIONS = {
    'xla': 'pallas_kernels.matmul.reference',
    'triton': 'pallas_kernels.matmul.triton',
    'mosaic_tpu': 'pallas_kernels.matmul.mosaic_tpu',
    'mosaic_gpu': 'pallas_kernels.matmul.mosaic_gpu',
    'pallas_triton': 'pallas_kernels.matmul.pallas_triton',  # deprecated
}
# Taken where tuning on the device has not found a faster one for the shape: XLA calls the vendor's library.
BEST = ('xla',)

DEFAULT_OUT = {jnp.dtype(x): jnp.dtype(y) for x, y in (
    ('float32', 'float32'), ('bfloat16', 'bfloat16'), ('float16', 'float16'), (jnp.float8_e4m3fn, 'bfloat16'),
    (jnp.float8_e5m2, 'bfloat16'), ('int8', 'int32'))}
PRECISIONS = ('float32', 'tf32')


def matmul(
    a: jax.Array, b: jax.Array, c: jax.Array | None = None, *, alpha: float = 1, beta: float = 0,
    bias: jax.Array | None = None, activation: str | None = None, a_scale: jax.Array | None = None,
    b_scale: jax.Array | None = None, out_dtype: Any = None, precision: str = 'float32',
    block_mask: jax.Array | np.ndarray | None = None, implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> jax.Array:
  """activation(alpha * (a_scale * a) @ (b * b_scale) + beta * c + bias).

  Products are summed in float32, those of int8 in int32. The gradient is that of the real-valued formula; 8-bit
  floats get theirs in their own dtype, int8 has none.

  Args:
    a: [..., M, K] in float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or int8.
    b: [..., K, N] of the same dtype (the two kinds of float8 mix), with the batch axes of `a` or none.
    c: [..., M, N], read where beta is not 0.
    alpha, beta: numbers.
    bias: [N].
    activation: relu, gelu (tanh form) or silu.
    a_scale: float32 [] or [..., M], one a row; b_scale: float32 [] or [..., N], one a column.
    out_dtype: None: that of `a`; bfloat16 for float8, int32 for int8.
    precision: of float32 operands: 'float32', or 'tf32', which keeps 10 bits of each factor's mantissa.
    block_mask: bool [R, S]: `a` counts as 0 in the blocks [M / R, K / S] where it is false, and these are not read.
    implementation: a key of IMPLEMENTATIONS, or several in order of preference; None: what was measured to be the
      fastest for the shape on this device (python -m pallas_kernels.bench --tune), else XLA.
    config: of the implementation, which has to be named; None: its own choice for the shape and device.

  Returns:
    [..., M, N].

  Raises:
    ValueError: shapes, dtypes or arguments that do not fit each other, or an implementation that does not exist.
    NotImplementedError: the implementation cannot honour the request; says which part.
  """
  out_dtype = _check(a, b, c, beta, bias, activation, a_scale, b_scale, out_dtype, precision, block_mask)
  batch, (M, K), N = a.shape[:-2], a.shape[-2:], b.shape[-1]
  settings = Settings(alpha, beta, activation, out_dtype, precision, config)
  # Rows of a batch that share one b are rows of one product.
  merged = b.ndim == 2 and block_mask is None
  L, rows = (1, math.prod(batch) * M) if merged else (math.prod(batch), M)
  def scale(x, tail):
    return None if x is None else jnp.asarray(x, jnp.float32).reshape((1, 1) if jnp.ndim(x) == 0 else tail)
  operands = Operands(
      a.reshape(L, rows, K), b.reshape(-1, K, N),
      None if c is None or beta == 0 else jnp.asarray(c).reshape(L, rows, N),
      None if bias is None else jnp.asarray(bias)[None],
      scale(a_scale, (L, rows)), scale(b_scale, (-1, N)))
  best: tuple[str, ...] = BEST
  if implementation is None:
    name = 'tf32' if precision == 'tf32' else a.dtype
    best = tuple(dict.fromkeys((*tune.fastest('matmul', IMPLEMENTATIONS, name, rows, N, K), *BEST)))
  out = device.first_able(
      'matmul', IMPLEMENTATIONS, best, implementation, config,
      lambda module: importlib.import_module(module).matmul(operands, block_mask, settings))
  return out.reshape(*batch, M, N)


def _check(a, b, c, beta, bias, activation, a_scale, b_scale, out_dtype, precision, block_mask):
  """The dtype of the result; raises ValueError."""
  for name, x in (('a', a), ('b', b)):
    if x.ndim < 2 or x.dtype not in DEFAULT_OUT:
      raise ValueError(f'{name} is {x.dtype}{list(x.shape)}; expected a matrix or a batch of them in '
                       f'{", ".join(str(d) for d in DEFAULT_OUT)}')
  both_float8 = a.dtype.itemsize == b.dtype.itemsize == 1 and jnp.int8 not in (a.dtype, b.dtype)
  if a.dtype != b.dtype and not both_float8:
    raise ValueError(f'b has dtype {b.dtype}; expected that of a, {a.dtype}')
  batch, (M, K), N = a.shape[:-2], a.shape[-2:], b.shape[-1]
  if b.shape[-2] != K:
    raise ValueError(f'b has shape {b.shape}; expected {K} rows, as a {a.shape} has {K} columns')
  if b.ndim > 2 and b.shape[:-2] != batch:
    raise ValueError(f'b has batch axes {b.shape[:-2]}; expected those of a, {batch}, or none')
  if not all((M, N, K, *batch)):
    raise ValueError(f'a has shape {a.shape} and b {b.shape}; expected no axis of length 0')
  if beta != 0 and c is None:
    raise ValueError(f'beta is {beta} and c is None; expected c, or beta=0')
  for name, x, shapes in (('c', c, [(*batch, M, N)]), ('bias', bias, [(N,)]), ('a_scale', a_scale, [(), (*batch, M)]),
                          ('b_scale', b_scale, [(), (*b.shape[:-2], N)])):
    if x is not None and jnp.shape(x) not in shapes:
      raise ValueError(f'{name} has shape {jnp.shape(x)}; expected {" or ".join(map(str, shapes))}')
  if activation is not None and activation not in ACTIVATIONS:
    raise ValueError(f"activation is '{activation}'; expected one of {', '.join(ACTIVATIONS)}"
                     f'{nearest(str(activation), ACTIVATIONS)}')
  if precision not in PRECISIONS:
    raise ValueError(f"precision is '{precision}'; expected one of {', '.join(PRECISIONS)}")
  if precision == 'tf32' and a.dtype != jnp.float32:
    raise ValueError(f'precision tf32 is for float32 operands; a is {a.dtype}')
  if block_mask is not None:
    if block_mask.ndim != 2 or block_mask.dtype != bool:
      raise ValueError(f'block_mask is {block_mask.dtype}{list(block_mask.shape)}; expected bool [M / m, K / k]')
    if M % block_mask.shape[0] or K % block_mask.shape[1]:
      raise ValueError(f'block_mask has shape {block_mask.shape}; expected divisors of a, [{M}, {K}]')
  return jnp.dtype(out_dtype) if out_dtype is not None else DEFAULT_OUT[a.dtype]
