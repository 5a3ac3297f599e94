"""The attention call and the choice of its backend."""

import importlib

import jax

IMPLEMENTATIONS = {'xla': 'pallas_kernels.attention.reference'}


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, *,
    bias: jax.Array | None = None, scale: float | None = None, implementation: str | None = None,
) -> jax.Array:
  """softmax(scale * query @ key^T + bias, where mask) @ value.

  Args:
    query: [B, Q, H, K].
    key, value: [B, T, G, K]; G divides H, and query head h reads key head h // (H / G).
    mask: bool [B or 1, Q, T], true where a query may read a key; None: everywhere. A query that may read nothing
      gives 0.
    bias: float32 [H, Q, T], added to the logits; None: 0.
    scale: of the products; None: 1 / sqrt(K).
    implementation: a key of IMPLEMENTATIONS; None: the best for the device.

  Returns:
    [B, Q, H, K] in the dtype of `query`.

  Raises:
    ValueError: heads that do not divide, or an implementation that does not exist.
  """
  if query.shape[2] % key.shape[2]:
    raise ValueError(f'{query.shape[2]} query heads; expected a multiple of the {key.shape[2]} key heads')
  name = implementation or 'xla'
  if name not in IMPLEMENTATIONS:
    raise ValueError(f"attention implementation is '{name}'; expected one of {', '.join(IMPLEMENTATIONS)}")
  backend = importlib.import_module(IMPLEMENTATIONS[name])
  return backend.dot_product_attention(query, key, value, mask, bias=bias, scale=scale or query.shape[-1] ** -0.5)
