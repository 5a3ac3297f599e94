"""Attention in Pallas for TPUs: every mask, bias, both directions (Dao 2023, arXiv:2307.08691). Interpreted on a CPU.

The last axis of the grid walks the blocks that a mask leaves, whose numbers are prefetched scalars: a block that is
skipped is neither loaded nor visited.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention import gradient
from pallas_kernels.attention.mask import Mask
from pallas_kernels.runtime import device
from pallas_kernels.runtime.batching import over_batch

NOTHING = -1e30  # stands for -inf in a running maximum, where inf - inf would be NaN
LANES = 128


@dataclasses.dataclass(frozen=True)
class Config:
  """Blocks of queries and of keys; unmeasured."""
  block_q: int = 512
  block_k: int = 512


def attend(query, key, value, bias, mask, *, scale, soft_cap, alpha, config, return_residual):
  """See reference.attend."""
  for name, given in (('alpha (entmax), whose threshold takes several passes over the keys', alpha is not None),
                      (str(query.dtype), query.dtype not in (jnp.float32, jnp.bfloat16))):
    if given:
      raise NotImplementedError(f'attention implementation mosaic_tpu has no {name}; xla has')
  config = config or Config()
  if config.block_k % LANES or config.block_q % LANES:
    raise NotImplementedError(f'attention implementation mosaic_tpu has blocks of multiples of {LANES}; got {config}')
  settings = gradient.Settings(scale, soft_cap, False, config)
  return gradient.attend(forward, backward, settings, gradient.Arrays(query, key, value, bias, None), mask)


def _fit(block: int, length: int) -> int:
  return min(block, -(-length // LANES) * LANES)


class _Call:
  """The grid, index maps and mask operands of one pass: `outer` blocks, each of which visits blocks of the other side.

  Grid: (B, heads, outer blocks, heads of a group x steps); by_key, the outer blocks are of keys and a key head visits
  the blocks of all its query heads. `every`: the blocks that a mask skips have their turn too, after all others.
  """

  def __init__(self, query_shape, key_shape, mask: Mask, bias, settings, by_key: bool = False, every: bool = False):
    (self.B, self.H, self.Q, self.K), (_, self.G, self.T, _) = query_shape, key_shape
    self.M, self.by_key, self.every = self.H // self.G, by_key, every
    self.mask, self.bias, self.settings = mask, bias, settings
    self.block_q, self.block_k = _fit(settings.config.block_q, self.Q), _fit(settings.config.block_k, self.T)
    order, full, visible = mask.schedule(self.block_q, self.block_k, by_key=by_key)
    self.rows, self.heads, outer, inner = order.shape
    # Where the mask is known, no more steps than the fullest block has.
    self.steps = inner if every or isinstance(visible, jax.Array) else max(1, int(visible.max()))
    self.prefetched = [x.reshape(-1, *x.shape[3:]) for x in (order, full, visible)]
    self.grid = (self.B, self.G, outer, self.M * self.steps) if by_key else (self.B, self.H, outer, self.steps)
    self.outer = outer

  def entry(self, b, h, n):
    """The row of the prefetched arrays."""
    return ((b if self.rows > 1 else 0) * self.heads + (h if self.heads > 1 else 0)) * self.outer + n

  def head(self, h, s):
    """The query head of a step."""
    return h * self.M + s // self.steps if self.by_key else h

  def other(self, b, h, n, s, order, full, visible):
    """The number of the block that a step visits; beyond the last it stays, so that nothing is loaded."""
    e, step = self.entry(b, self.head(h, s), n), s % self.steps
    return order[e, step if self.every else jnp.clip(step, 0, jnp.maximum(visible[e] - 1, 0))]

  def kind(self, b, h, n, s, full, visible):
    """(whether the step visits a block, whether this block needs no mask)."""
    e, step = self.entry(b, self.head(h, s), n), s % self.steps
    return step < visible[e], step < full[e]

  def blocks(self, b, h, n, s, *prefetched):
    """(query head, block of queries, key head, block of keys)."""
    other = self.other(b, h, n, s, *prefetched)
    head = self.head(h, s)
    return (head, other, h, n) if self.by_key else (head, n, head // self.M, other)

  def spec(self, side: str, width: int):
    """Of something [B, H, Q, width] ('query'), [B, G, T, width] ('key') or [B, H, Q, T] ('both')."""
    if side == 'both':
      return self.tile_spec(self.B, self.H, self.Q)
    def index(b, h, n, s, *prefetched):
      qh, q, kh, k = self.blocks(b, h, n, s, *prefetched)
      return (b, qh, q, 0) if side == 'query' else (b, kh, k, 0)
    return pl.BlockSpec((1, 1, self.block_q if side == 'query' else self.block_k, width), index)

  def tile_spec(self, B: int, H: int, Q: int):
    """Of something [B, H, Q, T], where B, H and Q may be 1."""
    def index(b, h, n, s, *prefetched):
      qh, q, _, k = self.blocks(b, h, n, s, *prefetched)
      return b if B > 1 else 0, qh if H > 1 else 0, q if Q > 1 else 0, k
    return pl.BlockSpec((1, 1, self.block_q if Q > 1 else 1, self.block_k), index)

  def mask_operands(self):
    """(arrays, specs) of the conditions: start, end, tau, segment, dense, and of the bias, as far as there are such."""
    mask, arrays, specs = self.mask, [], []
    def add(x, side):  # queries run down the sublanes, keys along the lanes
      rows = x.shape[0] > 1
      arrays.append(jnp.asarray(x)[:, :, None] if side == 'query' else jnp.asarray(x)[:, None])
      def index(b, h, n, s, *prefetched):
        _, q, _, k = self.blocks(b, h, n, s, *prefetched)
        return (b if rows else 0, q, 0) if side == 'query' else (b if rows else 0, 0, k)
      specs.append(pl.BlockSpec((1, self.block_q, 1) if side == 'query' else (1, 1, self.block_k), index))
    for x in mask.intervals():
      add(x, 'query')
    for pair in (mask.stamps, mask.segments):
      if pair is not None:
        add(pair[0], 'query')
        add(pair[1], 'key')
    dense = mask.dense_BxHxQxT
    for x in (None if dense is None else jnp.asarray(dense).astype(jnp.int8), self.bias):
      if x is not None:
        arrays.append(x)
        specs.append(self.tile_spec(*x.shape[:3]))
    return arrays, specs

  def seen(self, refs, column):
    """bool [block_q, block_k] from the references of `mask_operands`, for keys from `column`."""
    refs = list(refs)
    j = column + jax.lax.broadcasted_iota(jnp.int32, (1, self.block_k), 1)
    seen = (refs.pop(0)[0] <= j) & (j < refs.pop(0)[0])
    if self.mask.stamps is not None:
      q, k = refs.pop(0)[0], refs.pop(0)[0]
      seen = seen & (k <= q)
    if self.mask.segments is not None:
      q, k = refs.pop(0)[0], refs.pop(0)[0]
      seen = seen & (k == q)
    if self.mask.dense_BxHxQxT is not None:
      seen = seen & (refs.pop(0)[0, 0].astype(jnp.int32) != 0)
    return seen

  def run(self, kernel, inputs, sides, outputs, out_sides, scratch, flops: int):
    """pallas_call of kernel(call, step, kind, (row, column), mask refs, input refs, output refs, scratch refs)."""
    masks, mask_specs = self.mask_operands()
    counts = np.cumsum([3, len(masks), len(inputs), len(outputs)])
    def body(*refs):
      order, full, visible = refs[:3]
      at = tuple(pl.program_id(i) for i in range(4))
      _, q, _, k = self.blocks(*at, order, full, visible)
      parts = [refs[a:b] for a, b in zip(counts, [*counts[1:], len(refs)])]
      kernel(self, at[3], self.kind(*at, full, visible), (q * self.block_q, k * self.block_k), *parts)
    return pl.pallas_call(
        body, out_shape=outputs,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3, grid=self.grid,
            in_specs=[*mask_specs, *(self.spec(side, x.shape[-1]) for side, x in zip(sides, inputs))],
            out_specs=[self.spec(side, x.shape[-1]) for side, x in zip(out_sides, outputs)], scratch_shapes=scratch),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary')),
        cost_estimate=pl.CostEstimate(
            flops=flops, transcendentals=self.B * self.H * self.Q * self.T,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs))),
        interpret=device.platform() == 'cpu', name=f'attention_{kernel.__name__.strip("_")}',
    )(*self.prefetched, *masks, *inputs)

  def logits(self, q, k, masks, row):
    """(soft_cap(scale * q k^T + bias), its derivative by its argument or None), float32 [block_q, block_k]."""
    s = self.settings
    x = _dot(q, k, (1, 1)) * s.scale
    if self.bias is not None:
      x = x + self.clean(masks[-1][0, 0].astype(jnp.float32), row, self.Q)
    if s.soft_cap is None:
      return x, None
    tanh = jnp.tanh(x / s.soft_cap)
    return s.soft_cap * tanh, 1 - tanh**2

  def clean(self, x, start, length):
    """Rows of a block that lie beyond the array's end as 0: they are undefined, and 0 times NaN is NaN."""
    if length % x.shape[0] == 0:
      return x
    row = start + jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0)
    return jnp.where(row < length, x, jnp.zeros_like(x))


