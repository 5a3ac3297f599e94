"""The attention call: what it accepts, and the choice of its backend."""

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.mask import Mask
from pallas_kernels.runtime import device, tune

IMPLEMENTATIONS = {
    'xla': 'pallas_kernels.attention.reference',
    'xla_chunked': 'pallas_kernels.attention.chunked',
    'cudnn': 'pallas_kernels.attention.cudnn',
    'triton': 'pallas_kernels.attention.triton',
    'mosaic_tpu': 'pallas_kernels.attention.mosaic_tpu',
    'mosaic_gpu': 'pallas_kernels.attention.mosaic_gpu',
}
# The first that can honour a request is taken, where tuning on the device has not found a faster one for the shape:
# the vendor's. Logits of more than LARGE bytes are made in blocks by XLA.
BEST = {'cpu': ('xla',), 'gpu': ('cudnn', 'xla'), 'tpu': ('xla',)}
LARGE = 1 << 30
MOST_ALPHA = 2.5  # of entmax, up to which its threshold is tested


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None,
    *, scale: float | None = None, is_causal: bool = False,
    segment_ids: jax.Array | tuple[jax.Array, jax.Array] | None = None, prefix_lengths: jax.Array | None = None,
    stamps: jax.Array | tuple[jax.Array, jax.Array] | None = None, query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None, local_window_size: int | tuple[int, int] | None = None,
    logits_soft_cap: float | None = None, alpha: float | jax.Array | None = None,
    implementation: str | Sequence[str] | None = None, config: Any = None, return_residual: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """softmax(soft_cap(scale * query @ key^T + bias), where the mask allows) @ value.

  The names are those of jax.nn.dot_product_attention and tokamax; the mask is the conjunction of all conditions given.
  A query that may read nothing gives 0, log-sum-exp -inf and gradient 0. A bias of at most -1e30, such as -inf or the
  least float32, hides its key as a mask does.

  Args:
    query: [B, Q, H, K].
    key, value: [B, T, G, K]; G divides H, and query head h reads key head h // (H / G).
    bias: [B or 1, H or 1, Q or 1, T], added to the scaled logits.
    mask: bool [B or 1, H or 1, Q or 1, T or 1], true where a query may read a key.
    scale: of the logits; None: 1 / sqrt(K).
    is_causal: query i reads keys 0 .. i.
    segment_ids: int [B or 1, Q], or a pair of [., Q] and [., T]: queries read keys of their own segment.
    prefix_lengths: int [B], with is_causal: keys below it are read by every query.
    stamps: int [B or 1, Q] or [Q], or a pair: query i reads keys j with stamp_j <= stamp_i.
    query_seq_lengths, key_value_seq_lengths: int [B], what lies beyond is padding.
    local_window_size: w or (left, right): query i reads keys i - left .. i + right.
    logits_soft_cap: c, the logits become c * tanh(logits / c).
    alpha: the weights are alpha-entmax in place of softmax: a number > 1, or an array [] or [H], which has a gradient.
    implementation: a key of IMPLEMENTATIONS, or several in order of preference; None: what was measured to be the
      fastest for the shape on this device (python -m pallas_kernels.bench --tune), else the vendor's.
    config: of the implementation, which has to be named; None: its own choice for the shape and device.
    return_residual: also returns the log-sum-exp of the logits, float32 [B, Q, H].

  Returns:
    [B, Q, H, K] in the dtype of `query`, or (that, the log-sum-exp).

  Raises:
    ValueError: shapes, dtypes or arguments that do not fit each other, or an implementation that does not exist.
    NotImplementedError: the implementation cannot honour the request; says which part.
  """
  _check_arrays(query, key, value, bias)
  if alpha is not None and return_residual:
    raise ValueError('return_residual is the log-sum-exp of softmax; expected alpha=None with it')
  alpha = _check_alpha(alpha, query.shape[2])
  if logits_soft_cap is not None and not logits_soft_cap > 0:
    raise ValueError(f'logits_soft_cap is {logits_soft_cap}; expected a number > 0, or None')
  one = make_mask(
      query.shape, key.shape[1], mask, is_causal=is_causal, segment_ids=segment_ids, prefix_lengths=prefix_lengths,
      stamps=stamps, query_seq_lengths=query_seq_lengths, key_value_seq_lengths=key_value_seq_lengths,
      local_window_size=local_window_size)
  if bias is not None:
    one = one.without(bias)
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  call = dict(scale=scale, soft_cap=logits_soft_cap, alpha=alpha, config=config, return_residual=return_residual)
  out, residual_BxHxQ = device.first_able(
      'attention', IMPLEMENTATIONS, () if implementation else _best(query, key), implementation, config,
      lambda module: importlib.import_module(module).attend(query, key, value, bias, one, **call))
  return (out, residual_BxHxQ.swapaxes(1, 2)) if return_residual else out


