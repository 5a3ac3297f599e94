"""The cases that every backend is asked for: masks and extras of attention, dtypes and epilogues of matmul.

A tier of tests runs them in its own way (XLA, an interpreter, a compiler); pallas_kernels/README.md lists which are
supported.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np

B, Q, T, H, G, K = 2, 70, 90, 4, 2, 16


def _pairs(rng, Q, T):
  segments = (np.sort(rng.integers(0, 3, (B, Q))), np.sort(rng.integers(0, 3, (B, T))))
  stamps = (np.sort(rng.integers(0, 40, (B, Q))) - 3, rng.permuted(np.arange(T)[None].repeat(B, 0), axis=1))
  return segments, stamps


def attention_masks(Q=Q, T=T, seed=0):
  """{name: keyword arguments of dot_product_attention}."""
  rng = np.random.default_rng(seed)
  segments, stamps = _pairs(rng, Q, T)
  return {
      'full': {},
      'causal': {'is_causal': True},
      'window': {'local_window_size': (Q // 6, 3)},
      'causal window': {'is_causal': True, 'local_window_size': (Q // 6, 0)},
      'prefix': {'is_causal': True, 'prefix_lengths': np.array([T // 3, 0])},
      'segments': {'segment_ids': segments},
      'stamps': {'stamps': stamps},
      'causal segments': {'is_causal': True, 'segment_ids': segments},
      'lengths': {'query_seq_lengths': np.array([Q // 2, 0]), 'key_value_seq_lengths': np.array([T - 5, T // 3])},
      'dense': {'mask': rng.random((B, H, Q, T)) < 0.3},
  }


def attention_extras(Q=Q, T=T, seed=0):
  """{name: keyword arguments}, of which `bias` and an array `alpha` have gradients."""
  rng = np.random.default_rng(seed)
  return {
      'bias': {'bias': rng.normal(size=(B, H, Q, T)).astype(np.float32), 'is_causal': True},
      'shared bias': {'bias': rng.normal(size=(1, 1, Q, T)).astype(np.float32)},
      'bias a key': {'bias': rng.normal(size=(B, H, 1, T)).astype(np.float32)},
      'soft cap': {'logits_soft_cap': 2.0, 'is_causal': True},
      'scale': {'scale': 0.5},
      'entmax 1.5': {'alpha': 1.5, 'is_causal': True},
      'entmax 2': {'alpha': 2.0},
      'entmax 1.3': {'alpha': 1.3, 'is_causal': True},
      'entmax learned': {'alpha': np.array([1.2, 1.5, 1.8, 2.0], np.float32)},
  }


def attention_arrays(Q=Q, T=T, H=H, G=G, K=K, dtype=jnp.float32, seed=0, B=B):
  rng = np.random.default_rng(seed)
  return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in ((B, Q, H, K), (B, T, G, K), (B, T, G, K)))


MATMUL_DTYPES = ('float32', 'tf32', 'bfloat16', 'float16', 'float8_e4m3fn', 'float8_e5m2', 'int8')


def matrices(name, M=70, N=50, K=90, seed=0, batch=()):
  """Operands a and b of a dtype's name, and the keyword arguments that go with it."""
  rng = np.random.default_rng(seed)
  shapes = (*batch, M, K), (*batch, K, N)
  if name == 'int8':
    return *(jnp.asarray(rng.integers(-128, 128, s), jnp.int8) for s in shapes), {}
  dtype = np.float32 if name == 'tf32' else np.dtype(getattr(ml_dtypes, name, name))
  pair = tuple(jnp.asarray(rng.normal(size=s).astype(dtype)) for s in shapes)
  return *pair, {'precision': 'tf32'} if name == 'tf32' else {}


def matmul_extras(M=70, N=50, K=90, seed=0):
  """{name: keyword arguments of matmul}."""
  rng = np.random.default_rng(seed)
  normal = lambda *s: rng.normal(size=s).astype(np.float32)
  return {
      'plain': {},
      'alpha beta': {'alpha': 0.5, 'beta': -2.0, 'c': normal(M, N)},
      'bias relu': {'bias': normal(N), 'activation': 'relu'},
      'bias gelu': {'bias': normal(N), 'activation': 'gelu'},
      'silu': {'activation': 'silu'},
      'scales': {'a_scale': np.abs(normal(M)), 'b_scale': np.abs(normal(N))},
      'scalar scales': {'a_scale': np.float32(0.5), 'b_scale': np.float32(3.0)},
      'everything': {'alpha': 0.5, 'beta': 2.0, 'c': normal(M, N), 'bias': normal(N), 'activation': 'gelu',
                     'a_scale': np.abs(normal(M)), 'b_scale': np.float32(0.1)},
      'sparse': {'block_mask': rng.random((7, 9)) < 0.4},
  }


def check_rule(ours, naive, truth, dtype):
  """The error is at most twice the naive kernel's in the same dtype, plus two roundings of the result.

  The rule of flash-attention's own tests. XLA may keep a naive kernel's bfloat16 in float32, hence the roundings.
  """
  ours, naive, truth = (np.asarray(x, np.float32) for x in (ours, naive, truth))
  low = truth.astype(np.dtype(getattr(ml_dtypes, str(dtype), dtype)))
  rounding = np.abs(((low + low.dtype.type(0.3)) - low.dtype.type(0.3) - low).astype(np.float32)).max()
  error, bound = np.abs(ours - truth).max(), 2 * np.abs(naive - truth).max() + 2 * rounding
  assert np.isfinite(ours).all() and error <= bound, f'error {error:.3g}, bound {bound:.3g}'