def _dot(a, b, contracted):
  return jax.lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), ((), ())),
                             preferred_element_type=jnp.float32,
                             precision='highest' if a.dtype == jnp.float32 else None)


def _forward(call, step, kind, corner, masks, inputs, outputs, scratch):
  (query, key, value), (out, lse), (acc, maximum, total) = inputs, outputs, scratch
  row, column = corner

  @pl.when(step == 0)
  def _():
    acc[...] = jnp.zeros_like(acc)
    maximum[...] = jnp.full_like(maximum, NOTHING)
    total[...] = jnp.zeros_like(total)

  def visit(masked):
    x, _ = call.logits(query[0, 0], key[0, 0], masks, row)
    if masked:
      seen = call.seen(masks, column)
      x = jnp.where(seen, x, NOTHING)
    old = maximum[...]
    new = jnp.maximum(old, x.max(1, keepdims=True))
    p, shrink = jnp.exp(x - new), jnp.exp(old - new)
    if masked:
      p = jnp.where(seen, p, 0)
    values = call.clean(value[0, 0], column, call.T) if masked else value[0, 0]
    acc[...] = acc[...] * shrink + _dot(p.astype(values.dtype), values, (1, 0))
    maximum[...], total[...] = new, total[...] * shrink + p.sum(1, keepdims=True)
  _either(kind, visit)

  @pl.when(step == call.grid[3] - 1)
  def _():
    some = total[...] > 0
    divisor = jnp.where(some, total[...], 1)
    out[0, 0] = (acc[...] / divisor).astype(out.dtype)
    lse[0, 0] = jnp.where(some, maximum[...] + jnp.log(divisor), -jnp.inf)