def _check_alpha(alpha, heads):
  """None for softmax, a float, or an array [] or [H]. Raises ValueError."""
  if isinstance(alpha, (int, float, np.number)):
    if not 1 <= alpha <= MOST_ALPHA:
      raise ValueError(f'alpha is {alpha}; expected 1 to {MOST_ALPHA}, nearest is '
                       f'{MOST_ALPHA if alpha > MOST_ALPHA else "1 (softmax)"}')
    return None if alpha == 1 else float(alpha)
  if alpha is not None and jnp.shape(alpha) not in ((), (heads,)):
    raise ValueError(f'alpha has shape {jnp.shape(alpha)}; expected () or one a query head, ({heads},)')
  if alpha is not None and not isinstance(alpha, jax.core.Tracer) and not (
      (np.asarray(alpha) > 1) & (np.asarray(alpha) <= MOST_ALPHA)).all():
    raise ValueError(f'alpha is {np.asarray(alpha).tolist()}; expected more than 1, up to {MOST_ALPHA}')
  return alpha


def _best(query, key):
  """Names in the order in which they are tried."""
  (B, Q, H, K), (T, G) = query.shape, key.shape[1:3]
  measured = tune.fastest('attention', IMPLEMENTATIONS, query.dtype, Q, T, H, G, K)
  *first, last = BEST[device.platform()]
  return tuple(dict.fromkeys((*measured, *first, *(['xla_chunked'] if 4 * B * H * Q * T > LARGE else []), last)))


def reads_dense_mask(implementation: str | None) -> bool:
  """Whether the implementation makes a dense mask anyway, so that one that is made once can serve many calls."""
  return implementation == 'xla' or (implementation is None and device.platform() == 'cpu')


def make_mask(
    query_shape: tuple[int, ...], keys: int, mask=None, *, is_causal=False, segment_ids=None, prefix_lengths=None,
    stamps=None, query_seq_lengths=None, key_value_seq_lengths=None, local_window_size=None,
) -> Mask:
  """The Mask of dot_product_attention's arguments, checked against [B, Q, H, K] and T."""
  B, Q, H, _ = query_shape
  if mask is not None:
    if mask.dtype != bool:
      raise ValueError(f'mask has dtype {mask.dtype}; expected bool (a bias is added, a mask is not)')
    _check_broadcast('mask', mask.shape, (B, H, Q, keys))
    mask = (jnp if isinstance(mask, jax.Array) else np).broadcast_to(mask, mask.shape[:2] + (Q, keys))
  if prefix_lengths is not None and not is_causal:
    raise ValueError('prefix_lengths widens what a causal query reads; expected is_causal=True with it')
  window = local_window_size
  if window is not None:
    sides = tuple(window) if isinstance(window, Sequence) else (window, window)
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side >= 0 for side in sides):
      raise ValueError(f'local_window_size is {local_window_size}; expected one or two numbers >= 0 (left, right)')
    # More than there is to read is all of it; the index arithmetic of kernels has 32 bits.
    window = int(min(sides[0], Q + keys)), int(min(sides[1], Q + keys))
  lengths = {'prefix_lengths': prefix_lengths, 'query_seq_lengths': query_seq_lengths,
             'key_value_seq_lengths': key_value_seq_lengths}
  for name, value in lengths.items():
    if value is not None:
      lengths[name] = value = _array(value)
      if value.shape != (B,) or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f'{name} is {value.dtype}{list(value.shape)}; expected integers [{B}], one a row')
  return Mask(  # type: ignore[call-arg]  # there are three lengths
      Q, keys, bool(is_causal), window, *lengths.values(), _pair('stamps', stamps, B, Q, keys),
      _pair('segment_ids', segment_ids, B, Q, keys), mask)


