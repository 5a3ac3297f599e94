"""The pieces that networks are made of: linear maps, norms, dropout, positions, and a stack of layers.

Letters: B batch, L window, D width, H heads, K head width, N layers.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax.core import meta
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from framework import config as config_lib
from framework import sharding
from framework.models import contract, norm

ACTIVATIONS = {'gelu': nn.gelu, 'gelu_exact': lambda x: nn.gelu(x, approximate=False), 'relu': nn.relu,
               'relu2': lambda x: jnp.square(nn.relu(x)),  # So et al. 2021, arXiv:2109.08668
               'swiglu': nn.silu, 'geglu': nn.gelu}  # of the gate: Shazeer 2020, arXiv:2002.05202


def fan_in_normal(fan_in: int, gain: float = 1.0) -> nn.initializers.Initializer:
  """Normal with variance gain^2 / fan_in (LeCun et al. 1998, "Efficient BackProp", section 4.6)."""
  return nn.initializers.normal(gain * fan_in**-0.5)


def dropout(x_BxLxD: jax.Array, keys_B: jax.Array | None, rate: float, site: int) -> jax.Array:
  """Inverted dropout with one key a row, so that a row's mask depends neither on its batch nor on its device."""
  if keys_B is None or rate == 0.0:
    return x_BxLxD
  L, parts = x_BxLxD.shape[1], sharding.size('sequence')
  def keep_row(key):
    keep = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, (parts * L, *x_BxLxD.shape[2:]))
    return keep if parts == 1 else keep[sharding.places(L)]
  return jnp.where(jax.vmap(keep_row)(keys_B), x_BxLxD / (1.0 - rate), 0)


def fold_keys(keys_B: jax.Array | None, number: Any) -> jax.Array | None:
  """Dropout keys of a layer, or another part of a network, from those of a row; None stays None."""
  return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def rotate(x_BxLxHxK: jax.Array, positions_BxL: jax.Array, frequency_K: jax.Array, factor: Any = 1.0) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of the first channels of a head, two for each
  frequency: of R rotated ones channel k is paired with channel k + R/2."""
  half = frequency_K.shape[0]
  angle_BxLx1xK = positions_BxL[:, :, None, None].astype(jnp.float32) * frequency_K
  cos, sin = jnp.cos(angle_BxLx1xK), jnp.sin(angle_BxLx1xK)
  if not isinstance(factor, float) or factor != 1.0:
    cos, sin = factor * cos, factor * sin
  a, b = x_BxLxHxK[..., :half], x_BxLxHxK[..., half:2 * half]
  rest = [x_BxLxHxK[..., 2 * half:]] if 2 * half < x_BxLxHxK.shape[-1] else []
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, *rest], axis=-1).astype(x_BxLxHxK.dtype)


def sinusoids(positions_BxL: jax.Array, width: int) -> jax.Array:
  """Sines and cosines of the position, [B, L, D] (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""
  frequency = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = positions_BxL[..., None].astype(jnp.float32) * frequency
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions_BxL.shape, width)


def has_bias(c: config_lib.Model, part: str) -> bool:
  """Whether a part of a layer, see model.bias_on, has a bias."""
  return c.bias and (c.bias_on == 'all' or part in c.bias_on.split(','))


class Norm(nn.Module):
  """RMSNorm (Zhang and Sennrich 2019), LayerNorm (Ba et al. 2016), computed in float32, or nothing."""
  config: config_lib.Model

  @nn.compact
  def __call__(self, x_BxLxD):
    c = self.config
    if c.norm == 'none':
      return x_BxLxD
    scale_D = self.param('scale', contract.parameter(nn.initializers.ones, ('width',), 'scale'), (c.width,),
                         c.param_dtype) if c.norm_scale else jnp.ones(c.width, c.param_dtype)
    x = norm.normalize(x_BxLxD.astype(jnp.float32), scale_D.astype(jnp.float32), c.norm == 'layernorm',
                       c.norm_epsilon)
    if has_bias(c, 'norm') and c.norm == 'layernorm':
      x = x + self.param('bias', contract.parameter(nn.initializers.zeros, ('width',), 'bias'), (c.width,),
                         c.param_dtype)
    return x.astype(c.dtype)


