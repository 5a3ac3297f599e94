"""A plan as the framework's decoder: its settings and its parameters, written with NumPy; no initialiser runs."""

import math
from typing import Any

import numpy as np

from rasp import decoder
from rasp.compiling import bound, readout, wiring
from rasp.compiling.circuit import Head, Reading
from rasp.compiling.schedule import Column, Plan

BOS = 0  # the token before the first; token number v of the vocabulary is v + 1
Params = dict[str, Any]


def settings(plan: Plan, dtype: str) -> decoder.Model:
  """The decoder that holds the plan."""
  heads, steps, layers = plan.circuit.heads, plan.circuit.steps, range(plan.layers)
  units = [2 * sum(len(bound.ramps(s)) for s in steps if s.time == 2 * l + 1) + wiring.clearing(plan, l)
           + sum(g.time == 2 * l + 1 for g in plan.circuit.gates) for l in layers]
  return decoder.settings(
      layers=plan.layers, width=plan.width, heads=max([1, *(sum(h.time == 2 * l for h in heads) for l in layers)]),
      head_width=max([1, *(max(len(h.scores) + 1, len(h.slots)) for h in heads)]), feedforward=max([1, *units]),
      position='learned' if any(c.source == 'index' for c in plan.columns) else 'none',
      relative_bias=max([0, *(len(h.bias) // 2 for h in heads if h.bias is not None)]),
      mask='causal' if plan.circuit.causal else 'bidirectional', dtype=dtype)


def emit(plan: Plan, model: decoder.Model, vocabulary: int, outputs: dict[int, tuple[float, ...]]) -> Params:
  """The parameters. `outputs`: token id -> the codes at which its logit is greatest."""
  D, H, K, F, N = plan.width, model.heads, model.head_width, model.feedforward, plan.layers
  zeros = lambda *shape: np.zeros(shape, np.float32)
  blocks: Params = {name: {'weight': zeros(N, D, H, K), 'bias': zeros(N, H, K)} for name in ('query', 'key', 'value')}
  blocks |= {'out': {'weight': zeros(N, H, K, D), 'bias': zeros(N, D)},
             'up': {'weight': zeros(N, D, F), 'bias': zeros(N, F)},
             'down': {'weight': zeros(N, F, D), 'bias': zeros(N, D)}}
  if model.relative_bias:
    blocks['relative_bias'] = zeros(N, H, 2 * model.relative_bias + 1)
  params: Params = {'embedding': zeros(vocabulary, D), 'head': zeros(vocabulary, D), 'blocks': blocks}
  params['embedding'][:, plan.one] = 1
  if plan.bos is not None:
    params['embedding'][BOS, plan.bos] = 1
  if model.position == 'learned':
    params['position'] = zeros(plan.circuit.longest + 1, D)
  for c in plan.columns:
    if c.source == 'token':
      params['embedding'][1:1 + len(c.vector), plan.dims[c]] = c.vector
    elif c.source == 'index':
      params['position'][1:, plan.dims[c]] = c.vector
  for layer in range(N):
    for number, head in enumerate(h for h in plan.circuit.heads if h.time == 2 * layer):
      _head(plan, head, {name: {k: a[layer] for k, a in blocks[name].items()}
                         for name in ('query', 'key', 'value', 'out')}, number)
      if head.bias is not None:
        R, r = model.relative_bias, len(head.bias) // 2
        blocks['relative_bias'][layer, number] = head.bias[np.clip(np.arange(-R, R + 1), -r, r) + r]
    _feedforward(plan, layer, {k: {n: a[layer] for n, a in blocks[k].items()} for k in ('up', 'down')})
  readout.write(plan, params['head'], outputs)
  return params


def _write(array: np.ndarray, plan: Plan, r: Reading) -> float:
  """Adds a reading's coefficients to a column of weights; returns its constant."""
  parts, const = plan.expand(r)
  for c, a in parts.items():
    array[plan.dims[c]] += a
  return const


def _head(plan: Plan, head: Head, w: dict[str, dict[str, np.ndarray]], h: int) -> None:
  q, k, v, out = (w[name]['weight'] for name in ('query', 'key', 'value', 'out'))
  bos = plan.bos
  reach = abs(head.level) + 64.0 + head.gap * (head.bias is not None) + max(map(abs, plan.range(head.at_bos)))
  for d, (query, key) in enumerate(head.scores):
    w['query']['bias'][h, d] = _write(q[:, h, d], plan, query)
    w['key']['bias'][h, d] = _write(k[:, h, d], plan, key)
    k[bos, h, d] -= plan.at_bos(key)  # BOS scores by its own dimension alone
    reach += abs(plan.at_bos(query)) * max(map(abs, plan.range(key)))
  d = len(head.scores)
  w['query']['bias'][h, d] = head.level + _write(q[:, h, d], plan, head.at_bos)
  q[bos, h, d] += math.ceil(reach)  # BOS reads itself, so that its columns hold what is known beforehand
  k[bos, h, d] = 1
  for s, slot in enumerate(head.slots):
    w['value']['bias'][h, s] = _write(v[:, h, s], plan, slot.value)
    v[bos, h, s] += slot.sink - plan.at_bos(slot.value)
    for column in (c for c in plan.columns if c.source is slot):
      out[h, s, plan.dims[column]] = math.exp(head.level) if head.mode == 'count' else 1


def _feedforward(plan: Plan, layer: int, w: dict[str, dict[str, np.ndarray]]) -> None:
  up, up_bias, down, down_bias = w['up']['weight'], w['up']['bias'], w['down']['weight'], w['down']['bias']
  dims, unit = plan.dims, 0
  for c in plan.cleared.get(2 * layer + 1, ()):
    for sign in wiring.signs(c):
      up[dims[c], unit], down[unit, dims[c]] = sign, -sign
      unit += 1
  for step in (s for s in plan.circuit.steps if s.time == 2 * layer + 1):
    columns = plan.written_by(step)
    for c in columns:
      down_bias[dims[c]] += c.vector[step.places[0]]
    o = bound.offset(step, columns)
    lowest = float(step.levels[0])
    for r in bound.ramps(step):
      slope = 3.0 / r.gap
      for later in (0, 1):  # relu(x) - relu(x - 1) climbs from 0 to 1 over the middle third of the gap
        const = _write(up[:, unit], plan, step.z * slope)
        up[plan.one, unit] += const - slope * lowest + 2.0**o.m
        up[plan.bos, unit] -= 2.0 ** (o.m + 2)
        x = slope * (r.low - lowest) + 2.0**o.m + 1
        up_bias[unit] = -(round(x / o.quantum) * o.quantum) - later
        for c in columns:
          down[unit, dims[c]] = (1 - 2 * later) * (c.vector[r.after] - c.vector[r.before])
        unit += 1
  for gate in (g for g in plan.circuit.gates if g.time == 2 * layer + 1):
    shut = bound.closing(gate)
    const = _write(up[:, unit], plan, gate.value + gate.on * shut)
    up[plan.one, unit] += const - gate.low - shut
    up[plan.bos, unit] -= 4 * (shut + abs(gate.low) + max(map(abs, plan.range(gate.value))))
    for column in (c for c in plan.columns if c.source is gate):
      down[unit, dims[column]] = 1
    unit += 1
