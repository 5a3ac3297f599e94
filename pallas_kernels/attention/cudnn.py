"""Attention by cuDNN, as jax.nn hands it on: the vendor's kernels, for what they do as dot_product_attention says.

Refused although cuDNN takes it: a bias, whose gradient jax.nn leaves at zero for most shapes, and masks that can leave
a query without keys, which cuDNN does not answer with 0.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.runtime import device


def attend(query, key, value, bias, mask, *, scale, soft_cap, alpha, config, return_residual):
  """See reference.attend."""
  Q, K = query.shape[1], query.shape[3]
  for name, given in (
      ('bias', bias is not None), ('alpha (entmax)', alpha is not None), ('soft cap', soft_cap is not None),
      ('mask but causal, with or without a window', not mask.is_static or (mask.window and not mask.is_causal)),
      (f'causal mask of {Q} queries and {mask.keys} keys, expected as many', mask.is_causal and Q != mask.keys),
      ('log-sum-exp', return_residual), (f'config; got {config}', config is not None),
      (f'{query.dtype}, expected bfloat16 or float16', query.dtype not in (jnp.bfloat16, jnp.float16)),
      (f'heads of width {K}, expected a multiple of 8 up to 128', K % 8 or K > 128)):
    if given:
      raise NotImplementedError(f'attention implementation cudnn has no {name}; xla has')
  capability = float(getattr(jax.devices()[0], 'compute_capability', 8.0))
  if device.platform() != 'gpu' or capability < 8:
    raise NotImplementedError(f'attention implementation cudnn needs an NVIDIA GPU of compute capability 8.0 or later; '
                              f'this is {device.kind()}')
  try:
    return jax.nn.dot_product_attention(
        query, key, value, scale=scale, is_causal=mask.is_causal, local_window_size=mask.window,
        implementation='cudnn'), None
  except RuntimeError as error:  # jax's word for a library that is not there
    raise ModuleNotFoundError(f'attention implementation cudnn: {error}', name='cuDNN') from error
