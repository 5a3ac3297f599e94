"""The decoder's arithmetic in NumPy, with everything that happens on the way, and with parts of it exchanged.

What the framework's decoder computes for one input, in float32: for looking inside a compiled program, not for speed.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from rasp import decoder

Exchange = Mapping[tuple[str, int, int], np.ndarray]  # ('head', layer, number) or ('unit', layer, number) -> [L, ..]


@dataclasses.dataclass(frozen=True, eq=False)
class Activations:
  """Of one input, BOS included: T = 1 + its tokens, N layers.

  residual_2NxTxD: after the embedding, then after each half-layer. weights_NxHxTxT: attention, [query, key].
  heads_NxHxTxK: what each head brings before it is written. units_NxTxF: after the ramps. logits_TxV.
  """
  residual_2NxTxD: np.ndarray
  weights_NxHxTxT: np.ndarray
  heads_NxHxTxK: np.ndarray
  units_NxTxF: np.ndarray
  logits_TxV: np.ndarray


def run(model: decoder.Model, params: Any, tokens_T: Sequence[int], exchange: Exchange | None = None) -> Activations:
  """Everything that the decoder computes; heads and units in `exchange` give those values instead of their own."""
  blocks, at = params['blocks'], np.arange(len(tokens_T))
  x = params['embedding'][np.asarray(tokens_T)]
  if 'position' in params:
    x = x + params['position'][:len(at)]
  residual, all_weights, all_heads, all_units = [x], [], [], []
  for layer in range(model.layers):
    q, k, v = (np.einsum('ld,dhk->hlk', x, blocks[name]['weight'][layer]) + blocks[name]['bias'][layer][:, None]
               for name in ('query', 'key', 'value'))
    weights = _softmax(q @ k.transpose(0, 2, 1) + _bias(model, blocks, layer, at))
    heads = weights @ v
    for (kind, where, number), values in (exchange or {}).items():
      if kind == 'head' and where == layer:
        heads[number] = values
    x = x + np.einsum('hlk,hkd->ld', heads, blocks['out']['weight'][layer]) + blocks['out']['bias'][layer]
    residual.append(x)
    units = np.maximum(x @ blocks['up']['weight'][layer] + blocks['up']['bias'][layer], 0)
    for (kind, where, number), values in (exchange or {}).items():
      if kind == 'unit' and where == layer:
        units[:, number] = values
    x = x + units @ blocks['down']['weight'][layer] + blocks['down']['bias'][layer]
    residual.append(x)
    all_weights.append(weights)
    all_heads.append(heads)
    all_units.append(units)
  return Activations(np.stack(residual), np.stack(all_weights), np.stack(all_heads), np.stack(all_units),
                     x @ params['head'].T)


def _bias(model: decoder.Model, blocks: Any, layer: int, at: np.ndarray) -> np.ndarray:
  """What is added to scores by distance, and by the mask: [H or 1, T, T]."""
  bias = np.zeros((1, len(at), len(at)), np.float32)
  if model.relative_bias:
    R = model.relative_bias
    bias = blocks['relative_bias'][layer][:, np.clip(at[:, None] - at, -R, R) + R]
  return np.where((at[:, None] >= at) | (model.mask != 'causal'), bias, np.float32(-1e30))


def _softmax(scores: np.ndarray) -> np.ndarray:
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)
