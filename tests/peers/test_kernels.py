"""Attention and its gradients against PyTorch's scaled_dot_product_attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import dot_product_attention

pytestmark = pytest.mark.peers
B, Q, H, K = 2, 37, 4, 16


@pytest.mark.parametrize('implementation', ['xla', 'xla_chunked', 'mosaic_tpu'])
@pytest.mark.parametrize('case', ['causal', 'dense', 'bias', 'scale'])
def test_torch_agrees(case, implementation):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=(B, Q, H, K)).astype(np.float32) for _ in range(3)]
  weight = rng.normal(size=(B, Q, H, K)).astype(np.float32)
  dense = rng.random((B, 1, Q, Q)) < 0.5
  dense[..., 0] = True  # torch gives NaN for a query that reads nothing
  bias = rng.normal(size=(1, H, Q, Q)).astype(np.float32)
  ours_with, torch_with = {
      'causal': ({'is_causal': True}, {'is_causal': True}),
      'dense': ({'mask': dense}, {'attn_mask': torch.tensor(dense)}),
      'bias': ({'bias': jnp.asarray(bias)}, {'attn_mask': torch.tensor(bias)}),
      'scale': ({'scale': 0.3}, {'scale': 0.3})}[case]
  if case == 'bias' and implementation == 'mosaic_tpu':
    pytest.skip('mosaic_tpu has no bias')

  def loss(*x):
    out = dot_product_attention(*x, **ours_with, implementation=implementation)
    return (out * weight).sum(), out
  gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
  tensors = [torch.tensor(x.swapaxes(1, 2).copy(), requires_grad=True) for x in arrays]
  expected = torch.nn.functional.scaled_dot_product_attention(*tensors, **torch_with)
  (expected * torch.tensor(weight.swapaxes(1, 2).copy())).sum().backward()
  for ours, theirs in zip((out, *gradients), (expected, *(t.grad for t in tensors))):
    np.testing.assert_allclose(ours, theirs.detach().numpy().swapaxes(1, 2), atol=2e-5)