class HeadNorm(nn.Module):
  """RMSNorm of queries or keys (Henry et al. 2020, arXiv:2010.04245): of each head, or of all heads together."""
  config: config_lib.Model

  @nn.compact
  def __call__(self, x_BxLxHxK):
    c, (H, K) = self.config, x_BxLxHxK.shape[-2:]
    sizes = {'head_width': K} if c.query_norm == 'head' else {'heads': H, 'head_width': K}
    scale = self.param('scale', contract.parameter(nn.initializers.ones, tuple(sizes), 'scale'), tuple(sizes.values()),
                       c.param_dtype)
    rows = x_BxLxHxK if c.query_norm == 'head' else x_BxLxHxK.reshape(*x_BxLxHxK.shape[:-2], H * K)
    rows = norm.normalize(rows.astype(jnp.float32), scale.astype(jnp.float32).reshape(-1), False, c.norm_epsilon)
    return rows.reshape(x_BxLxHxK.shape).astype(c.dtype)


Axes = dict[str, int]  # sizes of logical axes, in order


class Linear(nn.Module):
  """Contracts the last axes of x with a weight of shape (*in, *out), as one matrix product, and adds a bias.

  part: what it is of a layer, for model.bias_on.
  """
  config: config_lib.Model
  inputs: Axes
  outputs: Axes
  gain: float = 1.0
  part: str = ''

  @nn.compact
  def matrix(self) -> tuple[jax.Array, jax.Array | None]:
    """The weight as [in, out] and the bias as [out], in the dtype of the arithmetic."""
    c, sizes = self.config, (*self.inputs.values(), *self.outputs.values())
    fan_in, fan_out = (int(np.prod(list(axes.values()))) for axes in (self.inputs, self.outputs))
    weight = self.param('weight', contract.parameter(
        fan_in_normal(fan_in, self.gain), (*self.inputs, *self.outputs), 'hidden', tuple(self.inputs)), sizes,
        c.param_dtype)
    if not has_bias(c, self.part):
      return weight.astype(c.dtype).reshape(fan_in, fan_out), None
    bias = self.param('bias', contract.parameter(nn.initializers.zeros, tuple(self.outputs), 'bias'),
                      tuple(self.outputs.values()), c.param_dtype)
    return weight.astype(c.dtype).reshape(fan_in, fan_out), bias.astype(c.dtype).reshape(fan_out)

  def __call__(self, x):
    return fused(x, self)[0]


def fused(x: jax.Array, *linears: Linear) -> list[jax.Array]:
  """Several linear maps of one input, as query, key and value are, computed as one matrix product."""
  weights, biases = zip(*(linear.matrix() for linear in linears))
  lead, T = x.shape[:x.ndim - len(linears[0].inputs)], sharding.size('tensor')
  if T > 1 and x.ndim - len(linears[0].inputs) == 2:
    return _fused_over_tensor(x.reshape(*lead, -1), linears, weights, biases, T)
  y = x.reshape(-1, weights[0].shape[0]) @ (jnp.concatenate(weights, axis=1) if len(weights) > 1 else weights[0])
  if biases[0] is not None:
    y = y + jnp.concatenate(biases)
  parts = jnp.split(y, np.cumsum([w.shape[1] for w in weights])[:-1], axis=1)
  return [part.reshape(*lead, *linear.outputs.values()) for part, linear in zip(parts, linears)]


def _fused_over_tensor(x_BxLxI: jax.Array, linears, weights, biases, T: int) -> list[jax.Array]:
  """`fused`, with heads or channels split over T devices, and the stream between blocks along the window.

  What the devices compute side by side is joined a device at a time, [I, T, O / T]: joined otherwise, it would move.
  """
  outputs = [next(iter(linear.outputs)) for linear in linears]
  columns = all(sharding.TABLE.get(axis) == 'tensor' and linear.outputs[axis] % T == 0
                for axis, linear in zip(outputs, linears))
  rows = sharding.TABLE.get(next(iter(linears[0].inputs))) == 'tensor'
  if columns or rows:  # a row of x meets all columns; or each device has some of the columns of x
    x_BxLxI = sharding.constrain(x_BxLxI, {1: None, 2: 'tensor' if rows else None})
  groups = T if columns else 1
  grouped = [w.reshape(w.shape[0], groups, -1) for w in weights]
  y_BxLxGxO = jnp.einsum('bli,igo->blgo', x_BxLxI, jnp.concatenate(grouped, axis=2))
  if biases[0] is not None:
    y_BxLxGxO = y_BxLxGxO + jnp.concatenate([b.reshape(groups, -1) for b in biases], axis=1)
  if columns:
    y_BxLxGxO = sharding.constrain(y_BxLxGxO, {1: None, 2: 'tensor', 3: None})
  elif rows:
    y_BxLxGxO = sharding.constrain(y_BxLxGxO, {1: 'tensor'})
  parts = jnp.split(y_BxLxGxO, np.cumsum([w.shape[2] for w in grouped])[:-1], axis=3)
  return [part.reshape(*x_BxLxI.shape[:2], *linear.outputs.values()) for part, linear in zip(parts, linears)]