def _pair(name, value, B, Q, T):
  """Integers for queries and keys as a pair of [B or 1, Q] and [B or 1, T]."""
  if value is None:
    return None
  pair = value if isinstance(value, tuple) else (value, value)
  if len(pair) != 2:
    raise ValueError(f'{name} has {len(pair)} parts; expected an array, or a pair for queries and for keys')
  out = []
  pair = _ranked(*map(_array, pair))
  for side, x, length in (('queries', pair[0], Q), ('keys', pair[1], T)):
    x = x[None] if x.ndim == 1 else x
    if x.ndim != 2 or x.shape[1] != length or x.shape[0] not in (1, B) or not jnp.issubdtype(x.dtype, jnp.integer):
      raise ValueError(f'{name} of the {side} is {x.dtype}{list(x.shape)}; expected integers [{B} or 1, {length}]')
    out.append(x.astype(jnp.int32))
  return tuple(out)


def _ranked(a, b):
  """The two arrays; if 32 bits do not hold their integers, the rank of each among all, which is as good."""
  if not all(isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer) for x in (a, b)):
    return a, b
  joined = np.concatenate([a.ravel(), b.ravel()])
  if not joined.size or -2**31 <= joined.min() and joined.max() < 2**31:
    return a, b
  ranks = np.unique(joined, return_inverse=True)[1]
  return ranks[:a.size].reshape(a.shape), ranks[a.size:].reshape(b.shape)


def _array(x):
  """What is not on a device stays in NumPy: a mask made of it is known at trace time."""
  return x if isinstance(x, jax.Array) else np.asarray(x)


def _check_arrays(query, key, value, bias):
  for name, x in (('query', query), ('key', key), ('value', value)):
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f'{name} is {x.dtype}{list(x.shape)}; expected floating-point [batch, length, heads, width]')
  if key.shape != value.shape:
    raise ValueError(f'key has shape {key.shape} and value {value.shape}; expected the same')
  if key.dtype != query.dtype or value.dtype != query.dtype:
    raise ValueError(f'query, key and value have dtypes {query.dtype}, {key.dtype} and {value.dtype}; expected one')
  B, Q, H, K = query.shape
  if (key.shape[0], key.shape[3]) != (B, K):
    raise ValueError(f'key has batch {key.shape[0]} and width {key.shape[3]}; expected those of query, {B} and {K} '
                     '(the layout is [batch, length, heads, width])')
  if H % key.shape[2]:
    raise ValueError(f'{H} query heads; expected a multiple of the {key.shape[2]} key heads')
  if bias is not None:
    _check_broadcast('bias', bias.shape, (B, H, Q, key.shape[1]))
    if bias.shape[3] != key.shape[1]:
      raise ValueError(f'bias has {bias.shape[3]} keys; expected {key.shape[1]}')


def _check_broadcast(name, shape, full):
  if len(shape) != 4 or any(n not in (1, f) for n, f in zip(shape, full)):
    wanted = ', '.join(f'{f} or 1' for f in full)
    raise ValueError(f'{name} has shape {tuple(shape)}; expected [{wanted}] (batch, heads, queries, keys)')