def _either(kind, visit):
  """visit(masked) as the block is partial or full."""
  visited, full = kind
  pl.when(visited & full)(functools.partial(visit, False))
  pl.when(visited & ~full)(functools.partial(visit, True))


def _weights(call, masked, masks, corner, query, key, value, d_out, lse, delta):
  """(p, gradient of scale * query key^T + bias), [block_q, block_k]."""
  row, column = corner
  x, d_cap = call.logits(query, key, masks, row)
  p = jnp.exp(x - lse)
  d_x = p * (_dot(d_out, value, (1, 1)) - delta)
  if d_cap is not None:
    d_x = d_x * d_cap
  if masked:
    seen = call.seen(masks, column)
    p, d_x = jnp.where(seen, p, 0), jnp.where(seen, d_x, 0)
  return p, d_x


def _backward_query(call, step, kind, corner, masks, inputs, outputs, scratch):
  """Outputs: d_query and, with a bias, its gradient, which needs a value in skipped blocks too."""
  query, key, value, d_out, lse, delta = (ref[0, 0] for ref in inputs)
  [acc], (d_query, *d_bias) = scratch, outputs

  @pl.when(step == 0)
  def _():
    acc[...] = jnp.zeros_like(acc)

  def visit(masked):
    keys = call.clean(key, corner[1], call.T) if masked else key
    _, d_x = _weights(call, masked, masks, corner, query, keys, value, d_out, lse, delta)
    acc[...] += _dot(d_x.astype(keys.dtype), keys, (1, 0))
    for ref in d_bias:
      ref[0, 0] = d_x
  _either(kind, visit)

  @pl.when(~kind[0])
  def _():
    for ref in d_bias:
      ref[...] = jnp.zeros_like(ref)

  @pl.when(step == call.grid[3] - 1)
  def _():
    d_query[0, 0] = (acc[...] * call.settings.scale).astype(d_query.dtype)