@jax.custom_vjp
def unstack(tree):
  """The leaves' leading axis as a list of trees. Its gradient is one stack, where slices would add N padded arrays."""
  leaves, treedef = jax.tree.flatten(tree)
  return [jax.tree.unflatten(treedef, parts) for parts in zip(*map(list, leaves))]


unstack.defvjp(lambda tree: (unstack(tree), None),
               lambda _, parts: (jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts),))


@dataclasses.dataclass(frozen=True)
class Stack:
  """How N layers of one kind run one after the other: their parameters lie stacked on a leading axis `layers`, whether
  they run as one scanned layer or unrolled, so that a checkpoint does not depend on how the model is compiled.

  loops: times that all of them run. remat: none | dots | full, see the setting model.remat. dtype: of the arithmetic,
  in which weights that are split over devices (sharding.Shard) are gathered, a layer at a time.
  """
  layers: int
  loops: int = 1
  scan: bool = False
  remat: str = 'none'
  dtype: str = 'float32'

  def init(self, one: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """Stacked parameters, of `one(key)` for each layer."""
    return meta.add_axis(jax.vmap(one)(jax.random.split(key, self.layers)), 0, {nn.PARTITION_NAME: 'layers'})

  def __call__(self, layer: Callable, params: Any, carry: Any) -> tuple[Any, Any]:
    """(carry after the last layer, what the layers gave besides, stacked) of `layer(carry, (params, number))`."""
    if sharding.size('fsdp') > 1:  # inside the checkpoint: whole weights are not kept for the backward pass
      one = layer
      layer = lambda carry, inputs: one(carry, (sharding.whole(inputs[0], self.dtype), inputs[1]))
    if self.remat != 'none':
      layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable if self.remat == 'dots' else None)
    if self.scan:
      once = lambda carry, first: jax.lax.scan(layer, carry, (params, first + jnp.arange(self.layers)))
    else:
      parts = unstack(params)
      def once(carry, first):
        outputs = []
        for number, own in enumerate(parts):
          carry, output = layer(carry, (own, first + number))
          outputs.append(output)
        return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *outputs)
    if self.loops == 1:
      return once(carry, 0)
    return jax.lax.scan(once, carry, self.layers * jnp.arange(self.loops))

  def zeros(self, shape: tuple[int, ...], dtype: str) -> list[jax.Array] | jax.Array:
    """Zeros for each layer of each loop: an array a layer where layers are unrolled, else a stack.

    XLA copies a part of a stack at every step of a loop.
    """
    if not self.scan and self.loops == 1 and self.remat == 'none':
      return [jnp.zeros(shape, dtype) for _ in range(self.layers)]
    return jnp.zeros((self.loops * self.layers, *shape), dtype)


def stack_of(c: config_lib.Model) -> Stack:
  """The stack of a model's layers as its settings have it."""
  return Stack(c.layers, c.loops, c.scan, c.remat, c.dtype)


def updated(x: list[jax.Array] | jax.Array, new: jax.Array, layer: Any, at: tuple) -> list[jax.Array] | jax.Array:
  """What `Stack.zeros` gave, with `new` in the place `at` of `layer`."""
  if isinstance(x, list):
    return [jax.lax.dynamic_update_slice(one, new, at) if n == layer else one for n, one in enumerate(x)]
  return jax.lax.dynamic_update_slice(x, new[None], (layer, *at))
