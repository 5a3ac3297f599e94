"""The two operations in float64 NumPy, a query at a time: what every backend is compared with."""

import numpy as np
from scipy import special


def allowed(B, H, Q, T, *, mask=None, is_causal=False, segment_ids=None, prefix_lengths=None, stamps=None,
            query_seq_lengths=None, key_value_seq_lengths=None, local_window_size=None):
  """bool [B, H, Q, T], condition by condition from the words of dot_product_attention."""
  def pair(x, L, M):
    q, k = x if isinstance(x, tuple) else (x, x)
    return np.broadcast_to(np.asarray(q), (B, L)), np.broadcast_to(np.asarray(k), (B, M))
  out = np.ones((B, H, Q, T), bool) if mask is None else np.broadcast_to(np.asarray(mask), (B, H, Q, T)).copy()
  left, right = ((local_window_size,) * 2 if isinstance(local_window_size, int) else local_window_size or (Q + T,) * 2)
  for b in range(B):
    for i in range(Q):
      for j in range(T):
        ok = i - left <= j <= i + right
        if is_causal:
          ok &= j <= i or (prefix_lengths is not None and j < prefix_lengths[b])
        if stamps is not None:
          tau_q, tau_k = pair(stamps, Q, T)
          ok &= tau_k[b, j] <= tau_q[b, i]
        if segment_ids is not None:
          q, k = pair(segment_ids, Q, T)
          ok &= q[b, i] == k[b, j]
        if query_seq_lengths is not None:
          ok &= i < query_seq_lengths[b]
        if key_value_seq_lengths is not None:
          ok &= j < key_value_seq_lengths[b]
        out[b, :, i, j] &= bool(ok)
  return out


def entmax_row(z, alpha):
  """alpha-entmax of one row by bisection on tau to the last bit of float64."""
  z = (alpha - 1) * z
  low, high = z.max() - 1, z.max()
  for _ in range(200):
    tau = (low + high) / 2
    if (np.maximum(z - tau, 0) ** (1 / (alpha - 1))).sum() >= 1:
      low = tau
    else:
      high = tau
  p = np.maximum(z - low, 0) ** (1 / (alpha - 1))
  return p / p.sum()


def attention(query, key, value, bias=None, *, scale=None, logits_soft_cap=None, alpha=None, visible=None, **masks):
  """(out [B, Q, H, K], log-sum-exp [B, Q, H]). `visible`: the result of `allowed`, if it is there already."""
  q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
  (B, Q, H, K), (T, G) = q.shape, k.shape[1:3]
  if visible is None:
    visible = allowed(B, H, Q, T, **masks)
  scale = K ** -0.5 if scale is None else scale
  bias = np.zeros((B, H, Q, T)) if bias is None else np.broadcast_to(np.asarray(bias, np.float64), (B, H, Q, T))
  out, residual = np.zeros((B, Q, H, v.shape[-1])), np.full((B, Q, H), -np.inf)
  for b in range(B):
    for h in range(H):
      logits = scale * q[b, :, h] @ k[b, :, h // (H // G)].T + bias[b, h]
      if logits_soft_cap is not None:
        logits = logits_soft_cap * np.tanh(logits / logits_soft_cap)
      for i in range(Q):
        seen = np.flatnonzero(visible[b, h, i])
        if not len(seen):
          continue
        z = logits[i, seen]
        if alpha is None:
          p = np.exp(z - z.max())
          residual[b, i, h] = z.max() + np.log(p.sum())
          p = p / p.sum()
        else:
          p = entmax_row(z, float(np.broadcast_to(alpha, (H,))[h]))
        out[b, i, h] = p @ v[b, seen, h // (H // G)]
  return out, residual


def matmul(a, b, c=None, *, alpha=1, beta=0, bias=None, activation=None, a_scale=None, b_scale=None, block_mask=None):
  """activation(alpha * (a_scale * a) @ (b * b_scale) + beta * c + bias) in float64."""
  a, b = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
  if block_mask is not None:
    m, k = a.shape[-2] // block_mask.shape[0], a.shape[-1] // block_mask.shape[1]
    a = a * np.kron(np.asarray(block_mask), np.ones((m, k)))
  if a_scale is not None:
    a = a * (a_scale if np.ndim(a_scale) == 0 else np.asarray(a_scale)[..., None])
  if b_scale is not None:
    b = b * (b_scale if np.ndim(b_scale) == 0 else np.asarray(b_scale)[..., None, :])
  x = alpha * (a @ b)
  if beta:
    x = x + beta * np.asarray(c).astype(np.float64)
  if bias is not None:
    x = x + np.asarray(bias).astype(np.float64)
  if activation == 'relu':
    x = np.maximum(x, 0)
  elif activation == 'silu':
    x = x * special.expit(x)
  elif activation == 'gelu':
    x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return x