def _backward_key(call, step, kind, corner, masks, inputs, outputs, scratch):
  query, key, value, d_out, lse, delta = (ref[0, 0] for ref in inputs)
  sum_k, sum_v = scratch
  row, _ = corner

  @pl.when(step == 0)
  def _():
    sum_k[...], sum_v[...] = jnp.zeros_like(sum_k), jnp.zeros_like(sum_v)

  def visit(masked):
    q, g = call.clean(query, row, call.Q), call.clean(d_out, row, call.Q)
    p, d_x = _weights(call, masked, masks, corner, q, key, value, g, call.clean(lse, row, call.Q),
                      call.clean(delta, row, call.Q))
    sum_v[...] += _dot(p.astype(g.dtype), g, (0, 0))
    sum_k[...] += _dot(d_x.astype(q.dtype), q, (0, 0))
  _either(kind, visit)

  @pl.when(step == call.grid[3] - 1)
  def _():
    outputs[0][0, 0] = (sum_k[...] * call.settings.scale).astype(outputs[0].dtype)
    outputs[1][0, 0] = sum_v[...].astype(outputs[1].dtype)


def _by_head(x):
  """[B, L, H, K] as [B, H, L, K] and back."""
  return x.swapaxes(1, 2)


def forward(arrays, mask, settings):
  """(out [B, Q, H, K], log-sum-exp [B, H, Q])."""
  def one(rows, shared):
    (query, key, value), (mask, bias) = map(_by_head, rows), shared
    call = _Call(query.shape, key.shape, mask, bias, settings)
    B, H, Q, K = query.shape
    out, lse = call.run(
        _forward, (query, key, value), ('query', 'key', 'key'),
        (jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct((B, H, Q, 1), jnp.float32)),
        ('query', 'query'), [pltpu.VMEM((call.block_q, n), jnp.float32) for n in (K, 1, 1)],
        4 * B * H * Q * call.T * K)
    return _by_head(out), lse[..., 0]
  return over_batch(one)(arrays[:3], (mask, arrays.bias))


def backward(arrays, mask, out, lse_BxHxQ, delta_BxHxQ, d_out, settings):
  """Gradients of `arrays`."""
  def one(rows, shared):
    (query, key, value, lse, delta, d_out), (mask, bias) = rows, shared
    query, key, value, d_out = map(_by_head, (query, key, value, d_out))
    # exp(logits - inf) = 0 for a query that reads nothing
    lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)[..., None]
    (B, H, Q, K), T = query.shape, key.shape[2]
    inputs = query, key, value, d_out, lse, delta[..., None]
    sides = 'query', 'key', 'key', 'query', 'query', 'query'
    def like(x):
      return jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = _Call(query.shape, key.shape, mask, bias, settings, every=bias is not None)
    flops = 2 * B * H * Q * T * K
    outputs, out_sides = [like(query)], ['query']
    if bias is not None:
      outputs, out_sides = [*outputs, jax.ShapeDtypeStruct((B, H, Q, T), jnp.float32)], [*out_sides, 'both']
    d_query, *d_bias = call.run(_backward_query, inputs, sides, outputs, out_sides,
                                [pltpu.VMEM((call.block_q, K), jnp.float32)], 3 * flops)
    call = _Call(query.shape, key.shape, mask, bias, settings, by_key=True)
    d_key, d_value = call.run(_backward_key, inputs, sides, (like(key), like(value)), ('key', 'key'),
                              [pltpu.VMEM((call.block_k, K), jnp.float32)] * 2, 4 * flops)
    return _by_head(d_query), _by_head(d_key), _by_head(d_value), d_bias
  del out
  *gradients, d_bias = over_batch(one)((*arrays[:3], lse_BxHxQ, delta_BxHxQ, d_out), (mask, arrays.bias))
  return gradient.Arrays(*gradients, gradient.sum_to(d_bias[0], arrays.bias) if d_bias else None, None)
